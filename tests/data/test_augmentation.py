"""Augmentation gives the images of torchvision and the official code, in the same order."""

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from splitattn.data.augmentation import Augmentation
from splitattn.data.training_transforms import (
    _EfficientNetCrop,
    _Lighting,
    training_transform,
)
from splitattn.errors import InputError
from splitattn.images.preprocess import preprocess
from splitattn.preprocessing import center_crop
from tests.data.datasets import picture

EVERYTHING = Augmentation(
    size=32,
    crop="efficientnet",
    interpolation="bicubic",
    auto_augment="imagenet",
    color_jitter=0.4,
    lighting=0.1,
    random_erasing=1.0,
)


def drawn(transform: Callable[[Image.Image], Tensor], image: Image.Image, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return transform(image)


def plain_color(value: int, size: int = 40) -> Image.Image:
    return Image.new("RGB", (size, size), (value, value, value))


def test_crop_and_flip_alone_are_those_of_torchvision() -> None:
    ours = training_transform(Augmentation(size=32, crop_scale=0.35))
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.35, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )
    for seed in range(8):
        image = picture(seed % 3, seed, size=64)
        assert torch.equal(drawn(ours, image, seed), drawn(theirs, image, seed))
        # Both draw the same amount of random numbers.
        after = torch.get_rng_state()
        drawn(theirs, image, seed)
        assert torch.equal(after, torch.get_rng_state())


def test_the_order_is_that_of_the_official_training() -> None:
    names = [type(step).__name__ for step in training_transform(EVERYTHING).transforms]  # type: ignore[attr-defined]
    assert names == [
        "ImageNetPolicies",
        "_EfficientNetCrop",
        "RandomHorizontalFlip",
        "ColorJitter",
        "PILToTensor",
        "_Lighting",
        "RandomErasing",
    ]


@pytest.mark.parametrize(
    ("policy", "name"), [("rand", "RandAugment"), ("trivial", "TrivialAugmentWide")]
)
def test_the_order_of_later_policies_is_that_of_torchvisions_reference(
    policy: Literal["rand", "trivial"], name: str
) -> None:
    transform = training_transform(Augmentation(size=32, auto_augment=policy, random_erasing=0.1))
    names = [type(step).__name__ for step in transform.transforms]  # type: ignore[attr-defined]
    assert names[:3] == ["RandomResizedCrop", "RandomHorizontalFlip", name]
    assert names[3:] == ["PILToTensor", "RandomErasing"]


@pytest.mark.parametrize(
    "augmentation",
    [
        EVERYTHING,
        Augmentation(size=24, auto_augment="rand"),
        Augmentation(size=24, auto_augment="trivial", random_erasing=0.5),
        Augmentation(size=24, lighting=0.1),
        Augmentation(size=24, color_jitter=0.4),
    ],
)
def test_augmented_images_are_bytes_and_the_same_in_a_spawned_worker(
    augmentation: Augmentation,
) -> None:
    transform = training_transform(augmentation)
    copied = pickle.loads(pickle.dumps(transform))
    plain = training_transform(Augmentation(size=augmentation.size))
    differs = False
    for seed in range(6):
        image = picture(1, seed, size=48)
        pixels = drawn(transform, image, seed)
        assert pixels.shape == (3, augmentation.size, augmentation.size)
        assert pixels.dtype == torch.uint8
        assert torch.equal(pixels, drawn(copied, image, seed))
        differs |= not torch.equal(pixels, drawn(plain, image, seed))
    assert differs


@pytest.mark.parametrize("size", [(200, 150), (150, 200), (61, 60), (37, 500)])
def test_efficientnet_crops_fit_and_keep_area_and_aspect(size: tuple[int, int]) -> None:
    crop = _EfficientNetCrop(size=32, smallest=0.1, interpolation=v2.InterpolationMode.BICUBIC)
    torch.manual_seed(0)
    boxes = {box for _ in range(200) if (box := crop._draw(*size))}
    for left, top, width, height in boxes:
        assert 0 <= left <= left + width <= size[0]
        assert 0 <= top <= top + height <= size[1]
        assert 0.1 * size[0] * size[1] <= width * height < size[0] * size[1]
        assert 3 / 4 * height - 0.5 <= width <= 4 / 3 * height + 0.5
    assert len(boxes) > 20 or size == (37, 500)  # a strip is too narrow for any crop of enough area
    corners = {(left, top) for left, top, _, _ in boxes}
    assert not boxes or len(corners) > 15


def test_efficientnet_crops_are_uniform_in_height_not_in_area() -> None:
    crop = _EfficientNetCrop(size=32, smallest=0.1, interpolation=v2.InterpolationMode.BICUBIC)
    torch.manual_seed(0)
    heights = np.array([box[3] for _ in range(2000) if (box := crop._draw(1000, 1000))])
    aspect = np.linspace(3 / 4, 4 / 3, 1001)
    expected = ((np.sqrt(0.1 / aspect) + np.minimum(1, 1 / aspect)) / 2).mean() * 1000
    # Within five standard errors; crops uniform in area would be 55 pixels taller.
    assert abs(heights.mean() - expected) < 5 * heights.std() / math.sqrt(len(heights))


@pytest.mark.parametrize("size", [(37, 500), (400, 20), (1, 1), (1, 60)])
def test_images_in_which_no_efficientnet_crop_fits_get_the_test_crop(
    size: tuple[int, int],
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    crop = _EfficientNetCrop(size=32, smallest=0.1, interpolation=v2.InterpolationMode.BICUBIC)
    expected = preprocess(image, center_crop(32))
    np.testing.assert_array_equal(v2.functional.pil_to_tensor(crop(image)), expected)


def test_lighting_follows_the_principal_axes_of_color() -> None:
    lighting, gray = _Lighting(deviation=0.1), torch.full((3, 1, 1), 128, dtype=torch.uint8)
    torch.manual_seed(0)
    shifts = torch.stack([lighting(gray).flatten() for _ in range(1500)]).double() - 128
    axes = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    # Standard deviations in pixel values; rounding adds a variance of 1/12.
    expected = axes @ np.diag([5.546**2, 0.4794**2, 0.1148**2]) @ axes.T + np.eye(3) / 12
    assert np.allclose(np.cov(shifts.T.numpy()), expected, rtol=0.12)
    assert abs(shifts.mean().item()) < 0.4


@pytest.mark.parametrize("value", [0, 255])
def test_lighting_does_not_wrap_around(value: int) -> None:
    transform = training_transform(Augmentation(size=4, lighting=1.0))
    torch.manual_seed(0)
    pixels = torch.stack([transform(plain_color(value)) for _ in range(50)]).double()
    # Half of the shifts are clipped; the others have a standard deviation of 32.
    assert (pixels == value).double().mean() > 0.2
    assert (pixels - value).abs().max() < 150


def test_color_jitter_varies_brightness_and_leaves_grey_grey() -> None:
    transform = training_transform(Augmentation(size=8, color_jitter=0.4))
    torch.manual_seed(0)
    pixels = torch.stack([transform(plain_color(100)) for _ in range(60)]).double()
    assert torch.equal(pixels[:, 0], pixels[:, 1])
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert 58 <= pixels.min() < 75
    assert 125 < pixels.max() <= 142


def test_erasing_paints_a_rectangle_in_the_mean_color() -> None:
    imagenet = Augmentation(size=32, random_erasing=1.0)
    other = replace(imagenet, mean=(0.2, 0.4, 0.6))
    for seed in range(6):
        augmentation, color = [(imagenet, [124, 116, 104]), (other, [51, 102, 153])][seed % 2]
        pixels = drawn(training_transform(augmentation), plain_color(0), seed)
        erased = pixels.bool().any(0)
        assert 0.01 < erased.double().mean() < 0.36
        assert (pixels[:, erased] == torch.tensor(color)[:, None]).all()
        rows, columns = erased.any(1), erased.any(0)
        assert int(erased.sum()) == int(rows.sum() * columns.sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"crop_scale": 0.0}, "crop_scale must be above 0, at most 1, got 0.0"),
        ({"crop": "square"}, "crop must be a known kind, got 'square'"),
        ({"random_erasing": 1.5}, "random_erasing must be from 0 to 1, got 1.5"),
        ({"lighting": float("nan")}, "lighting must be from 0 to 1, got nan"),
    ],
)
def test_impossible_values_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(EVERYTHING, **change)  # type: ignore[arg-type]
