"""Classes are drawn in colors that people can distinguish."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from splitattn.dense.detector import DetectedObject
from splitattn.dense.drawing import color, draw_objects
from splitattn.dense.mask_drawing import draw_classes
from splitattn.dense.outlines import RunLengths


def test_each_of_a_hundred_classes_has_a_color_of_its_own() -> None:
    colors = np.array([color(index) for index in range(100)], int)
    distances = [int(np.abs(a - b).sum()) for a, b in combinations(colors, 2)]
    assert min(distances) >= 51
    assert min(int(np.abs(a - b).sum()) for a, b in combinations(colors[:20], 2)) > 80


@pytest.mark.parametrize("masked", [False, True])
def test_objects_of_a_small_image_are_drawn_enlarged(*, masked: bool) -> None:
    box = (10, 20, 70, 50)
    counts = (10 * 60 + 20, *[30] * (2 * 60 - 1), 10 + 30 * 60)  # of the pixels in that box
    mask = RunLengths(counts=counts, height=60, width=100) if masked else None
    found = DetectedObject(label="a", index=0, score=1.0, box=box, mask=mask)
    drawn = np.asarray(draw_objects(Image.new("RGB", (100, 60)), [found]), int)
    assert drawn.shape == (240, 400, 3)
    changed = drawn.any(2)[100:]  # below the caption, which may be above the box
    assert changed.any(1).nonzero()[0].max() == pytest.approx(4 * 50 - 100, abs=1)
    assert changed.any(0).nonzero()[0].min() == pytest.approx(4 * 10, abs=1)
    assert changed.any(0).nonzero()[0].max() == pytest.approx(4 * 70, abs=1)
    assert changed[60, 160] == masked


def test_classes_are_tinted_and_ignored_pixels_stay_as_they_are() -> None:
    image = Image.new("RGB", (400, 90), (100, 100, 100))
    found = np.zeros((90, 400), np.uint8)
    found[:, 200:] = 11
    found[:40] = 255
    drawn = np.asarray(draw_classes(image, found, [f"name {i}" for i in range(12)]), int)
    assert drawn.shape[1] == 400
    assert drawn.shape[0] > 90
    np.testing.assert_array_equal(drawn[:38], 100)
    for column, index in ((50, 0), (350, 11)):
        towards = drawn[70, column] - 100
        asked = np.array(color(index)) - 100
        assert (np.abs(towards - 0.55 * asked) <= 1).all()
    legend = drawn[90:].reshape(-1, 3)
    for index in (0, 11):
        assert (legend == color(index)).all(1).sum() >= 100
    assert not (legend == color(1)).all(1).any()
    plain = draw_classes(image, found, ["a"] * 12, legend=False)
    assert plain.size == (400, 90)
