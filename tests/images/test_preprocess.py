import io
import math
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

from splitattn.data import normalization
from splitattn.images.decode import decode, decode_reduced
from splitattn.images.preprocess import normalize, preprocess, preprocess_reduced
from splitattn.preprocessing import Preprocessing, least_side

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


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


def official(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """The official evaluation: ECenterCrop, then a resize."""
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
    assert (actual.dtype, actual.shape) == (np.uint8, (3, size, size))
    assert actual.flags.c_contiguous
    np.testing.assert_array_equal(actual, expected)


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
        np.testing.assert_array_equal(actual, pixels(chain(IMAGES[name])))
    whole = create_transform(size, interpolation=interpolation, crop_pct=crop_fraction)
    np.testing.assert_allclose(
        normalize(actual[None], preprocessing)[0], whole(IMAGES[name]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("order", ["crop-resize", "resize-crop"])
def test_a_long_strip_does_not_grow_to_gigabytes(order: str) -> None:
    strip = Image.new("RGB", (2_000_000, 1), "red")
    preprocessing = Preprocessing(size=64, crop_fraction=1.0, order=order)
    expected = np.broadcast_to(np.array([255, 0, 0]).reshape(3, 1, 1), (3, 64, 64))
    np.testing.assert_array_equal(preprocess(strip, preprocessing), expected)


@pytest.mark.parametrize("order", ["crop-resize", "resize-crop"])
def test_pillow_does_not_warn_of_images_within_our_limits(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    preprocess(IMAGES["odd"], Preprocessing(size=64, crop_fraction=0.875, order=order))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("order", ["crop-resize", "resize-crop"])
@pytest.mark.parametrize(("size", "side"), [(64, 1000), (64, 999), (96, 1203), (224, 1100)])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_reduced_photograph_gives_nearly_the_pixels_of_the_whole_one(
    name: str, order: str, size: int, side: int, orientation: int
) -> None:
    """A crop that is off by half a pixel of the reduced photograph changes some pixels by 100."""
    photograph = PHOTOGRAPHS[name]
    scale = side / min(photograph.size)
    large = photograph.resize((round(photograph.width * scale), round(photograph.height * scale)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    large.save(stream, "JPEG", quality=95, exif=exif)
    preprocessing = Preprocessing(size=size, crop_fraction=0.875, order=order)
    reduced = decode_reduced(stream.getvalue(), least_side(preprocessing))
    assert reduced.scale > 1
    exact = preprocess(decode(stream.getvalue()), preprocessing)
    fast = preprocess_reduced(reduced, preprocessing)
    assert (fast.dtype, fast.shape) == (np.uint8, (3, size, size))
    assert fast.flags.c_contiguous
    difference = np.abs(np.subtract(exact, fast, dtype=int))
    if orientation == 1 or not any(length % reduced.scale for length in large.size):
        assert difference.max() <= 20
        assert difference.mean() < 0.6
    else:  # the rotation moved the incomplete last pixel to the front, which shifts all pixels
        assert difference.max() <= 48
        assert difference.mean() < 4


def test_a_photograph_that_was_not_reduced_gives_its_own_pixels() -> None:
    preprocessing = Preprocessing(size=64, crop_fraction=0.875)
    reduced = decode_reduced(np.asarray(PHOTOGRAPHS["coffee"]), 1)
    expected = preprocess(PHOTOGRAPHS["coffee"], preprocessing)
    np.testing.assert_array_equal(preprocess_reduced(reduced, preprocessing), expected)


EVERY_VALUE = np.arange(256, dtype=np.uint8).repeat(6).reshape(256, 3, 1, 2)
CONTRACTS = (
    Preprocessing(size=8, crop_fraction=1.0),
    Preprocessing(size=8, crop_fraction=1.0, mean=(0.5, 0.0, 1.0), std=(0.5, 1.0, 0.2)),
)


@pytest.mark.parametrize("preprocessing", CONTRACTS)
def test_normalize_is_that_of_torchvision(preprocessing: Preprocessing) -> None:
    expected = v2.functional.normalize(
        torch.from_numpy(EVERY_VALUE).float() / 255, preprocessing.mean, preprocessing.std
    )
    actual = normalize(EVERY_VALUE, preprocessing)
    assert (actual.dtype, actual.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_allclose(actual, expected, atol=1e-6, rtol=0)
    on_a_device = normalization.normalize(torch.from_numpy(EVERY_VALUE), preprocessing)
    torch.testing.assert_close(on_a_device, expected, atol=1e-6, rtol=0)


def test_normalize_gives_contiguous_arrays_for_pixels_in_any_order() -> None:
    """Engines would copy or misread arrays that are not contiguous."""
    rows_last = np.ascontiguousarray(EVERY_VALUE.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not rows_last.flags.c_contiguous
    actual = normalize(rows_last, CONTRACTS[0])
    assert actual.flags.c_contiguous
    np.testing.assert_array_equal(actual, normalize(EVERY_VALUE, CONTRACTS[0]))


@pytest.mark.parametrize("length", [1_000, 100_000])
def test_a_strip_is_cut_so_that_resizing_stays_within_a_limit(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strip 100 times as long as wide is cut before it is enlarged, if it would be too large."""
    monkeypatch.setattr("splitattn.preprocessing._MOST_PIXELS", 40 * 100**2)
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
