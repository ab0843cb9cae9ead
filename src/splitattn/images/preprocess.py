"""The evaluation preprocessing contract: how an image becomes a network's input.

Shapes: B batch, C the three channels R, G, B, H and W rows and columns.
"""

import math
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from splitattn.images.crop import cropped
from splitattn.preprocessing import Preprocessing, center_crop

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# A strip longer than this many times its width, or larger than this when enlarged, is cut before,
# or a file of a few bytes would grow to gigabytes.
_LONGEST_STRIP = 100
_MOST_PIXELS = 2**27


class InputSizeWarning(UserWarning):
    """A model is evaluated at another input size than the one it was measured at."""


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """An RGB image to the uint8 pixels (3, size, size) that the network sees.

    "crop-resize" is the official ResNeSt evaluation (ECenterCrop in resnest/torch/datasets) and
    "resize-crop" torchvision's `Resize` and `CenterCrop`, pixel for pixel. A strip more than a
    hundred times as long as it is wide is cut before it is resized, which can move its pixels.
    """
    cut = _crop_resize if preprocessing.order == "crop-resize" else _resize_crop
    return torch.from_numpy(np.array(cut(image, preprocessing))).permute(2, 0, 1)


def normalize(batch_BCHW: Tensor, preprocessing: Preprocessing) -> Tensor:  # noqa: N803
    """uint8 pixels (B, 3, H, W) to float32 with the mean and deviation the network expects."""
    mean = _per_channel(preprocessing.mean, batch_BCHW.device)
    std = _per_channel(preprocessing.std, batch_BCHW.device)
    return (batch_BCHW.float() / 255 - mean) / std


@cache  # making them anew for every batch would let a GPU's queue run dry
@torch.inference_mode(False)
def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def at_size(preprocessing: Preprocessing, size: int) -> Preprocessing:
    """`preprocessing` with another input `size`, and an `InputSizeWarning` if that changes it."""
    if size == preprocessing.size:
        return preprocessing
    warnings.warn(
        f"the model was measured at input size {preprocessing.size}, not {size}; "
        "its accuracy will differ",
        InputSizeWarning,
        stacklevel=2,
    )
    resized = replace(preprocessing, size=size)
    # The official crop is a function of the size (see `center_crop`), not a fixed share.
    official = preprocessing.crop_fraction == center_crop(preprocessing.size).crop_fraction
    if official and preprocessing.order == "crop-resize":
        return replace(resized, crop_fraction=center_crop(size).crop_fraction)
    return resized


def _crop_resize(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    crop = preprocessing.crop_fraction * min(image.size)
    left, top = (round((side - crop) / 2) for side in image.size)
    right, bottom = (max(round(start + crop), start + 1) for start in (left, top))
    size = (preprocessing.size, preprocessing.size)
    return cropped(image, (left, top, right, bottom)).resize(
        size, _FILTERS[preprocessing.interpolation]
    )


def _resize_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    resized = math.floor(preprocessing.size / preprocessing.crop_fraction)
    short = min(image.size)
    longest = short * min(_LONGEST_STRIP, _MOST_PIXELS // resized**2)
    image = _center(image, min(image.width, longest), min(image.height, longest))
    size = (resized * image.width // short, resized * image.height // short)
    image = image.resize(size, _FILTERS[preprocessing.interpolation])
    return _center(image, preprocessing.size, preprocessing.size)


def _center(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return cropped(image, (left, top, left + width, top + height))
