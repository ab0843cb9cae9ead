"""How an image becomes the input of a detector or segmenter: resized, to a side that is short."""

from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from splitattn.errors import InputError, WeightsError

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
        """Half of both, where the shortest allows it."""
        short = max(self.short // 2, SHORTEST)
        return replace(self, short=short, long=max(self.long // 2, short))

    def scale(self, width: int, height: int) -> float:
        """By what an image is multiplied."""
        return min(self.short / min(width, height), self.long / max(width, height))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image after it is resized, at least `multiple`."""
        scale, unit = self.scale(width, height), self.multiple
        across, down = (max(round(side * scale / unit), 1) * unit for side in (width, height))
        return across, down


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image` at width and height `size`, bilinear, with antialiasing where it becomes smaller."""
    return image.resize(size, Image.Resampling.BILINEAR)


def read_sides(values: dict[str, Any], multiple: int = 1) -> Sides:
    """The sides in a file's metadata, with `multiple`.

    Raises:
        WeightsError: they are missing or unusable.
    """
    short, long = values.get("short_side"), values.get("long_side")
    if type(short) is not int or type(long) is not int:
        raise WeightsError(
            f"the file must say the sides of its images, got {short!r:.30} and {long!r:.30}"
        )
    return Sides(short=short, long=long, multiple=multiple)
