"""Draws the class of every pixel on an image, with a legend beneath it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from splitattn.dense.drawing import OPACITY, color, edges
from splitattn.dense.masks import IGNORED, Mask
from splitattn.errors import one_line
from splitattn.images.drawing import lettering

_GROUND, _TEXT = (24, 24, 27), (250, 250, 250)
# Smaller pictures get a legend that is as wide as this, in pixels.
_LEAST_WIDTH = 320
# Classes with a smaller share of the pixels are not in the legend.
_LEAST_SHARE = 0.001


def draw_classes(
    image: Image.Image, found: Mask, classes: Sequence[str], *, legend: bool = True
) -> Image.Image:
    """A copy of `image` with each class in its color, white edges, and a legend beneath.

    Args:
        image: RGB.
        found: the class of every pixel, (H, W); pixels of 255 stay as they are.
        classes: names.
        legend: whether the names are written beneath, those of the largest classes first.
    """
    colors = np.array([color(number) for number in range(len(classes))], dtype=np.float32)
    pixels = np.array(image.convert("RGB"), dtype=np.float32)
    inside = found != IGNORED
    pixels[inside] += OPACITY * (colors[found[inside]] - pixels[inside])
    pixels[edges(found)] = 255
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    return _with_legend(drawn, found, classes) if legend else drawn


def numbered(found: Mask, classes: Sequence[str]) -> Image.Image:
    """A picture whose pixels are the numbers of their classes, as `open_masked` reads it.

    A palette gives each class its color.
    """
    picture = Image.fromarray(found)
    picture.putpalette([part for number in range(len(classes)) for part in color(number)])
    return picture


def _with_legend(drawn: Image.Image, found: Mask, classes: Sequence[str]) -> Image.Image:
    counts = np.bincount(found.ravel(), minlength=IGNORED + 1)[: len(classes)]
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i] > _LEAST_SHARE * found.size]
    width = max(drawn.width, _LEAST_WIDTH)
    size = min(max(round(width / 40), 12), 40)
    gap, row = size // 2, 2 * size
    places: list[tuple[int, int, int, str]] = []
    left, top = gap, 0
    for number in order:
        share = counts[number] / found.size
        percent = f"{share:.1%}" if share < 0.01 else f"{share:.0%}"
        text, font = lettering(f"{one_line(classes[number])} {percent}", size)
        needed = size + gap + round(font.getlength(text)) + 2 * gap
        if left > gap and left + needed > width:
            left, top = gap, top + row
        places.append((left, top, int(number), text))
        left += needed
    whole = Image.new("RGB", (width, drawn.height + (top + row if places else 0)), _GROUND)
    whole.paste(drawn, ((width - drawn.width) // 2, 0))
    pen = ImageDraw.Draw(whole)
    for left, top, number, text in places:
        y = drawn.height + top + size // 2
        pen.rectangle((left, y, left + size - 1, y + size - 1), color(number))
        _, font = lettering(text, size)
        pen.text((left + size + gap, y + size // 2), text, _TEXT, font, anchor="lm")
    return whole
