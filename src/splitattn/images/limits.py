"""Limits on the bytes, pixels and download time of one image."""

from dataclasses import dataclass

from splitattn.errors import InputError, check_number


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits that are checked before an image is decoded.

    Attributes:
        max_bytes: size of the encoded image.
        max_pixels: width times height in the header. WebP, AVIF and CMYK JPEG images may have half
            as many, JPEG 2000 images a third and icons a quarter, since their decoders use more
            memory. Decoding one image then takes at most 2 GB.
        max_seconds: for the whole download of a URL.

    Raises:
        InputError: a limit is not positive.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 178_956_970
    max_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_number(name, value)
            if not value > 0:
                raise InputError(f"{name} must be more than 0, got {value}")


DEFAULT_LIMITS = Limits()


def check_limits(limits: Limits) -> Limits:
    """Return `limits`, or raise `InputError` if they are something else."""
    if not isinstance(limits, Limits):
        raise InputError(f"limits must be Limits, got {limits!r:.60}")
    return limits
