"""AutoAugment's policies for ImageNet, with the values that ResNeSt was trained with."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance, ImageOps

# An operation, the probability that it is applied, and its value.
_Operation = tuple[str, float, float]

# The 25 policies of AutoAugment for ImageNet (arXiv 1805.09501, table 9). The paper gives each
# operation a level from 0 to 10. Here are the values to which the official code
# (resnest/transforms.py) converts them: bits of posterize, degrees of rotate, threshold of
# solarize, factor of color, contrast and sharpness, slope of shear. Other operations have no value.
IMAGENET_POLICIES: tuple[tuple[_Operation, _Operation], ...] = (
    (("posterize", 0.4, 1), ("rotate", 0.6, 27)),
    (("solarize", 0.6, 128), ("autocontrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 2), ("posterize", 0.6, 2)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 154)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 24)),
    (("solarize", 0.6, 180), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 2), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 9), ("solarize", 0.6, 52)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 2)),
    (("rotate", 0.8, 24), ("color", 0.4, 0.1)),
    (("rotate", 0.4, 27), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 0.82), ("contrast", 1.0, 1.54)),
    (("rotate", 0.8, 24), ("color", 1.0, 0.1)),
    (("color", 0.8, 1.54), ("solarize", 0.8, 77)),
    (("sharpness", 0.4, 1.36), ("invert", 0.6, 0)),
    (("shear", 0.6, 0.15), ("equalize", 1.0, 0)),
    (("color", 0.4, 0.1), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 154)),
    (("solarize", 0.6, 128), ("autocontrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 0.82), ("contrast", 1.0, 1.54)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)


def _shear(image: Image.Image, slope: float) -> Image.Image:
    coefficients = (1, slope, 0, 0, 1, 0)
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )


_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "rotate": lambda image, degrees: image.rotate(degrees),
    "solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "shear": _shear,
}
# The sign of these values is random.
_SIGNED = ("rotate", "shear")


@dataclass(frozen=True)
class ImageNetPolicies:
    """One of `IMAGENET_POLICIES`, drawn from torch's CPU generator, applied to an RGB image."""

    def __call__(self, image: Image.Image) -> Image.Image:
        policy = IMAGENET_POLICIES[int(torch.randint(len(IMAGENET_POLICIES), ()))]
        for name, probability, value in policy:
            chance, coin = torch.rand(2).tolist()
            if chance < probability:
                signed = -value if name in _SIGNED and coin < 0.5 else value
                image = _OPERATIONS[name](image, signed)
        return image
