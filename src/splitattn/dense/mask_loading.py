"""Training batches of images with masks: decoded and augmented in worker processes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from splitattn.data.loading import Packed
from splitattn.dense.examples import Examples, example_loader
from splitattn.dense.masks import IGNORED, Mask, MaskedImages, read_masked
from splitattn.dense.resizing import Sides, resized
from splitattn.libraries import torchvision_imported

with torchvision_imported("loading masks"):
    from torchvision import tv_tensors
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True, kw_only=True)
class MaskAugmentation:
    """What happens to training images and their masks.

    Attributes:
        sides: how large images become; see `Sides`.
        zoom: they are scaled by a factor from 1 / zoom to zoom, on top of `sides`.
        crop: side of the square that is cut out at a random place, in pixels. Smaller images are
            padded with `fill`, and their masks with 255.
        fill: a color, from 0 to 255, which the network sees as zeros.
        color_jitter: how much brightness, contrast and saturation change, as a share.
    """

    sides: Sides
    crop: int
    fill: tuple[int, ...]
    zoom: float = 1.0
    color_jitter: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MaskBatch:
    """What a loader yields.

    Attributes:
        images: (B, 3, H, W), uint8.
        masks: (B, H, W), uint8: the class of each pixel, or 255 for none.
        problems: a line for each image that could not be read; the next readable one is in its
            place.
    """

    images: Tensor
    masks: Tensor
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Packed(Packed[MaskBatch]):
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    problems: tuple[str, ...]

    def tensors(self) -> MaskBatch:
        return MaskBatch(
            images=torch.from_numpy(self.images),
            masks=torch.from_numpy(self.masks),
            problems=self.problems,
        )


@dataclass(frozen=True, kw_only=True)
class _Item:
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


def augmented(
    image: Image.Image, mask: Mask, augmentation: MaskAugmentation
) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) and its mask (H, W), augmented by torch's global random generator."""
    width, height = augmentation.sides.size(*image.size)
    factor = augmentation.zoom ** (2 * torch.rand(()).item() - 1)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    pixels: Any = F.to_image(resized(image, size))
    # By Pillow, like the image, so that pixels of image and mask stay aligned.
    numbers = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    classes: Any = tv_tensors.Mask(torch.from_numpy(numbers))
    crop = v2.RandomCrop(
        augmentation.crop,
        pad_if_needed=True,
        fill={tv_tensors.Image: list(augmentation.fill), tv_tensors.Mask: IGNORED},
    )
    pixels, classes = v2.RandomHorizontalFlip()(*crop(pixels, classes))
    if jitter := augmentation.color_jitter:
        pixels = v2.ColorJitter(jitter, jitter, jitter)(pixels)
    return pixels.as_subclass(Tensor), classes.as_subclass(Tensor)


@dataclass(frozen=True, kw_only=True)
class _Examples(Examples[tuple[Image.Image, Mask], _Item]):
    data: MaskedImages
    augmentation: MaskAugmentation

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int) -> tuple[Image.Image, Mask]:
        return read_masked(self.data, index)

    def augmented(self, content: tuple[Image.Image, Mask]) -> _Item:
        image, mask = augmented(*content, self.augmentation)
        return _Item(image=image.numpy(), mask=mask.numpy())


def mask_loader(
    data: MaskedImages,
    augmentation: MaskAugmentation,
    *,
    batches: Iterable[list[int]],
    workers: int,
    seed: int,
    epoch: int,
) -> DataLoader[MaskBatch]:
    """The images of each of `batches`, augmented at random; see `data.loading.train_loader`."""
    examples = _Examples(data=data, augmentation=augmentation, seed=seed, epoch=epoch)
    return example_loader(examples, _pack, batches=batches, workers=workers)


def _pack(items: Sequence[_Item], problems: tuple[str, ...]) -> _Packed:
    return _Packed(
        images=np.stack([item.image for item in items]),
        masks=np.stack([item.mask for item in items]),
        problems=problems,
    )
