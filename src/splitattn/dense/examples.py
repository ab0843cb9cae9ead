"""Training batches of annotated images: read and augmented in worker processes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from splitattn.data.loading import (
    Loader,
    Packed,
    begin_worker,
    derive_seed,
    first_readable,
    random_stream,
)
from splitattn.errors import DataError

Content = TypeVar("Content")
Item = TypeVar("Item")
Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Drawn(Generic[Item]):
    """An image as a training sees it.

    Attributes:
        item: of the image that was drawn, or else of the next one that can be read.
        problem: why the image that was drawn cannot be read; empty if it can.
    """

    item: Item
    problem: str


@dataclass(frozen=True, kw_only=True)
class Examples(ABC, Dataset["Drawn[Item] | DataError"], Generic[Content, Item]):
    """The images of an epoch. A subclass says how they are read and augmented.

    Attributes:
        seed, epoch: together they decide every random choice.
    """

    seed: int
    epoch: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Content:
        """An image and its annotations.

        Raises:
            ImageError: it cannot be decoded, or does not fit its annotations.
        """

    @abstractmethod
    def augmented(self, content: Content) -> Item:
        """What `read` gave, changed by torch's generator."""

    def __getitem__(self, drawn: int) -> Drawn[Item] | DataError:
        found = first_readable(len(self), drawn, self.read)
        if isinstance(found, DataError):
            return found
        # Each draw has a random stream of its own, so the number of workers changes nothing.
        with random_stream(derive_seed(self.seed, self.epoch, drawn)):
            item = self.augmented(found.content)
        return Drawn(item=item, problem=found.problem)


# From the items of a batch, and a line for each image that could not be read.
Pack = Callable[[Sequence[Item], tuple[str, ...]], Packed[Batch]]


def example_loader(
    examples: Examples[Content, Item],
    pack: Pack[Item, Batch],
    *,
    batches: Iterable[list[int]],
    workers: int,
) -> DataLoader[Batch]:
    """The images of each of `batches`; see `data.loading.train_loader`."""
    items: Dataset[Any] = examples
    return Loader(
        items,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(_collate, pack),
        worker_init_fn=begin_worker,
        generator=torch.Generator(),
    )


def _collate(
    pack: Pack[Item, Batch], drawn: Iterable[Drawn[Item] | DataError]
) -> Packed[Batch] | DataError:
    items: list[Item] = []
    problems: list[str] = []
    for each in drawn:
        if isinstance(each, DataError):
            return each
        items.append(each.item)
        problems += [each.problem] if each.problem else []
    return pack(items, tuple(problems))
