"""Turns the mask of a box into pixels of the image."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.dense.outlines import RunLengths, to_run_lengths

_INSIDE = 0.5


def pasted(
    mask: NDArray[np.float32], box: NDArray[np.float32], size: tuple[int, int]
) -> RunLengths:
    """The pixels of the image whose center is inside the object.

    Args:
        mask: (S, S), the probability that each of S x S equal parts of the box is the object's. It
            is interpolated between the centers of the parts, and falls to 0 beyond the outer ones.
        box: left, top, right and bottom in pixels.
        size: width and height of the image.
    """
    width, height = size
    left, top = np.floor(np.maximum(box[:2], 0)).astype(int).tolist()
    right, bottom = np.ceil(np.minimum(box[2:], size)).astype(int).tolist()
    # Only the columns of the box: whole images would take most of the time.
    slab = np.zeros((height, max(right - left, 0)), dtype=bool)
    if right > left and bottom > top:
        part = (box[2:] - box[:2]) / len(mask)
        # With a border of zeros, cut to the pixels of the image that the box covers.
        padded = Image.fromarray(np.pad(mask.astype(np.float32), 1))
        edges = np.array([left, top, right, bottom], np.float64)
        within = (edges - np.tile(box[:2], 2)) / np.tile(part, 2) + 1
        values = padded.transform(
            (right - left, bottom - top),
            Image.Transform.EXTENT,
            tuple(within.tolist()),
            Image.Resampling.BILINEAR,
        )
        slab[top:bottom] = np.asarray(values) > _INSIDE
    counts = [*to_run_lengths(slab).counts] if slab.size else [0]
    if not slab.any():
        return RunLengths(counts=(width * height,), height=height, width=width)
    counts[0] += left * height
    after = (width - right) * height
    if len(counts) % 2:
        counts[-1] += after
    elif after:
        counts.append(after)
    return RunLengths(counts=tuple(counts), height=height, width=width)
