"""Classes are drawn in colors that people can distinguish."""

from itertools import combinations

import numpy as np
from PIL import Image

from splitattn.dense.drawing import color
from splitattn.dense.mask_drawing import draw_classes


def test_each_of_a_hundred_classes_has_a_color_of_its_own() -> None:
    colors = np.array([color(index) for index in range(100)], int)
    distances = [int(np.abs(a - b).sum()) for a, b in combinations(colors, 2)]
    assert min(distances) >= 51
    assert min(int(np.abs(a - b).sum()) for a, b in combinations(colors[:20], 2)) > 80


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
