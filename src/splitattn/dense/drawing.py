"""Draws boxes or masks of objects, with their labels, on images."""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from splitattn.errors import one_line
from splitattn.images.drawing import lettering

if TYPE_CHECKING:
    from splitattn.dense.detector import DetectedObject

Color = tuple[int, int, int]
# Colors that are easy to tell apart, on dark and bright pictures and for most color-blind people
# (Okabe and Ito, 2008, without black, and two more).
_COLORS: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (148, 103, 189),
    (140, 86, 75),
)
# Sums of red, green and blue, beyond which further colors look black or white.
_DARKEST, _BRIGHTEST = 150, 640
_BRIGHT = 140
OPACITY = 0.55  # of a class's color over a picture
# Images whose longer side is shorter, in pixels, are enlarged, since captions would hide them.
LEGIBLE = 320
# How far from its box a caption may be, in heights of a caption.
_ROWS = 6


def color(index: int) -> Color:
    """The color of a class."""
    colors = _COLORS if index < len(_COLORS) else _more_colors()
    return colors[index % len(colors)]


@cache
def _more_colors() -> tuple[Color, ...]:
    """The first colors, and after them each time the one that is farthest from all before it."""
    left = np.array([*product(range(0, 256, 51), repeat=3)])
    left = left[(left.sum(1) > _DARKEST) & (left.sum(1) < _BRIGHTEST)]
    colors = [*_COLORS]
    distances = np.full(len(left), np.inf)
    for chosen in _COLORS:
        distances = np.minimum(distances, np.square(left - chosen).sum(1))
    while distances.any():
        red, green, blue = left[distances.argmax()].tolist()
        colors.append((red, green, blue))
        distances = np.minimum(distances, np.square(left - colors[-1]).sum(1))
    return tuple(colors)


def draw_objects(image: Image.Image, objects: "Sequence[DetectedObject]") -> Image.Image:
    """A copy of `image` with what a detector found: masks, or boxes if it finds no masks.

    A small image is enlarged, by a whole number, to at least `LEGIBLE` pixels.
    """
    masks = [each.mask for each in objects if each.mask]
    scale = ceil(LEGIBLE / max(image.size))
    return draw_boxes(
        image.resize((scale * image.width, scale * image.height)),
        [[scale * side for side in each.box] for each in objects],
        [each.index for each in objects],
        [f"{one_line(each.label)} {each.score:.0%}" for each in objects],
        (mask.pixels().repeat(scale, 0).repeat(scale, 1) for mask in masks) if masks else None,
    )


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    captions: Sequence[str],
    masks: Iterable[NDArray[np.bool_]] | None = None,
) -> Image.Image:
    """A copy of `image` with boxes, each in the color of its class, with a caption.

    Args:
        boxes: left, top, right, bottom in pixels.
        labels: index of each box's class.
        captions: of each box; an empty one is not drawn.
        masks: (H, W) of each object: then these are drawn, and no boxes.
    """
    drawn = image.convert("RGB")
    if drawn is image:
        drawn = image.copy()
    if masks is not None:
        drawn = _with_masks(drawn, labels, masks)
    draw = ImageDraw.Draw(drawn)
    side = max(drawn.size)
    width, size = max(round(side / 400), 2), min(max(round(side / 45), 11), 48)
    for box, label in zip(boxes, labels, strict=True):
        if masks is None:
            draw.rectangle(list(box), outline=color(label), width=width)
    # Captions last: no box crosses them.
    taken: list[tuple[float, float, float, float]] = []
    for box, label, caption in zip(boxes, labels, captions, strict=True):
        if caption:
            text, font = lettering(caption, size)
            taken.append(_caption(draw, box, text, color(label), font, taken))
    return drawn


def _with_masks(
    image: Image.Image, labels: Sequence[int], masks: Iterable[NDArray[np.bool_]]
) -> Image.Image:
    """Each object in the color of its class and edged, so that neighbors of a class are apart."""
    pixels = np.array(image)
    numbers = np.zeros(pixels.shape[:2], dtype=np.int32)
    pairs = zip(labels, masks, strict=True)
    for number, (label, mask) in enumerate(pairs, start=1):
        free = mask & (numbers == 0)  # the first, which are the best, lie on top
        numbers[free] = number
        tint = np.array(color(label), np.float32) - pixels[free]
        pixels[free] = (pixels[free] + OPACITY * tint).round().astype(np.uint8)
    pixels[edges(numbers)] = 255
    return Image.fromarray(pixels)


def edges(numbers: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Pixels of (H, W) whose right or lower neighbor has another number."""
    found = np.zeros(numbers.shape, dtype=bool)
    found[:, :-1] |= numbers[:, :-1] != numbers[:, 1:]
    found[:-1] |= numbers[:-1] != numbers[1:]
    return found


def _caption(
    draw: ImageDraw.ImageDraw,
    box: Sequence[float],
    caption: str,
    background: Color,
    font: Any,
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Text above the box, or else where there is room; returns the place that it takes."""
    left, top, right, bottom = draw.textbbox((0, 0), caption, font=font)
    width, height = right - left + 4, bottom - top + 4
    size = draw.im.size
    x = max(min(box[0], size[0] - width), 0)
    rows = [step * height for step in range(_ROWS)]
    above, below = [box[1] - height - row for row in rows], [box[3] + row for row in rows]
    for y in (above[0], below[0], box[1], box[3] - height, *above[1:], *below[1:]):
        place = (x, y, x + width, y + height)
        if y >= 0 and y + height <= size[1] and not any(_overlap(place, other) for other in taken):
            break
    else:
        y = max(min(box[1], size[1] - height), 0)
        place = (x, y, x + width, y + height)
    draw.rectangle(place, fill=background)
    text = (0, 0, 0) if sum(background) / 3 > _BRIGHT or background[1] > 200 else (255, 255, 255)
    draw.text((x + 2 - left, place[1] + 2 - top), caption, fill=text, font=font)
    return place


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    across = one[0] < other[2] and other[0] < one[2]
    return across and one[1] < other[3] and other[1] < one[3]
