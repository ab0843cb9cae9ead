"""RISE finds what a network looks at, and nothing if it looks nowhere."""

import numpy as np

from splitattn.engines.engine import Engine, Images, Logits, softmax
from splitattn.explanation.rise import rise


class CornerEngine(Engine):
    """An engine whose logit of class 1 is the brightness of the upper left corner."""

    def _infer(self, images_BCHW: Images) -> Logits:
        bright = images_BCHW[:, :, :16, :16].mean((1, 2, 3))
        return np.stack([np.zeros_like(bright), 4 * bright], 1)


def test_rise_finds_the_only_region_that_matters() -> None:
    images = np.ones((1, 3, 48, 48), np.float32)
    found = rise(CornerEngine("corner"), images, 1, softmax)
    row, column = np.unravel_index(found.map.argmax(), found.map.shape)
    assert row < 16 > column
    assert found.map.max() > 2 * found.least
    assert np.abs(found.map[24:, 24:]).max() < found.least
    again = rise(CornerEngine("corner"), images, 1, softmax)
    np.testing.assert_array_equal(found.map, again.map)


def test_rise_of_a_network_that_looks_nowhere_is_empty() -> None:
    # Images of the mean color, which masks do not change.
    images = np.zeros((1, 3, 48, 48), np.float32)
    found = rise(CornerEngine("corner"), images, 1, softmax)
    assert np.abs(found.map).max() < 1e-6
