"""The evaluation preprocessing: an RGB image becomes a network's input.

Shapes: B batch, C the three channels R, G, B, H and W rows and columns.
"""

from math import ceil, floor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.images.crop import cropped
from splitattn.images.decode import Reduced
from splitattn.preprocessing import Preprocessing, geometry

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Crop and resize an RGB image as `preprocessing` says.

    Returns:
        uint8 pixels (3, size, size), contiguous. They equal those of the official ResNeSt code
        ("crop-resize") or of torchvision ("resize-crop"); see `splitattn.preprocessing.geometry`.
    """
    steps = geometry(*image.size, preprocessing)
    image = cropped(image, steps.crop)
    image = image.resize(steps.resized, _FILTERS[preprocessing.interpolation])
    return _pixels(cropped(image, steps.final_crop))


def preprocess_reduced(reduced: Reduced, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Crop and resize an image that was decoded at reduced size.

    The crop is where it is in the whole image, to a fraction of a pixel. If EXIF data turn the
    image and the scale does not divide its sides, it may be off by less than one reduced pixel.

    Returns:
        Nearly the pixels that `preprocess` gives for the whole image, and exactly those if it was
        not reduced.
    """
    if reduced.scale == 1:
        return preprocess(reduced.image, preprocessing)
    steps = geometry(*reduced.whole, preprocessing)
    left, top, right, bottom = (side / reduced.scale for side in steps.crop)
    # Cut to whole pixels first: a resize would look at what lies beyond the crop.
    around = (floor(left), floor(top), ceil(right), ceil(bottom))
    inside = (left - around[0], top - around[1], right - around[0], bottom - around[1])
    image = cropped(reduced.image, around)
    image = image.resize(steps.resized, _FILTERS[preprocessing.interpolation], inside)
    return _pixels(cropped(image, steps.final_crop))


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def normalize(
    pixels_BCHW: NDArray[np.uint8],  # noqa: N803
    preprocessing: Preprocessing,
) -> NDArray[np.float32]:
    """Scale uint8 pixels (B, 3, H, W) to 0..1, subtract the mean and divide by the deviation.

    Returns:
        float32, contiguous, within 1e-6 of torchvision's `Normalize`.
    """
    std = np.array(preprocessing.std).reshape(3, 1, 1)
    mean = np.array(preprocessing.mean).reshape(3, 1, 1)
    # One multiplication and one addition, rather than two divisions and a subtraction.
    scale, shift = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
    images_BCHW = np.multiply(pixels_BCHW, scale, dtype=np.float32, order="C")  # noqa: N806
    images_BCHW += shift  # noqa: N806
    return images_BCHW
