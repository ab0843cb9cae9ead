"""Portable graymaps and pixmaps (PGM, PPM) whose white is another value than Pillow stores."""

from typing import Any

import numpy as np
from PIL import Image


def is_scaled_map(image: Image.Image) -> bool:
    """Whether Pillow would read `image`, which is not loaded yet, pixel by pixel in Python."""
    tiles = getattr(image, "tile", None) or [("",)]
    return bool(tiles[0][0] == "ppm")


def scaled_map(image: Any) -> Image.Image:
    """The pixels of `image`, scaled by its white, as Pillow's slower decoder gives them.

    Raises:
        ValueError: the file is too short.
    """
    _, _, offset, (_, white) = image.tile[0]
    bands = len(image.getbands())
    stored = np.frombuffer(
        image.fp.getbuffer(),
        ">u2" if white > 255 else np.uint8,
        count=image.width * image.height * bands,
        offset=offset,
    ).reshape(image.height, image.width, bands)
    # A white of 256 or more gives gray 16 bits, but colors 8.
    most, kind = (65535, np.int32) if image.mode == "I" else (255, np.uint8)
    values = np.arange(2 ** (8 * stored.itemsize)) / white * most
    scaled = np.minimum(np.rint(values), most).astype(kind)
    pixels = np.empty(stored.shape, kind)
    for target, row in zip(pixels, stored, strict=True):  # NumPy needs 8 bytes for each index
        target[...] = scaled[row]
    return Image.fromarray(pixels[:, :, 0] if bands == 1 else pixels)
