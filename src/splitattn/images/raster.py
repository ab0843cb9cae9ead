"""Pixels at a file's own bit depth, and the value that is white.

Shapes: H, W rows and columns, C channels.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.errors import ImageError
from splitattn.images.crop import cropped
from splitattn.preprocessing import Box

logger = logging.getLogger(__name__)

# Side of the tiles, in pixels, in which large images are converted, to save memory.
_TILE = 1024

# The largest values of 8, 10, 12, 14, 16, 24, 31 and 32 bits.
_WHITES = tuple(2.0**bits - 1 for bits in (8, 10, 12, 14, 16, 24, 31, 32))
# One pixel in a thousand may be brighter than white: dead pixels and reflections.
_OVEREXPOSED = 1000
# Floats may also exceed white by this factor: resizing and calibration overshoot.
_OVERSHOOT = 1.25
# Resizing may make values negative, by this fraction of the brightest value and in this share of
# the pixels. Photographs reduced with Lanczos stay within both; beyond, negative values have a
# meaning, as in Hounsfield units.
_UNDERSHOOTS = ((0.02, 1 / 50), (0.1, 1 / _OVEREXPOSED))

# Lower bits count as scaled if they fit in more than this share of the samples.
_MOST = 0.9

# ITU-R 601-2, as Pillow's conversion from "RGB" to "L".
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, kw_only=True)
class Raster:
    """The pixels of an image at full bit depth.

    Attributes:
        size: width and height, in pixels.
        channels: number of channels.
        alpha: whether the last channel is transparency.
        samples: a function that returns the values inside a box, (H, W) or (H, W, C), of any
            numeric type.
        white: the value of full brightness; None if the file does not state it.
        chosen: whether `white` is the user's `white_level`. Negative values are then black.
        bits: how many of 16 bits are significant, if the file states it.
        name: the image's name in the log.
    """

    size: tuple[int, int]
    channels: int
    alpha: bool = False
    samples: Callable[[Box], NDArray[Any]] = field(repr=False)
    white: float | None
    chosen: bool = False
    bits: int | None = None
    name: str = "an image"

    @cached_property
    def _white(self) -> float:
        return self._white_of(slice(None))

    @cached_property
    def _white_of_color(self) -> float:
        return self._white_of(slice(-1))

    @cached_property
    def _white_of_alpha(self) -> float:
        return self._white_of(slice(-1, None))

    def _white_of(self, channels: slice) -> float:
        """The white of some channels; alpha may have another one than the colors."""
        if not self.chosen:
            self._check_not_negative(channels)
        if self.white is not None:
            return self.white
        if self.bits is not None:
            return self._white_of_bits(self.bits)
        return self._likely_white(channels)

    def fractions(self, box: Box) -> NDArray[np.float32]:
        """The pixels inside `box`, (H, W, C), from 0 to 1; brighter values than white are 1."""
        return self._scaled(box, [self._white] * self.channels)

    def _scaled(self, box: Box, whites: list[float]) -> NDArray[np.float32]:
        values = self._values(box).astype(np.float32)
        for channel, white in enumerate(whites):
            values[..., channel] /= np.float32(white)
        return values.clip(0, 1)

    def opaque(self, box: Box) -> NDArray[np.float32]:
        """Like `fractions`, but transparent pixels are put on white: (H, W, 1) or (H, W, 3)."""
        if not self.alpha:
            return self.fractions(box)
        colors = self.channels - 1
        values = self._scaled(box, [self._white_of_color] * colors + [self._white_of_alpha])
        alpha = values[..., -1:]
        laid: NDArray[np.float32] = values[..., :-1] * alpha + (1 - alpha)
        return laid

    def rgb(self) -> Image.Image:
        """The image in RGB, 8 bits per channel.

        Raises:
            ImageError: it has neither gray nor RGB channels.
        """
        if self.channels - self.alpha not in (1, 3):
            raise ImageError(
                f"an RGB network takes images of 1, 3 or 4 channels, got {self.channels}; an array "
                "has them last, (H, W, C)"
            )
        image = Image.new("RGB", self.size)
        for box in tiles(*self.size):
            pixels = (self.opaque(box) * 255).round().astype(np.uint8)
            tile = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            image.paste(tile.convert("RGB"), box)
        return image

    def planes(self, channels: int) -> NDArray[np.float32]:
        """All pixels, (`channels`, H, W), from 0 to 1.

        For one channel, colors become their luma, and transparent pixels are put on white.

        Raises:
            ImageError: the image has another number of channels.
        """
        gray = channels == 1 and self.channels - self.alpha in (1, 3)
        if not gray and self.channels != channels:
            raise ImageError(
                f"the network takes images of {channels} channels, got {self.channels}: save all "
                "channels as .npy, (H, W, C), or train with in_chans of what is read"
            )
        planes_CHW = np.empty((channels, *self.size[::-1]), np.float32)  # noqa: N806
        for box in tiles(*self.size):
            values = self.opaque(box) if gray else self.fractions(box)
            if gray and values.shape[2] == 3:
                values = (values @ _LUMA)[..., None]
            left, top, right, bottom = box
            planes_CHW[:, top:bottom, left:right] = values.transpose(2, 0, 1)
        return planes_CHW

    def _white_of_bits(self, bits: int) -> float:
        """The white of samples with `bits` significant bits.

        65535 if they are scaled to 16 bits, as the PNG standard says: if their lower bits are zero,
        repeat the upper ones or come from rounding, or if more than a few are above the largest
        number of `bits` bits. Otherwise that number.
        """
        largest = 2**bits - 1
        shifted = repeated = rounded = above = pixels = 0
        for box in tiles(*self.size):
            values = self.samples(box).astype(np.int64)
            lower = values & ((1 << (16 - bits)) - 1)
            shifted += int((lower == 0).sum())
            repeated += int((lower == values >> bits).sum())
            unscaled = (values * largest + 32767) // 65535
            rounded += int((values == (unscaled * 65535 + largest // 2) // largest).sum())
            above += int(((values > largest) & (values < 65535)).sum())  # 65535 may mean saturated
            pixels += values.size
        scaled = max(shifted, repeated, rounded) > _MOST * pixels
        return 65535.0 if scaled or above > pixels / _OVEREXPOSED else float(largest)

    def _values(self, box: Box) -> NDArray[Any]:
        """The values inside `box`, (H, W, C), of the file's own type.

        Raises:
            ImageError: a value is not finite.
        """
        values = self.samples(box)
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ImageError(
                "an image must have finite numbers, got NaN or infinity: write a number such as 0 "
                "in their place"
            )
        return values.reshape(*values.shape[:2], self.channels)

    def _check_not_negative(self, channels: slice) -> None:
        """Raise if more values are negative, or further below zero, than resizing can explain."""
        if self._type.kind in "bu":  # cannot be negative
            return
        lowest = min(self._values(box)[..., channels].min() for box in tiles(*self.size))
        if lowest >= 0:  # the usual case
            return
        brightest = max(self._brightest(channels), 0.0)
        for below, share in _UNDERSHOOTS:
            darker = sum(
                int((self._values(box)[..., channels].min(2) < -below * brightest).sum())
                for box in tiles(*self.size)
            )
            if darker > max(1, share * self._pixels):
                raise ImageError(
                    f"an image must have values from 0, got {darker / self._pixels:.1%} of the "
                    "pixels negative: shift them to begin at 0, or set white_level (--white-level) "
                    "to make these black"
                )

    def _likely_white(self, channels: slice) -> float:
        """The smallest usual white that at most one pixel in a thousand exceeds."""
        floats = np.issubdtype(self._type, np.floating)
        whites = np.array([1.0, *_WHITES] if floats else _WHITES)
        if self._type.kind == "i":
            whites = whites.clip(max=np.iinfo(self._type).max)
        fits = self._brightest(channels) <= whites * (_OVERSHOOT if floats else 1)
        white = float(whites[fits.argmax() if fits.any() else -1])
        _say_white(white, self.name)
        return white

    def _brightest(self, channels: slice) -> float:
        """The brightest value, without the brightest thousandth of the pixels."""
        brighter = min(max(1, self._pixels // _OVEREXPOSED), self._pixels - 1)
        brightest = np.empty(0, self._type)
        for box in tiles(*self.size):
            peaks = self._values(box)[..., channels].max(2)
            brightest = np.sort(np.concatenate([brightest, peaks.ravel()]))[-brighter - 1 :]
        return float(brightest[0])

    @cached_property
    def _type(self) -> np.dtype[Any]:
        return self.samples((0, 0, 1, 1)).dtype

    @property
    def _pixels(self) -> int:
        return self.size[0] * self.size[1]


_USUAL_WHITES = {1.0, 65535.0}
_seen_whites: set[float] = set()


def _say_white(white: float, name: str) -> None:
    """Log a white that was inferred from pixels, unless it is usual and the first.

    Once for each value, not for every image of a data set.
    """
    if white in _seen_whites:
        return
    _seen_whites.add(white)
    if len(_seen_whites) == 1 and white in _USUAL_WHITES:
        return
    logger.warning(
        "%s does not state which value is white, its pixels suggest %g; set white_level "
        "(--white-level) if that is wrong",
        name,
        white,
    )


def tiles(width: int, height: int) -> Iterator[Box]:
    """Boxes of at most the tile size that together cover an image."""
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            yield left, top, min(left + _TILE, width), min(top + _TILE, height)


def from_pillow(
    image: Image.Image,
    *,
    white: float | None,
    chosen: bool = False,
    bits: int | None = None,
    unsigned: bool = False,
    signed: bool = False,
    black: int | None = None,
    lower: Image.Image | None = None,
    name: str = "an image",
) -> Raster:
    """The pixels of a Pillow image of any mode except a palette.

    Args:
        white, chosen, bits: see `Raster`; for 8-bit modes white is known.
        unsigned: 32-bit integers are unsigned, although Pillow treats them as signed.
        signed: 32-bit integers were signed 16-bit integers.
        black: the largest value if zero is white; values are then inverted.
        lower: the lower bytes of 16-bit samples; `image` has the upper ones.
    """
    mode = image.mode

    def samples(box: Box) -> NDArray[Any]:
        values: NDArray[Any] = np.asarray(cropped(image, box))
        if lower is not None:
            values = values * np.uint16(256) + np.asarray(cropped(lower, box))
        elif unsigned and mode == "I":
            values = values.view(np.uint32)
        elif signed:
            values = values.astype(np.int16)
        if black is not None:
            values = values.dtype.type(black) - values
        return values

    if lower is None and not is_deep(mode):
        white = 1.0 if mode == "1" else 255.0
    return Raster(
        size=image.size,
        channels=len(image.getbands()),
        alpha=mode in ("LA", "RGBA"),
        samples=samples,
        white=white,
        chosen=chosen,
        bits=bits,
        name=name,
    )


def from_array(array: NDArray[Any], *, white: float | None, name: str) -> Raster:
    """The pixels of an array (H, W) or (H, W, C). For RGB, a fourth channel is transparency."""
    height, width, *channels = array.shape

    def samples(box: Box) -> NDArray[Any]:
        left, top, right, bottom = box
        return array[top:bottom, left:right]

    return Raster(
        size=(width, height),
        channels=channels[0] if channels else 1,
        alpha=channels == [4],
        samples=samples,
        white=white,
        chosen=white is not None,
        name=name,
    )


def is_deep(mode: str) -> bool:
    """Whether this Pillow mode has more than 8 bits per channel."""
    return mode == "F" or mode.startswith("I")
