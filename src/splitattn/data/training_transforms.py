"""Random crops, flips and colors for training images.

Shapes: C channels, H and W rows and columns.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from splitattn.data.augmentation import Augmentation
from splitattn.data.auto_augment import ImageNetPolicies
from splitattn.images.decode import RGB
from splitattn.libraries import torchvision_imported
from splitattn.preprocessing import center_crop

with torchvision_imported("training"):
    from torchvision.transforms import v2

_TORCHVISION_POLICIES = {"rand": v2.RandAugment, "trivial": v2.TrivialAugmentWide}

# Standard deviations of ImageNet's pixels along their principal axes, in units of 0..255, and these
# axes as columns, with rows R, G, B (AlexNet, section 4.1).
_EIGENVALUES = (55.46, 4.794, 1.148)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def training_transform(augmentation: Augmentation) -> Callable[[Image.Image | Tensor], Tensor]:
    """A function that augments an image at random, with torch's CPU generator.

    An RGB image becomes uint8 pixels (3, size, size). Images of other channels, float32 (C, H, W)
    from 0 to 1, become float32 (C, size, size).

    AutoAugment, crop, flip, colors and lighting follow in the order of the official training;
    erasing comes last. RandAugment and TrivialAugment come after the flip, as in torchvision's
    reference, where they process fewer pixels. Steps that are switched off draw no random numbers.
    The function can be pickled.
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
        steps.append(_clipped)  # a resize may overshoot
    transform: Callable[[Image.Image | Tensor], Tensor] = v2.Compose(steps)
    return transform


def _clipped(image: Tensor) -> Tensor:
    return image.clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class _EfficientNetCrop:
    """A crop of random aspect and height, resized to (size, size).

    Source: `ERandomCrop` in resnest/gluon/transforms.py. The aspect ratio, width by height, is
    uniform in 3/4..4/3. The height is uniform between that of a crop with the `smallest` share of
    the area and that of the largest crop that fits.
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
        """Left, top, width and height; None if no crop is found, or if it is the whole image."""
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
        """Map uint8 pixels (3, H, W) to uint8 pixels (3, H, W)."""
        lengths = self.deviation * torch.tensor(_EIGENVALUES) * torch.randn(3)
        shift = torch.tensor(_EIGENVECTORS) @ lengths
        return (image + shift.view(3, 1, 1)).round().clamp(0, 255).to(torch.uint8)
