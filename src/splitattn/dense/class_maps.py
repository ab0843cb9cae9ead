"""Class maps: the class of every pixel, from a network's logits."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.dense.masks import Mask


def class_map(logits_CHW: NDArray[np.float32], size: tuple[int, int]) -> Mask:  # noqa: N803
    """The class of every pixel of an image, (H, W): the one with the largest logit.

    Args:
        logits_CHW: of one image, at any size; they are enlarged bilinearly.
        size: width and height of the image.
    """
    # Class by class: all logits of a large image at once would need gigabytes.
    best, *others = (
        np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))
        for plane in logits_CHW
    )
    found = np.zeros(best.shape, dtype=np.uint8)
    for number, values in enumerate(others, start=1):
        found[values > best] = number
        best = np.maximum(best, values)
    return found
