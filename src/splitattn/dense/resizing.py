"""Decodes and resizes images for detectors and segmenters."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.errors import InputError, WeightsError
from splitattn.images.decode import ImageSource, Reduced, decode_reduced
from splitattn.images.limits import DEFAULT_LIMITS, Limits
from splitattn.images.loading import Decoding

SHORTEST, _LONGEST = 32, 8192


@dataclass(frozen=True, kw_only=True)
class Sides:
    """How large an image becomes: its shorter side `short`, unless its longer side exceeds `long`.

    Attributes:
        short, long: in pixels.
        multiple: both sides are rounded to multiples of it.

    Raises:
        InputError: a side is outside 32 to 8192, or the long one is shorter.
    """

    short: int
    long: int
    multiple: int = 1

    def __post_init__(self) -> None:
        if not SHORTEST <= self.short <= self.long <= _LONGEST:
            raise InputError(
                f"the short side must be from {SHORTEST} to the long one, and that at most "
                f"{_LONGEST}, got {self.short} and {self.long}"
            )

    def halved(self) -> "Sides":
        """Both sides halved, but not below 32."""
        short = max(self.short // 2, SHORTEST)
        return replace(self, short=short, long=max(self.long // 2, short))

    @property
    def least_side(self) -> int:
        """The least shorter side, in pixels, of an image that is decoded at reduced size.

        It is twice the network's; see `preprocessing.least_side`.
        """
        return 2 * (self.short + self.multiple - 1)

    def scale(self, width: int, height: int) -> float:
        """The factor by which an image of this size is resized."""
        return min(self.short / min(width, height), self.long / max(width, height))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image after it is resized, at least `multiple`."""
        scale, unit = self.scale(width, height), self.multiple
        across, down = (max(round(side * scale / unit), 1) * unit for side in (width, height))
        return across, down


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image` at width and height `size`, bilinear, with antialiasing where it becomes smaller."""
    return image.resize(size, Image.Resampling.BILINEAR)


def pixels_of(image: Reduced, sides: Sides) -> NDArray[np.uint8]:
    """An image resized for the network, (H, W, 3).

    Args:
        image: if it was decoded at reduced size, the result has the same size as that of the whole
            image, and nearly the same pixels.
    """
    across, down = (side / image.scale for side in image.whole)
    size, box = sides.size(*image.whole), (0, 0, across, down)
    return np.asarray(image.image.resize(size, Image.Resampling.BILINEAR, box))


def decode_for(
    source: ImageSource,
    sides: Sides,
    decoding: Decoding,
    *,
    limits: Limits = DEFAULT_LIMITS,
    name: str | None = None,
) -> Reduced:
    """Decode an image for `pixels_of`.

    Args:
        decoding: "fast" decodes large JPEG files at reduced size, "exact" does not.
        source, limits, name: see `images.decode.decode`.

    Raises:
        ImageError: the image cannot be used.
    """
    least_side = sides.least_side if decoding == "fast" else None
    return decode_reduced(source, least_side, limits=limits, name=name)


def read_sides(values: dict[str, Any], multiple: int = 1) -> Sides:
    """The sides in a file's metadata, with `multiple`.

    Raises:
        WeightsError: they are missing or unusable.
    """
    short, long = values.get("short_side"), values.get("long_side")
    if type(short) is not int or type(long) is not int:
        raise WeightsError(
            "the file's metadata must have whole numbers as short_side and long_side, got "
            f"{short!r:.30} and {long!r:.30}"
        )
    return Sides(short=short, long=long, multiple=multiple)
