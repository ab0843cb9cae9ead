"""Draws an explanation: a heat map over its image, the scale, and the shares of the splits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from splitattn.errors import InputError, one_line, write_failure
from splitattn.files import replacing
from splitattn.images.drawing import WIDTH, lettering
from splitattn.images.encode import data_url

_MARGIN, _LINE, _TEXT_SIZE, _SMALL = 16, 18, 18, 13
_GROUND, _TEXT, _QUIET = "#18181b", "#fafafa", "#a1a1aa"
# Equidistant colors of matplotlib's "plasma", whose lightness grows evenly, also in gray and for
# color-blind people.
_PLASMA = (
    *("#0d0887", "#46039f", "#7201a8", "#9c179e", "#bd3786"),
    *("#d8576b", "#ed7953", "#fb9f3a", "#fdca26", "#f0f921"),
)
# Opacity of the brightest color; zero is transparent.
_COVER = 0.8
_UNSEEN = 0.35  # brightness of the parts of the image that the network does not see
# Colors of the splits (Okabe and Ito, 2008).
_SPLITS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#f0e442", "#0072b2", "#d55e00", "#999999")
_STRIP_HEIGHT, _BAR_HEIGHT = 72, 12

_PAGE_START = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Heat maps of the labels</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 680px; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100%; height: auto; border-radius: 6px }
section { margin: 2rem 0 } h2 { font-size: 1rem; overflow-wrap: anywhere; margin: 0 }
p { margin: 0 0 .5rem }
</style>
<h1>Heat maps of the labels</h1>
"""
_SECTION = """<section><h2>{name}</h2><p>{text}</p>
<img src="{picture}" width="{width}" height="{height}" alt="{name}: {text}">
</section>
"""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The meaning of the colors.

    Attributes:
        highest: value of the brightest color; zero is transparent.
        unit: of the values.
        notes: lines of text below the scale.
    """

    highest: float
    unit: str
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The mean share of each split of a block; a single number is its gate."""

    block: str
    values: tuple[float, ...]


def heat(values: NDArray[np.float32], size: tuple[int, int], highest: float) -> Image.Image:
    """Draw a heat map as a picture to put over an image.

    Args:
        values: (H, W).
        size: width and height of the picture, in pixels; values are interpolated.
        highest: value of the brightest color.

    Returns:
        RGBA. Values up to 0 are transparent.
    """
    large = Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)
    return Image.fromarray(_colors(np.asarray(large, np.float32) / np.float32(highest)))


def draw_heat(
    image: Image.Image,
    values: NDArray[np.float32],
    box: tuple[float, float, float, float],
    scale: Scale,
    label: tuple[str, float],
    shares: Sequence[Shares],
) -> Image.Image:
    """Draw a heat map over `image`, scaled to the width, and below it label, scale and shares.

    Args:
        image: RGB.
        values: the map (H, W).
        box: the part of the image that the map covers: left, top, right, bottom in its pixels.
        scale: the meaning of the colors.
        label: text and probability, from 0 to 1.
        shares: of each block, in the order in which blocks run.

    Returns:
        RGB, 640 pixels wide.
    """
    factor = WIDTH / max(image.size)
    width, height = (max(round(side * factor), 1) for side in image.size)
    picture = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top, right, bottom = (round(side * factor) for side in box)
    seen = (max(right - left, 1), max(bottom - top, 1))
    shown = picture.point(lambda value: value * _UNSEEN)
    shown.paste(picture.crop((left, top, left + seen[0], top + seen[1])), (left, top))
    layer = heat(values, seen, scale.highest)
    shown.paste(layer, (left, top), layer)
    text = _Text()
    text.title(*label)
    text.scale(scale)
    if shares:
        text.strip(shares)
    below = text.drawn()
    drawn = Image.new("RGB", (WIDTH, height + below.height), _GROUND)
    drawn.paste(shown, ((WIDTH - width) // 2, 0))
    drawn.paste(below, (0, height))
    return drawn


class _Text:
    """The lines below the picture, from top to bottom."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (WIDTH, 1000), _GROUND)
        self._pen = ImageDraw.Draw(self._image)
        self._top = _MARGIN

    def drawn(self) -> Image.Image:
        return self._image.crop((0, 0, WIDTH, self._top + _MARGIN))

    def title(self, label: str, probability: float) -> None:
        right = WIDTH - _MARGIN
        self._pen.text(
            (right, self._top),
            f"{100 * probability:.1f} %",
            _TEXT,
            lettering("", _TEXT_SIZE)[1],
            anchor="ra",
        )
        text, font = lettering(one_line(label), _TEXT_SIZE)
        while text and font.getlength(text) > WIDTH - 8 * _MARGIN:
            text = text[:-1]
        self._pen.text((_MARGIN, self._top), text, _TEXT, font, anchor="la")
        self._top += 30

    def scale(self, scale: Scale) -> None:
        bar = WIDTH // 2
        ramp = _colors(np.linspace(0, 1, bar, dtype=np.float32)[None].repeat(_BAR_HEIGHT, 0))
        layer = Image.fromarray(ramp)
        left = _MARGIN + 16
        self._image.paste("#808080", (left, self._top, left + bar, self._top + _BAR_HEIGHT))
        self._image.paste(layer, (left, self._top), layer)
        self._line("0", _MARGIN, self._top - 2)
        self._line(f"{scale.highest:.3g} {scale.unit}", left + bar + 8, self._top - 2)
        self._top += _BAR_HEIGHT + 8
        for note in scale.notes:
            for line in self._wrapped(note):
                self._line(line, _MARGIN, self._top)
                self._top += _LINE

    def strip(self, shares: Sequence[Shares]) -> None:
        """A bar for each block, cut into the mean shares of its splits."""
        gate = len(shares[0].values) == 1
        self._top += 6
        self._line(
            "Mean gate of each block (channels, not places)"
            if gate
            else "Mean share of each split, block by block (channels, not places)",
            _MARGIN,
            self._top,
        )
        if not gate:
            self._splits(len(shares[0].values))
        self._top += _LINE + 2
        step = (WIDTH - 2 * _MARGIN) / len(shares)
        stage = ""
        for number, each in enumerate(shares):
            left, right = _MARGIN + number * step, _MARGIN + (number + 1) * step - 2
            level = float(self._top + _STRIP_HEIGHT)
            for value, color in zip(each.values, _SPLITS, strict=False):
                upper = level - max(value, 0) * _STRIP_HEIGHT
                self._pen.rectangle((left, upper, max(right, left), level), color)
                level = upper
            if each.block.partition(".")[0] != stage:
                stage = each.block.partition(".")[0]
                self._line(stage, left, self._top + _STRIP_HEIGHT + 3)
        half = self._top + _STRIP_HEIGHT / 2
        self._pen.line((_MARGIN, half, WIDTH - _MARGIN, half), _GROUND)
        self._top += _STRIP_HEIGHT + _LINE + 2

    def _splits(self, count: int) -> None:
        """Draw the legend of the splits at the right end of the line."""
        font = lettering("", _SMALL)[1]
        right = float(WIDTH - _MARGIN)
        for number in reversed(range(min(count, len(_SPLITS)))):
            right -= font.getlength(f"{number + 1}")
            self._line(f"{number + 1}", right, self._top)
            self._pen.rectangle(
                (right - 13, self._top + 3, right - 4, self._top + 12), _SPLITS[number]
            )
            right -= 22

    def _line(self, text: str, left: float, top: float) -> None:
        self._pen.text((left, top), text, _QUIET, lettering("", _SMALL)[1], anchor="la")

    def _wrapped(self, text: str) -> list[str]:
        font = lettering("", _SMALL)[1]
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if font.getlength(longer) > WIDTH - 2 * _MARGIN:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines


def _colors(shares: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Map values relative to the highest (H, W) to RGBA (H, W, 4)."""
    clipped = shares.clip(0, 1)
    anchors = np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in _PLASMA])
    at = np.linspace(0, 1, len(anchors))
    channels = [np.interp(clipped, at, anchors[:, i]) for i in range(3)]
    channels.append(255 * _COVER * clipped)
    return np.stack(channels, -1).round().astype(np.uint8)


def write_page(path: Path, sections: Iterable[tuple[str, str, Image.Image]]) -> None:
    """Write a page with a name, a line of text and a picture for each image.

    Args:
        path: of the HTML file.
        sections: name, text and picture; read one by one, so that pictures are not kept in memory.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(_PAGE_START)
            for name, text, picture in sections:
                file.write(_section(name, text, picture))
            file.write("</html>\n")
    except OSError as error:
        raise InputError(write_failure(path, error)) from error


def _section(name: str, text: str, picture: Image.Image) -> str:
    return _SECTION.format(
        name=escape(one_line(name), quote=True),
        text=escape(one_line(text), quote=True),
        picture=data_url(picture),
        width=picture.width,
        height=picture.height,
    )
