"""How an image becomes a network's input: the contract that each model's weights come with."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from splitattn.errors import InputError

# Far above what any network takes; a file that asks for more would take all memory instead.
_LARGEST_SIZE = 4096
_LARGEST_RESIZED = 2 * _LARGEST_SIZE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the network's input when it is evaluated: a contract of each model.

    Attributes:
        size: side of the square input, in pixels.
        crop_fraction: side of the central crop, as a share of the image's shorter side.
        interpolation: filter of the (antialiased) resize.
        order: "crop-resize" cuts the crop out of the original and resizes it to `size` (official
            ResNeSt); "resize-crop" resizes the shorter side to `size / crop_fraction` and cuts
            `size` out of that (torchvision, timm, GluonCV).
        mean, std: per RGB channel, of values scaled to 0..1.

    Raises:
        InputError: a field is outside its range.
    """

    size: int
    crop_fraction: float
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    order: Literal["crop-resize", "resize-crop"] = "crop-resize"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not 1 <= self.size <= _LARGEST_SIZE:
            raise InputError(f"preprocessing size must be 1 to {_LARGEST_SIZE}, got {self.size}")
        if not 0 < self.crop_fraction <= 1:
            raise InputError(
                f"crop_fraction must be above 0 and at most 1, got {self.crop_fraction}"
            )
        if self.size / self.crop_fraction > _LARGEST_RESIZED:
            raise InputError(
                f"size / crop_fraction must be at most {_LARGEST_RESIZED}, "
                f"got {self.size} / {self.crop_fraction:g}"
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise InputError(
                f"interpolation must be 'bilinear' or 'bicubic', got {self.interpolation!r}"
            )
        if self.order not in ("crop-resize", "resize-crop"):
            raise InputError(f"order must be 'crop-resize' or 'resize-crop', got {self.order!r}")
        if (
            len(self.mean) != 3
            or len(self.std) != 3
            or not all(-inf < value < inf for value in self.mean)
            or not all(0 < value < inf for value in self.std)
        ):
            raise InputError(
                "mean and std must be three numbers each and std positive, "
                f"got {self.mean} and {self.std}"
            )


def center_crop(size: int) -> Preprocessing:
    """The official test crop: size / (size + 32) of the shorter side, resized bicubically.

    Source: `ECenterCrop` of the official code, which its `verify.py` uses for every size.
    """
    return Preprocessing(size=size, crop_fraction=size / (size + 32))
