"""A photograph with its labels beneath it, for people to look at."""

import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from splitattn.errors import one_line

# Width of the result, and the largest height of the photograph in it, in pixels.
WIDTH = 640
_MARGIN = 16
_FONT_SIZE, _LINE_HEIGHT, _BAR_HEIGHT = 20, 40, 4
_GROUND, _TEXT, _QUIET, _RAIL, _BAR = "#18181b", "#fafafa", "#a1a1aa", "#3f3f46", "#38bdf8"
_LONGEST = 200  # characters; the rest of a text is not measured

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# Pillow's own font has only ASCII. Fonts that may be installed.
_OTHER_FONTS = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf")


def draw_labels(
    image: Image.Image, labels: Sequence[tuple[str, float]], *, min_probability: float = 0.0
) -> Image.Image:
    """Draw `image`, scaled to the width, and below it a line for each label.

    Args:
        image: RGB.
        labels: text and probability, from 0 to 1, the most probable first. Long text is truncated.
        min_probability: if the first label's is lower, all labels are gray and the first one says
            "not sure".

    Returns:
        RGB, 640 pixels wide.
    """
    scale = WIDTH / max(image.size)
    width, height = (max(round(side * scale), 1) for side in image.size)
    below = 2 * _MARGIN + _LINE_HEIGHT * len(labels) if labels else 0
    drawn = Image.new("RGB", (WIDTH, height + below), _GROUND)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    drawn.paste(resized, ((WIDTH - width) // 2, 0))
    pen = ImageDraw.Draw(drawn)
    unsure = bool(labels) and labels[0][1] < min_probability
    for number, (label, probability) in enumerate(labels):
        top = height + _MARGIN + number * _LINE_HEIGHT
        color = _QUIET if unsure or number else _TEXT
        doubt = "not sure   " if unsure and not number else ""
        percent = f"{doubt}{100 * probability:.1f} %"
        right = WIDTH - _MARGIN
        pen.text((right, top), percent, color, _own_font(), anchor="ra")
        free = right - 2 * _MARGIN - _own_font().getlength(percent)
        text, font = _fitting(one_line(label), free)
        pen.text((_MARGIN, top), text, color, font, anchor="la")
        bar_top = top + _LINE_HEIGHT - 3 * _BAR_HEIGHT
        pen.rectangle((_MARGIN, bar_top, right - 1, bar_top + _BAR_HEIGHT - 1), _RAIL)
        filled = round((right - _MARGIN) * min(max(probability, 0.0), 1.0))
        if filled:
            end = (_MARGIN + filled - 1, bar_top + _BAR_HEIGHT - 1)
            pen.rectangle((_MARGIN, bar_top, *end), _QUIET if unsure else _BAR)
    return drawn


def _fitting(text: str, width: float) -> tuple[str, _Font]:
    """`text`, truncated with an ellipsis to `width` pixels, and its font."""
    text, font = lettering(text, _FONT_SIZE)
    shown = text[:_LONGEST]
    while font.getlength(shown if shown == text else f"{shown}...") > width:
        shown = shown[:-1]
    return (shown if shown == text else f"{shown}..."), font


def lettering(text: str, size: int) -> tuple[str, _Font]:
    """`text` and a font of `size` pixels with its letters; without one, the text in ASCII."""
    font = _own_font(size) if text.isascii() else _other_font(size)
    return (text, font) if font else (_in_ascii(text), _own_font(size))


def _in_ascii(text: str) -> str:
    """`text` without accents, and with a question mark for each letter of another script."""
    letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(letters).encode("ascii", "replace").decode()


@cache
def _own_font(size: int = _FONT_SIZE) -> _Font:
    return ImageFont.load_default(size)


@cache
def _other_font(size: int) -> _Font | None:
    for name in _OTHER_FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return None
