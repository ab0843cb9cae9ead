"""Detectors and segmenters get nearly the same pixels of images decoded at reduced size."""

import io

import numpy as np
import pytest
from PIL import Image

from splitattn.dense.resizing import Sides, decode_for, pixels_of
from splitattn.images.samples import sample_photographs

SIDES = Sides(short=64, long=96)


@pytest.mark.parametrize("orientation", [1, 6, 8])
@pytest.mark.parametrize("size", [(1203, 901), (1000, 800), (700, 2100)])
def test_a_reduced_photograph_looks_like_the_whole(size: tuple[int, int], orientation: int) -> None:
    image = Image.open(sample_photographs()[2]).resize(size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, exif=exif)
    content = stream.getvalue()
    whole, reduced = (decode_for(content, SIDES, decoding) for decoding in ("exact", "fast"))
    assert (whole.scale, reduced.scale) == (1, 4)
    assert whole.whole == reduced.whole == (size if orientation == 1 else size[::-1])
    expected, seen = pixels_of(whole, SIDES), pixels_of(reduced, SIDES)
    assert expected.shape == seen.shape
    differences = np.abs(seen.astype(int) - expected)
    # If it is rotated and 4 does not divide its sides, it may be off by a part of a pixel.
    divided = orientation == 1 or not any(side % 4 for side in size)
    assert differences.mean() < (1 if divided else 2.5)
    moved = np.abs(seen[:, 1:].astype(int) - expected[:, :-1])
    assert moved.mean() > 4, "if a shift of one pixel changed little, the test could not fail"
