"""Training batches of images with masks: decoded and augmented in worker processes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from splitattn.data.loading import (
    Loader,
    Packed,
    begin_worker,
    derive_seed,
    first_readable,
    random_stream,
)
from splitattn.dense.masks import IGNORED, Mask, MaskedImages, read_masked
from splitattn.dense.resizing import Sides, resized
from splitattn.errors import DataError


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
    image: Tensor
    mask: Tensor
    problem: str


def augmented(
    image: Image.Image, mask: Mask, augmentation: MaskAugmentation
) -> tuple[Tensor, Tensor]:
    """One image (3, H, W) and its mask (H, W) as a training sees them, by torch's generator."""
    width, height = augmentation.sides.size(*image.size)
    factor = augmentation.zoom ** (2 * torch.rand(()).item() - 1)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    pixels: Any = F.to_image(resized(image, size))
    # As Pillow does it, so that pixels of image and mask lie over each other.
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
class _Items(Dataset["_Item | DataError"]):
    data: MaskedImages
    augmentation: MaskAugmentation
    seed: int
    epoch: int

    def __getitem__(self, drawn: int) -> _Item | DataError:
        found = first_readable(len(self.data), drawn, lambda index: read_masked(self.data, index))
        if isinstance(found, DataError):
            return found
        with random_stream(derive_seed(self.seed, self.epoch, drawn)):
            image, mask = augmented(*found.content, self.augmentation)
        return _Item(image=image, mask=mask, problem=found.problem)


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
    items: Dataset[Any] = _Items(data=data, augmentation=augmentation, seed=seed, epoch=epoch)
    return Loader(
        items,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=begin_worker,
        generator=torch.Generator(),
    )


def _collate(items: Iterable[_Item | DataError]) -> _Packed | DataError:
    found: list[_Item] = []
    for item in items:
        if isinstance(item, DataError):
            return item
        found.append(item)
    return _Packed(
        images=np.stack([item.image.numpy() for item in found]),
        masks=np.stack([item.mask.numpy() for item in found]),
        problems=tuple(item.problem for item in found if item.problem),
    )
