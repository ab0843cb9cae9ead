"""PGM and PPM files with a maxval that Pillow scales pixel by pixel in Python."""

from typing import Any

import numpy as np
from PIL import Image


def needs_scaling(image: Image.Image) -> bool:
    """Whether `image`, which is not loaded yet, is such a file."""
    tiles = getattr(image, "tile", None) or [("",)]
    return bool(tiles[0][0] == "ppm")


def scaled(image: Any) -> Image.Image:
    """The pixels of `image`, as Pillow's slower decoder gives them.

    Raises:
        ValueError: the file is too short.
    """
    _, _, offset, (_, maxval) = image.tile[0]
    bands = len(image.getbands())
    stored = np.frombuffer(
        image.fp.getbuffer(),
        ">u2" if maxval > 255 else np.uint8,
        count=image.width * image.height * bands,
        offset=offset,
    ).reshape(image.height, image.width, bands)
    # With a maxval of 256 or more, gray keeps 16 bits, but colors 8.
    white, kind = (65535, np.int32) if image.mode == "I" else (255, np.uint8)
    values = np.arange(2 ** (8 * stored.itemsize)) / maxval * white
    table = np.minimum(np.rint(values), white).astype(kind)
    pixels = np.empty(stored.shape, kind)
    for target, row in zip(pixels, stored, strict=True):  # NumPy needs 8 bytes for each index
        target[...] = table[row]
    return Image.fromarray(pixels[:, :, 0] if bands == 1 else pixels)
