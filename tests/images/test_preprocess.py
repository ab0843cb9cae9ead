import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms as v1
from torchvision.transforms import v2

from splitattn.images.preprocess import InputSizeWarning, at_size, normalize, preprocess
from splitattn.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, center_crop

PHOTOGRAPHS = {
    name: Image.fromarray(getattr(skimage.data, name)())
    for name in ("chelsea", "coffee", "astronaut", "rocket")
}
IMAGES = PHOTOGRAPHS | {
    "odd": PHOTOGRAPHS["coffee"].resize((333, 517)),
    "tall": PHOTOGRAPHS["rocket"].resize((31, 977)),
    "smaller than the crop": PHOTOGRAPHS["astronaut"].resize((45, 60)),
    "one pixel": PHOTOGRAPHS["astronaut"].resize((1, 1)),
}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def official(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """ECenterCrop as the paper's authors describe it, then a resize."""
    width, height = image.size
    crop = size / (size + 32) * min(width, height)
    left, top = round((width - crop) / 2.0), round((height - crop) / 2.0)
    return image.crop((left, top, left + crop, top + crop)).resize((size, size), resample)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("size", [64, 224, 256, 320, 416])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_crop_resize_is_the_official_evaluation(name: str, size: int, interpolation: str) -> None:
    preprocessing = Preprocessing(
        size=size, crop_fraction=size / (size + 32), interpolation=interpolation
    )
    expected = pixels(official(IMAGES[name], size, FILTERS[interpolation]))
    actual = preprocess(IMAGES[name], preprocessing)
    assert (actual.dtype, actual.shape) == (torch.uint8, (3, size, size))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize(
    ("size", "crop_fraction", "interpolation"),
    [
        (224, 0.875, "bilinear"),
        (256, 0.875, "bilinear"),
        (320, 0.909, "bicubic"),
        (416, 0.928, "bicubic"),
        (64, 1.0, "bicubic"),
    ],
)
def test_resize_crop_is_that_of_torchvision_and_timm(
    name: str, size: int, crop_fraction: float, interpolation: str
) -> None:
    preprocessing = Preprocessing(
        size=size, crop_fraction=crop_fraction, interpolation=interpolation, order="resize-crop"
    )
    actual = preprocess(IMAGES[name], preprocessing)
    resized = math.floor(size / crop_fraction)
    for transforms in (v1, v2):
        mode = transforms.InterpolationMode(interpolation)
        chain = transforms.Compose(
            [transforms.Resize(resized, interpolation=mode), transforms.CenterCrop(size)]
        )
        assert torch.equal(actual, pixels(chain(IMAGES[name])))
    whole = create_transform(size, interpolation=interpolation, crop_pct=crop_fraction)
    torch.testing.assert_close(
        normalize(actual[None], preprocessing)[0], whole(IMAGES[name]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("order", ["crop-resize", "resize-crop"])
def test_a_long_strip_does_not_grow_to_gigabytes(order: str) -> None:
    strip = Image.new("RGB", (2_000_000, 1), "red")
    preprocessing = Preprocessing(size=64, crop_fraction=1.0, order=order)
    expected = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 64, 64)
    assert torch.equal(preprocess(strip, preprocessing), expected)


@pytest.mark.parametrize("order", ["crop-resize", "resize-crop"])
def test_pillow_does_not_warn_of_images_that_were_let_pass(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    preprocess(IMAGES["odd"], Preprocessing(size=64, crop_fraction=0.875, order=order))


def test_normalize_is_that_of_torchvision() -> None:
    batch = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = v2.functional.normalize(batch.float() / 255, IMAGENET_MEAN, IMAGENET_STD)
    actual = normalize(batch, Preprocessing(size=8, crop_fraction=1.0))
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


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


@pytest.mark.parametrize("length", [1_000, 100_000])
def test_a_strip_is_cut_the_shorter_the_larger_it_becomes(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 times as long as wide; of that, one that would be enlarged to gigabytes leaves less."""
    monkeypatch.setattr("splitattn.images.preprocess._MOST_PIXELS", 40 * 100**2)
    strip = Image.new("RGB", (length, length // 100))
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *arguments: Any) -> Image.Image:
        sizes.append(size)
        return resize(image, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", watched)
    preprocessing = Preprocessing(size=100, crop_fraction=1.0, order="resize-crop")
    assert preprocess(strip, preprocessing).shape == (3, 100, 100)
    assert sizes == [(4000, 100)]
    assert preprocess(strip, replace(preprocessing, size=10)).shape == (3, 10, 10)
    assert sizes[1] == (1000, 10)
