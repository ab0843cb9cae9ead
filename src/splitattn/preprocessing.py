"""Evaluation preprocessing: how an image becomes a network's input. It belongs to the weights.

This module only computes sizes and boxes; `splitattn.images` applies them to pixels.
"""

import warnings
from dataclasses import dataclass, replace
from math import ceil, floor, inf
from typing import Literal

from splitattn.errors import InputError

# Far larger than any network's input; a hostile file could use all memory otherwise.
_LARGEST_SIZE = 4096
_LARGEST_RESIZED = 2 * _LARGEST_SIZE

# A hyperspectral camera has a few hundred.
MOST_CHANNELS = 1024

# An image whose longer side is more than this many times the shorter one, or which is larger than
# this when resized, is cropped first. Otherwise a file of a few bytes could become gigabytes.
_LONGEST_STRIP = 100
_MOST_PIXELS = 2**27

# A box: left, top, right and bottom, in pixels.
Box = tuple[int, int, int, int]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class InputSizeWarning(UserWarning):
    """A model runs at another input size than the one at which it was measured."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the network's input in evaluation.

    Attributes:
        size: side of the square input, in pixels.
        crop_fraction: side of the center crop, as a share of the image's shorter side.
        interpolation: filter of the (antialiased) resize.
        order: "crop-resize" crops the original image and resizes the crop to `size` (official
            ResNeSt); "resize-crop" resizes the shorter side to `size / crop_fraction` and crops to
            `size` (torchvision, timm, GluonCV).
        mean, std: mean and standard deviation of each channel, for values scaled to 0..1. Three
            channels are R, G and B with 8 bits each; with any other number of channels, images keep
            their full bit depth.
        white_level: the value of full brightness in images of more than 8 bits per channel; None
            determines it for each image.

    Raises:
        InputError: a field is outside its range.
    """

    size: int
    crop_fraction: float
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    order: Literal["crop-resize", "resize-crop"] = "crop-resize"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    white_level: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.size <= _LARGEST_SIZE:
            raise InputError(f"preprocessing size must be 1 to {_LARGEST_SIZE}, got {self.size}")
        if not 0 < self.crop_fraction <= 1:
            raise InputError(
                f"crop_fraction must be above 0 and at most 1, got {self.crop_fraction}"
            )
        if self.size / self.crop_fraction > _LARGEST_RESIZED:
            raise InputError(
                f"size / crop_fraction must be at most {_LARGEST_RESIZED}, "
                f"got {self.size} / {self.crop_fraction:g}"
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise InputError(
                f"interpolation must be 'bilinear' or 'bicubic', got {self.interpolation!r}"
            )
        if self.order not in ("crop-resize", "resize-crop"):
            raise InputError(f"order must be 'crop-resize' or 'resize-crop', got {self.order!r}")
        if (
            not 1 <= len(self.mean) == len(self.std) <= MOST_CHANNELS
            or not all(-inf < value < inf for value in self.mean)
            or not all(0 < value < inf for value in self.std)
        ):
            raise InputError(
                f"mean and std must have a number for each channel, 1 to {MOST_CHANNELS}, and std "
                f"must be positive, got {self.mean!s:.60} and {self.std!s:.60}"
            )
        if self.white_level is not None and not 0 < self.white_level < inf:
            raise InputError(f"white_level must be above 0, got {self.white_level}")

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return len(self.mean)


def center_crop(size: int) -> Preprocessing:
    """The official test preprocessing: a crop of size / (size + 32), resized bicubically.

    Source: `ECenterCrop` of the official code, which its `verify.py` uses for every size.
    """
    return Preprocessing(size=size, crop_fraction=size / (size + 32))


def at_size(preprocessing: Preprocessing, size: int) -> Preprocessing:
    """`preprocessing` with another input `size`; warns with `InputSizeWarning` if it differs."""
    if size == preprocessing.size:
        return preprocessing
    warnings.warn(
        f"the model was measured at input size {preprocessing.size}, not {size}; "
        "its accuracy will differ",
        InputSizeWarning,
        stacklevel=2,
    )
    return rescaled(preprocessing, size)


def rescaled(preprocessing: Preprocessing, size: int) -> Preprocessing:
    """`preprocessing` for another input `size`, with the same rule for the crop."""
    resized = replace(preprocessing, size=size)
    # The official crop is a function of the size (see `center_crop`), not a fixed share.
    official = preprocessing.crop_fraction == center_crop(preprocessing.size).crop_fraction
    if official and preprocessing.order == "crop-resize":
        return replace(resized, crop_fraction=center_crop(size).crop_fraction)
    return resized


def with_channels(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    """`preprocessing` for another number of channels, all with the average mean and deviation."""
    if channels == preprocessing.channels:
        return preprocessing
    mean, std = (sum(values) / len(values) for values in (preprocessing.mean, preprocessing.std))
    return replace(preprocessing, mean=(mean,) * channels, std=(std,) * channels)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The three steps from an image to the network's input, in this order.

    Attributes:
        crop: the part of the image that is kept.
        resized: width and height to which that part is resized.
        final_crop: the part of the resized image that is kept: size x size pixels.
    """

    crop: Box
    resized: tuple[int, int]
    final_crop: Box


def geometry(width: int, height: int, preprocessing: Preprocessing) -> Geometry:
    """The crops and the resize for an image of `width` x `height` pixels.

    "crop-resize" is the official ResNeSt evaluation (`ECenterCrop` in resnest/torch/datasets).
    "resize-crop" is torchvision's `Resize` and `CenterCrop`; but an image whose longer side is more
    than 100 times the shorter one is cropped first, which can shift its pixels.
    """
    size, short = preprocessing.size, min(width, height)
    if preprocessing.order == "crop-resize":
        side = preprocessing.crop_fraction * short
        left, top = round((width - side) / 2), round((height - side) / 2)
        right, bottom = (max(round(start + side), start + 1) for start in (left, top))
        return Geometry(
            crop=(left, top, right, bottom), resized=(size, size), final_crop=(0, 0, size, size)
        )
    target = floor(size / preprocessing.crop_fraction)
    longest = short * min(_LONGEST_STRIP, _MOST_PIXELS // target**2)
    kept = min(width, longest), min(height, longest)
    resized = target * kept[0] // short, target * kept[1] // short
    return Geometry(
        crop=_center(width, height, *kept),
        resized=resized,
        final_crop=_center(*resized, size, size),
    )


def least_side(preprocessing: Preprocessing) -> int:
    """The smallest shorter side, in pixels, to which an image may be reduced before `geometry`.

    The part of the reduced image that the network sees then has at least 2 * `size` pixels a side,
    so that the result hardly changes. Pillow's `Image.thumbnail(reducing_gap=2)` has the same rule.
    """
    return ceil(2 * preprocessing.size / preprocessing.crop_fraction)


def _center(outer_width: int, outer_height: int, width: int, height: int) -> Box:
    """The centered box of `width` x `height` pixels."""
    left, top = round((outer_width - width) / 2), round((outer_height - height) / 2)
    return left, top, left + width, top + height
