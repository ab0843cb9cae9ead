"""Runs a segmenter on one image, with classes of the image's own pixels. Needs no PyTorch."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.dense.class_maps import class_map
from splitattn.dense.masks import Mask
from splitattn.dense.resizing import Sides, pixels_of
from splitattn.engines.engine import NOT_FINITE
from splitattn.errors import ImageError
from splitattn.images.decode import Reduced, as_reduced
from splitattn.images.preprocess import normalize
from splitattn.preprocessing import Preprocessing

# From normalized images (B, 3, H, W) to logits (B, C, h, w) of a smaller size.
Logits = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def segment(
    network: Logits, image: Image.Image | Reduced, sides: Sides, preprocessing: Preprocessing
) -> Mask:
    """The class of every pixel of the whole image, (H, W).

    Args:
        network: in evaluation mode, see `torch_logits`.
        image: RGB, upright.
        sides: of the network's images.
        preprocessing: gives mean and deviation.

    Raises:
        ImageError: the network gives no finite numbers.
    """
    return class_map(logits_of(network, image, sides, preprocessing), as_reduced(image).whole)


def logits_of(
    network: Logits, image: Image.Image | Reduced, sides: Sides, preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """The network's logits for an image, (C, h, w). For the arguments see `segment`.

    Raises:
        ImageError: the network gives no finite numbers.
    """
    pixels = pixels_of(as_reduced(image), sides)
    logits = network(normalize(pixels.transpose(2, 0, 1)[None], preprocessing))
    if not np.isfinite(logits).all():
        raise ImageError(NOT_FINITE)
    return np.ascontiguousarray(logits[0])
