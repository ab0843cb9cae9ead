"""The evaluation preprocessing: an image becomes a network's input.

Shapes: B batch, C channels, H and W rows and columns.
"""

from math import ceil, floor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.images.crop import cropped
from splitattn.images.decode import RGB, ImageSource, Reduced, decode_planes, decode_reduced
from splitattn.images.limits import DEFAULT_LIMITS, Limits
from splitattn.preprocessing import Preprocessing, geometry

# RGB images are uint8. Images of any other number of channels are float32 from 0 to 1.
Pixels = NDArray[np.uint8 | np.float32]

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def load_pixels(
    source: ImageSource,
    preprocessing: Preprocessing,
    *,
    least_side: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    name: str | None = None,
) -> Pixels:
    """Decode, crop and resize an image according to `preprocessing`.

    Args:
        source, limits, name: see `images.decode.decode`.
        least_side: see `images.decode.decode_reduced`.

    Returns:
        Pixels (C, size, size), contiguous: uint8 for RGB, and for any other number of channels
        float32 from 0 to 1.

    Raises:
        ImageError: the image cannot be used, or has another number of channels.
    """
    white = preprocessing.white_level
    if preprocessing.channels == RGB:
        reduced = decode_reduced(source, least_side, limits=limits, name=name, white_level=white)
        return preprocess_reduced(reduced, preprocessing)
    planes = decode_planes(
        source, preprocessing.channels, limits=limits, name=name, white_level=white
    )
    return preprocess_planes(planes, preprocessing)


def preprocess_planes(
    planes_CHW: NDArray[np.float32],  # noqa: N803
    preprocessing: Preprocessing,
) -> NDArray[np.float32]:
    """Crop and resize each channel of (C, H, W) in float32, like `preprocess`.

    Returns:
        float32 (C, size, size), contiguous, from 0 to 1.
    """
    _, height, width = planes_CHW.shape
    steps = geometry(width, height, preprocessing)
    filter = _FILTERS[preprocessing.interpolation]

    def prepared(plane: NDArray[np.float32]) -> NDArray[np.float32]:
        image = cropped(Image.fromarray(plane), steps.crop).resize(steps.resized, filter)
        return np.asarray(cropped(image, steps.final_crop))

    return np.stack([prepared(plane) for plane in planes_CHW]).clip(0, 1)


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Crop and resize an RGB image according to `preprocessing`.

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

    The crop covers the same part as in the whole image, to a fraction of a pixel. If EXIF data turn
    the image and the scale does not divide its sides, it may be off by less than one reduced pixel.

    Returns:
        uint8 pixels (3, size, size), nearly those of `preprocess` for the whole image; equal if the
        image was not reduced.
    """
    if reduced.scale == 1:
        return preprocess(reduced.image, preprocessing)
    steps = geometry(*reduced.whole, preprocessing)
    left, top, right, bottom = (side / reduced.scale for side in steps.crop)
    # Crop to whole pixels first, so that the resize does not read pixels outside the crop.
    around = (floor(left), floor(top), ceil(right), ceil(bottom))
    inside = (left - around[0], top - around[1], right - around[0], bottom - around[1])
    image = cropped(reduced.image, around)
    image = image.resize(steps.resized, _FILTERS[preprocessing.interpolation], inside)
    return _pixels(cropped(image, steps.final_crop))


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def normalize(
    pixels_BCHW: Pixels,  # noqa: N803
    preprocessing: Preprocessing,
) -> NDArray[np.float32]:
    """Scale pixels (B, C, H, W) to 0..1, subtract the mean and divide by the deviation.

    uint8 pixels are divided by 255; floats are from 0 to 1 already.

    Returns:
        float32, contiguous, within 1e-6 of torchvision's `Normalize`.
    """
    std = np.array(preprocessing.std).reshape(-1, 1, 1)
    mean = np.array(preprocessing.mean).reshape(-1, 1, 1)
    white = 255 if pixels_BCHW.dtype == np.uint8 else 1
    # One multiplication and one addition are faster than two divisions and a subtraction.
    scale, shift = (1 / (white * std)).astype(np.float32), (-mean / std).astype(np.float32)
    images_BCHW = np.multiply(pixels_BCHW, scale, dtype=np.float32, order="C")  # noqa: N806
    images_BCHW += shift  # noqa: N806
    return images_BCHW
