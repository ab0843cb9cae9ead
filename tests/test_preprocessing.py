"""The arithmetic of crops, without images."""

import warnings
from dataclasses import replace

import pytest

from splitattn.preprocessing import (
    InputSizeWarning,
    Preprocessing,
    at_size,
    center_crop,
    geometry,
    least_side,
)


def test_another_input_size_than_the_models_own_warns_once() -> None:
    own = Preprocessing(size=224, crop_fraction=0.875)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        sizes = [at_size(own, 256).size for _ in range(3)]
    assert sizes == [256] * 3
    assert [warning.category for warning in caught] == [InputSizeWarning]
    assert at_size(own, 224) is own


@pytest.mark.parametrize("size", [256, 320, 416])
def test_the_official_crop_follows_the_size(size: int) -> None:
    with pytest.warns(InputSizeWarning):
        assert at_size(center_crop(224), size) == center_crop(size)


def test_another_crop_keeps_its_share_at_another_size() -> None:
    own = Preprocessing(size=224, crop_fraction=0.875, order="resize-crop")
    with pytest.warns(InputSizeWarning):
        assert at_size(own, 256).crop_fraction == 0.875


def test_the_official_crop_comes_before_the_resize() -> None:
    steps = geometry(500, 375, center_crop(224))  # the crop is 328.125 pixels a side
    assert steps.crop == (86, 23, 414, 351)
    assert steps.resized == (224, 224)
    assert steps.final_crop == (0, 0, 224, 224)


def test_the_crop_of_torchvision_comes_after_the_resize() -> None:
    preprocessing = Preprocessing(size=224, crop_fraction=0.875, order="resize-crop")
    steps = geometry(500, 375, preprocessing)
    assert steps.crop == (0, 0, 500, 375)
    assert steps.resized == (341, 256)
    assert steps.final_crop == (58, 16, 282, 240)


@pytest.mark.parametrize("order", ["crop-resize", "resize-crop"])
@pytest.mark.parametrize("size", [1, 64, 224, 225, 416])
@pytest.mark.parametrize("crop_fraction", [0.3, 0.875, 224 / 256, 0.909, 1.0])
def test_an_image_of_the_least_side_has_two_pixels_for_each_of_the_networks(
    order: str, size: int, crop_fraction: float
) -> None:
    preprocessing = Preprocessing(size=size, crop_fraction=crop_fraction, order=order)
    least = least_side(preprocessing)
    for width, height in ((least, least), (least, 3 * least + 1), (2 * least + 1, least)):
        steps = geometry(width, height, preprocessing)
        left, top, right, bottom = steps.crop
        for kept, resized in zip((right - left, bottom - top), steps.resized, strict=True):
            assert kept >= 2 * resized
    # The side is the least one: a pixel less leaves at most two for each of the network's.
    smaller = geometry(least - 1, least - 1, replace(preprocessing, order="crop-resize"))
    assert smaller.crop[2] - smaller.crop[0] <= 2 * size
