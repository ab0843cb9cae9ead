"""Training crops and colors: how an image becomes another one of the same class.

Shapes: C channels, H and W rows and columns.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from splitattn.data.auto_augment import ImageNetPolicies
from splitattn.errors import InputError
from splitattn.images.decode import RGB
from splitattn.preprocessing import IMAGENET_MEAN, center_crop

Crop = Literal["random-resized", "efficientnet"]
Interpolation = Literal["bilinear", "bicubic"]
AutoAugment = Literal["none", "imagenet", "rand", "trivial"]

_TORCHVISION_POLICIES = {"rand": v2.RandAugment, "trivial": v2.TrivialAugmentWide}

# Deviations of ImageNet's pixels along their principal axes, in 0..255 units, and those axes as
# columns, with rows R, G, B (AlexNet, section 4.1; the values that every later code hands on).
_EIGENVALUES = (55.46, 4.794, 1.148)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What happens to a training image at random, besides the flip that always does.

    Attributes:
        size: side of the crop, in pixels.
        crop_scale: smallest share of the image's area that a crop covers.
        crop: "random-resized" draws the crop's area and aspect (torchvision), "efficientnet" its
            height and aspect (`ERandomCrop` of the official code).
        interpolation: filter of the (antialiased) resize from the crop to `size`.
        auto_augment: "imagenet" is AutoAugment for ImageNet with the official code's values, before
            the crop; "rand" and "trivial" are torchvision's RandAugment and TrivialAugment, after
            it.
        color_jitter: by how much brightness, contrast and saturation vary about 1.
        lighting: deviation of AlexNet's noise along the principal axes of color.
        random_erasing: probability that a rectangle is painted over with `mean`.
        mean: color that the network takes for 0: a value of each channel from 0 to 1.

    Raises:
        InputError: a field is outside its range.
    """

    size: int
    crop_scale: float = 0.08
    crop: Crop = "random-resized"
    interpolation: Interpolation = "bilinear"
    auto_augment: AutoAugment = "none"
    color_jitter: float = 0.0
    lighting: float = 0.0
    random_erasing: float = 0.0
    mean: tuple[float, ...] = IMAGENET_MEAN

    def __post_init__(self) -> None:
        rules = {
            "size": (self.size >= 1, "at least 1"),
            "crop_scale": (0 < self.crop_scale <= 1, "above 0, at most 1"),
            "crop": (self.crop in get_args(Crop), "a known kind"),
            "interpolation": (self.interpolation in get_args(Interpolation), "a known filter"),
            "auto_augment": (self.auto_augment in get_args(AutoAugment), "a known policy"),
            "color_jitter": (0 <= self.color_jitter <= 1, "from 0 to 1"),
            "lighting": (0 <= self.lighting <= 1, "from 0 to 1"),
            "random_erasing": (0 <= self.random_erasing <= 1, "from 0 to 1"),
        }
        channels = len(self.mean)
        if channels != RGB:  # gray has no hue and no saturation
            policies = ("none", "rand", "trivial") if channels == 1 else ("none",)
            allowed = " or ".join(policies)
            rules |= {
                "auto_augment": (
                    self.auto_augment in policies,
                    f"{allowed} for {channels} channels",
                ),
                "color_jitter": (
                    channels == 1 or not self.color_jitter,
                    f"0 for {channels} channels",
                ),
                "lighting": (not self.lighting, f"0 for {channels} channels"),
            }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(
                    f"augmentation: {name} must be {rule}, got {getattr(self, name)!r}"
                )


def training_transform(augmentation: Augmentation) -> Callable[[Image.Image | Tensor], Tensor]:
    """A training image, drawn from torch's CPU generator.

    An RGB image becomes uint8 pixels (3, size, size). Of other channels, floats (C, H, W) from 0 to
    1 become floats (C, size, size).

    Crop, flip, colors and lighting follow each other as in the official training; erasing comes
    last. AutoAugment's policies come first, as there. RandAugment and TrivialAugment follow the
    flip, as in torchvision's reference: on fewer pixels, they cost less. What is switched off costs
    nothing and draws nothing. The result can be pickled.
    """
    interpolation = v2.InterpolationMode(augmentation.interpolation)
    rgb = len(augmentation.mean) == RGB
    steps: list[Callable[[Any], Any]] = []
    if augmentation.auto_augment == "imagenet":
        steps.append(ImageNetPolicies())
    if augmentation.crop == "efficientnet":
        steps.append(
            _EfficientNetCrop(
                size=augmentation.size,
                smallest=augmentation.crop_scale,
                interpolation=interpolation,
            )
        )
    else:
        scale = (augmentation.crop_scale, 1.0)
        steps.append(
            v2.RandomResizedCrop(augmentation.size, scale=scale, interpolation=interpolation)
        )
    steps.append(v2.RandomHorizontalFlip())
    if policy := _TORCHVISION_POLICIES.get(augmentation.auto_augment):
        steps.append(policy(interpolation=v2.InterpolationMode.BILINEAR))
    if strength := augmentation.color_jitter:
        steps.append(v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength))
    steps.append(v2.PILToTensor())
    if augmentation.lighting:
        steps.append(_Lighting(deviation=augmentation.lighting))
    if augmentation.random_erasing:
        mean = list(augmentation.mean)
        if rgb:
            mean = [round(255 * value) for value in mean]
        steps.append(v2.RandomErasing(p=augmentation.random_erasing, value=mean))
    if not rgb:
        steps.append(_clipped)  # the filters of a resize overshoot
    transform: Callable[[Image.Image | Tensor], Tensor] = v2.Compose(steps)
    return transform


def _clipped(image: Tensor) -> Tensor:
    return image.clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class _EfficientNetCrop:
    """A crop of random aspect and height, resized to (size, size).

    Source: `ERandomCrop` in resnest/gluon/transforms.py. The aspect, width by height, is uniform
    in 3/4..4/3, and the height uniform between that of a crop with the `smallest` share of the
    area and that of the largest crop that fits.
    """

    size: int
    smallest: float
    interpolation: v2.InterpolationMode

    def __call__(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        image_height, image_width = v2.functional.get_size(image)
        size = (image_width, image_height)
        left, top, width, height = self._draw(*size) or self._center(*size)
        crop: Image.Image | Tensor = v2.functional.resized_crop(
            image, top, left, height, width, [self.size, self.size], self.interpolation
        )
        return crop

    def _draw(self, image_width: int, image_height: int) -> tuple[int, int, int, int] | None:
        """Left, top, width and height; None if no crop is found, or one that cuts nothing off."""
        smallest = self.smallest * image_width * image_height
        for _ in range(10):
            aspect, share, x, y = torch.rand(4).tolist()
            aspect = 3 / 4 + aspect * (4 / 3 - 3 / 4)
            high = min(image_height, math.floor(image_width / aspect))
            low = min(round(math.sqrt(smallest / aspect)), high)
            height = round(low + share * (high - low))
            width = round(height * aspect)
            if width * height < smallest:
                continue
            if (width, height) == (image_width, image_height):
                return None
            left, top = int(x * (image_width - width + 1)), int(y * (image_height - height + 1))
            return left, top, width, height
        return None

    def _center(self, image_width: int, image_height: int) -> tuple[int, int, int, int]:
        """The official test crop: left, top, width and height."""
        side = center_crop(self.size).crop_fraction * min(image_width, image_height)
        left, top = round((image_width - side) / 2), round((image_height - side) / 2)
        return left, top, max(round(left + side) - left, 1), max(round(top + side) - top, 1)


@dataclass(frozen=True, kw_only=True)
class _Lighting:
    """One shift of color for all pixels, drawn along the principal axes (AlexNet, section 4.1)."""

    deviation: float

    def __call__(self, image: Tensor) -> Tensor:
        """Pixels (3, H, W), uint8, to the same."""
        lengths = self.deviation * torch.tensor(_EIGENVALUES) * torch.randn(3)
        shift = torch.tensor(_EIGENVECTORS) @ lengths
        return (image + shift.view(3, 1, 1)).round().clamp(0, 255).to(torch.uint8)
