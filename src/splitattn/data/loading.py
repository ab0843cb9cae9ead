"""Labelled images become batches: decoded in workers, carried as bytes, normalised by the user."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from splitattn.data.sources import LabelledImages
from splitattn.errors import ImageError
from splitattn.images.decode import decode
from splitattn.images.preprocess import preprocess
from splitattn.weights.catalogue import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a loader yields.

    Attributes:
        images: (B, 3, H, W), uint8.
        labels: (B,), int64.
        problems: a line for each image that could not be read and is missing here.
    """

    images: Tensor
    labels: Tensor
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Item:
    image: Tensor | None
    label: int
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class _Items(Dataset[_Item]):
    data: LabelledImages
    transform: Callable[[Image.Image], Tensor]
    seed: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> _Item:
        label = self.data.labels[index]
        try:
            image = decode(self.data.images[index], name=self.data.names[index])
        except ImageError as error:
            return _Item(image=None, label=label, problem=str(error))
        # Each image has a random stream of its own, so that the number of workers changes nothing.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(*self.seed, index))
            return _Item(image=self.transform(image), label=label)


def derive_seed(*parts: int) -> int:
    """One seed from several numbers, such as (seed, epoch, index).

    Trailing zeros count for nothing: (seed, epoch) and (seed, epoch, 0) give the same.
    """
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def train_loader(
    data: LabelledImages,
    *,
    size: int,
    crop_scale: float,
    batch_size: int,
    workers: int,
    seed: int,
    epoch: int,
) -> DataLoader[Batch]:
    """One epoch of `data`, shuffled, cropped and flipped at random.

    Args:
        size: side of the crops, in pixels.
        crop_scale: smallest share of an image's area that a crop covers.
        seed, epoch: together they decide every random choice.

    The last batch is left out where it is not full.
    """
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(crop_scale, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )
    return DataLoader(
        _Items(data=data, transform=transform, seed=(seed, epoch)),  # type: ignore[arg-type]
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(derive_seed(seed, epoch)),
    )


def eval_loader(
    data: LabelledImages, preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> DataLoader[Batch]:
    """Every image of `data` once, in order, as `preprocessing` says."""
    # Not a function of our own: workers that are spawned must be able to pickle it.
    transform = partial(preprocess, preprocessing=preprocessing)
    return DataLoader(
        _Items(data=data, transform=transform, seed=()),  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
    )


def _collate(items: Iterable[_Item]) -> Batch:
    items = list(items)
    read = [(item.image, item.label) for item in items if item.image is not None]
    return Batch(
        images=torch.stack([image for image, _ in read]) if read else torch.empty(0, 3, 1, 1),
        labels=torch.tensor([label for _, label in read], dtype=torch.long),
        problems=tuple(item.problem for item in items if item.problem),
    )
