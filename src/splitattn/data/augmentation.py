"""Settings of the random crops and colors in training; `training_transforms` applies them."""

from dataclasses import dataclass
from typing import Literal, get_args

from splitattn.errors import InputError
from splitattn.images.decode import RGB
from splitattn.preprocessing import IMAGENET_MEAN

Crop = Literal["random-resized", "efficientnet"]
Interpolation = Literal["bilinear", "bicubic"]
AutoAugment = Literal["none", "imagenet", "rand", "trivial"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are randomly augmented, besides the horizontal flip.

    Attributes:
        size: side of the network's input, in pixels.
        crop_scale: smallest share of the image's area that a crop covers.
        crop: "random-resized" draws the crop's area and aspect ratio (torchvision), "efficientnet"
            its height and aspect ratio (`ERandomCrop` of the official code).
        interpolation: filter of the (antialiased) resize from the crop to `size`.
        auto_augment: "imagenet" is AutoAugment for ImageNet with the official code's values, before
            the crop; "rand" and "trivial" are torchvision's RandAugment and TrivialAugment, after
            it.
        color_jitter: largest change of brightness, contrast and saturation from 1.
        lighting: standard deviation of AlexNet's noise along the principal axes of color.
        random_erasing: probability that a rectangle is filled with `mean`.
        mean: the color that normalization maps to 0: a value from 0 to 1 for each channel.

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
        if channels != RGB:  # color operations need RGB
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
