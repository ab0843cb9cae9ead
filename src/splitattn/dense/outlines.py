"""Outlines of objects: polygons, and COCO's run lengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# A polygon of fewer points has no area.
_FEWEST_POINTS = 3
# A character of COCO's compressed run lengths has six bits: five of the number, and one that says
# whether more follow.
_FIRST_CHARACTER, _CONTINUED, _NEGATIVE = 48, 0x20, 0x10
_MOST_CHARACTERS_A_RUN = 7

Polygon = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RunLengths:
    """A mask as COCO's run lengths: column by column, first how many pixels are outside.

    Attributes:
        counts: how many pixels in a row are outside, inside, outside, ...
        height, width: of the image.
    """

    counts: tuple[int, ...]
    height: int
    width: int

    def to_coco(self) -> dict[str, Any]:
        """COCO's `{"size": [height, width], "counts": ...}`, with compressed counts."""
        return {"size": [self.height, self.width], "counts": _compressed(self.counts)}

    def pixels(self) -> NDArray[np.bool_]:
        """The mask, (height, width)."""
        inside = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(inside, self.counts).reshape(self.width, self.height).T


# Polygons (N, 2) of x and y in pixels, whose union is the object, or a mask.
Outline = tuple[Polygon, ...] | RunLengths


class MalformedError(ValueError):
    """An annotation is not what its format says. The message has the rule and the value."""


def read_polygon(values: object) -> Polygon | None:
    """A polygon from x, y, x, y, ... in pixels, or None if it has fewer than three points.

    Raises:
        MalformedError: the values are not pairs of finite numbers.
    """
    if not isinstance(values, list) or len(values) % 2 or not all(map(is_number, values)):
        raise MalformedError(f"a polygon must be pairs of finite numbers, got {values!r:.60}")
    points = np.array(values, dtype=np.float64).reshape(-1, 2)
    return points if len(points) >= _FEWEST_POINTS else None


def read_run_lengths(value: dict[str, Any]) -> RunLengths:
    """Run lengths from COCO's `{"size": [height, width], "counts": ...}`.

    Args:
        value: counts are a list, or COCO's compressed text.

    Raises:
        MalformedError: the size or the counts are malformed, or the counts do not add up to the
            pixels of the mask.
    """
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(_is_count(n) for n in size):
        raise MalformedError(f"run lengths must have a size of two numbers, got {size!r:.60}")
    if isinstance(counts, str):
        counts = _decompressed(counts)
    if not isinstance(counts, list) or not all(_is_count(n) for n in counts):
        raise MalformedError(f"run lengths must be whole numbers, got {counts!r:.60}")
    height, width = size
    if sum(counts) != height * width:
        raise MalformedError(
            f"run lengths must add up to {height} x {width} pixels, got {sum(counts)}"
        )
    return RunLengths(counts=tuple(counts), height=height, width=width)


def _decompressed(text: str) -> list[int]:
    """The numbers of COCO's compressed text (`rleFrString` of its API)."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - _FIRST_CHARACTER
        if not 0 <= code < 64 or shift > 5 * _MOST_CHARACTERS_A_RUN:
            raise MalformedError(f"compressed run lengths must be COCO's text, got {text!r:.60}")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & _CONTINUED:
            continue
        if code & _NEGATIVE:
            value -= 1 << shift
        # From the fourth on, a number is the difference to the last but one.
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise MalformedError(f"compressed run lengths must end, got {text[-60:]!r}")
    return counts


def _compressed(counts: Sequence[int]) -> str:
    """The inverse of `_decompressed` (`rleToString` of COCO's API)."""
    codes: list[int] = []
    for index, count in enumerate(counts):
        value, more = (count - counts[index - 2] if index > 2 else count), True
        while more:
            code = value & 0x1F
            value >>= 5
            more = value != (-1 if code & _NEGATIVE else 0)
            codes.append(code | (_CONTINUED if more else 0))
    return "".join(chr(code + _FIRST_CHARACTER) for code in codes)


def to_run_lengths(mask: NDArray[np.bool_]) -> RunLengths:
    """A mask (height, width) as run lengths."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    if flat.size and flat[0]:
        runs = [0, *runs]
    height, width = mask.shape
    return RunLengths(counts=tuple(runs), height=height, width=width)


def to_mask(outline: Outline, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of an object.

    Args:
        size: width and height of the image.

    Returns:
        (height, width).
    """
    width, height = size
    if isinstance(outline, RunLengths):
        return outline.pixels()
    # With COCO's own code, which also scores masks.
    from faster_coco_eval.core import mask

    union = mask.decode(mask.merge(mask.frPyObjects(to_coco(outline), height, width)))
    found: NDArray[np.bool_] = np.asarray(union, dtype=bool)
    return found


def resized_mask(
    outline: Outline, size: tuple[int, int], new_size: tuple[int, int]
) -> NDArray[np.bool_]:
    """The pixels of an object in an image that was resized.

    Args:
        size, new_size: width and height of the image, before and after.

    Returns:
        (new height, new width).
    """
    if isinstance(outline, RunLengths):
        mask = Image.fromarray(outline.pixels().astype(np.uint8))
        return np.asarray(mask.resize(new_size, Image.Resampling.NEAREST), dtype=bool)
    scale = np.array(new_size) / np.array(size)
    return to_mask(tuple(polygon * scale for polygon in outline), new_size)


def to_coco(outline: Outline) -> list[list[float]] | dict[str, Any]:
    """An outline as COCO's `segmentation`."""
    if isinstance(outline, RunLengths):
        return outline.to_coco()
    return [polygon.ravel().tolist() for polygon in outline]


def clipped(outline: Outline | None, size: tuple[int, int]) -> Outline | None:
    """`outline` with the points of its polygons moved into the image; far ones cost memory."""
    if outline is None or isinstance(outline, RunLengths):
        return outline
    return tuple(polygon.clip(0, size) for polygon in outline)


def bounds(polygons: Sequence[Polygon]) -> tuple[float, float, float, float]:
    """The box around polygons."""
    points = np.concatenate(polygons)
    left, top = points.min(0).tolist()
    right, bottom = points.max(0).tolist()
    return left, top, right, bottom


def area(polygon: Polygon) -> float:
    """The area of a polygon, in square pixels."""
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def is_number(value: object) -> bool:
    """Whether `value` is an int or a float below a billion in magnitude."""
    return type(value) in (int, float) and abs(value) < 1e9 and isfinite(value)  # type: ignore[arg-type]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**40
