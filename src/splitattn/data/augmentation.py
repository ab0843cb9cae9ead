"""Settings of the training crops and colors; `training_transforms` carries them out."""

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
