"""Training batches: decoded and augmented in worker processes, normalized on the device."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from splitattn.data.augmentation import Augmentation, training_transform
from splitattn.data.labelled import Blocks, LabelledImages
from splitattn.errors import DataError, ImageError
from splitattn.images.decode import decode_as

# Unreadable images in a row after which a training gives up: a disk that is gone, not a bad file.
_GIVE_UP = 100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a loader yields.

    Attributes:
        images: (B, C, H, W): uint8 for RGB, else floats from 0 to 1.
        labels: (B,), int64.
        indices: (B,), int64: where in the data set each image stands.
        problems: a line for each image that could not be read; the next readable one is in its
            place.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    problems: tuple[str, ...]

    def pin_memory(self) -> "Batch":
        """The same in memory that a GPU reads by itself. Loaders call this."""
        return replace(
            self,
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            indices=self.indices.pin_memory(),
        )


@dataclass(frozen=True, kw_only=True)
class _Item:
    image: Tensor
    label: int
    index: int
    problem: str


@dataclass(frozen=True, kw_only=True)
class _TrainItems(Dataset[_Item | DataError]):
    data: LabelledImages
    channels: int
    white_level: float | None
    transform: Callable[[Image.Image | Tensor], Tensor]
    seed: int
    epoch: int

    def __getitem__(self, drawn: int) -> _Item | DataError:
        """The image that was drawn, or the next that can be read, from the first after the last."""
        problem = ""  # of the image that was drawn; the others are drawn themselves
        attempts = min(len(self.data), _GIVE_UP)
        for index in ((drawn + offset) % len(self.data) for offset in range(attempts)):
            try:
                image = self._decoded(index)
            except ImageError as error:
                problem = problem or str(error)
                continue
            # Each draw has a random stream of its own, so the number of workers changes nothing.
            with _random_stream(derive_seed(self.seed, self.epoch, drawn)):
                pixels = self.transform(image)
            return _Item(image=pixels, label=self.data.labels[index], index=index, problem=problem)
        return DataError(
            f"training needs readable images, got {attempts} in a row that are not; "
            f"the first: {problem}"
        )

    def _decoded(self, index: int) -> Image.Image | Tensor:
        """RGB as a Pillow image, any other number of channels as floats (C, H, W)."""
        source, name = self.data.images[index], self.data.names[index]
        image = decode_as(source, self.channels, name=name, white_level=self.white_level)
        return image if isinstance(image, Image.Image) else torch.from_numpy(image)


def _ignore_signals(_: int) -> None:
    """Workers end when their process ends them, after it has saved: not when a terminal or a batch
    system tells all processes to stop at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Loader(DataLoader[Batch]):
    """Raises here what went wrong in a worker; raised there, it would carry a whole traceback."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield batch


def derive_seed(*parts: int) -> int:
    """One seed from several numbers, such as (seed, epoch, index)."""
    # With their number, for trailing zeros count for nothing: (1, 0) would be (1, 0, 0).
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1)[0])


def epoch_batches(
    n: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    first_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    blocks: Blocks | None = None,
) -> list[list[int]]:
    """Which of `n` images one process takes in each micro-batch of an epoch, in order.

    All processes together see the same images in the same steps as one process would: an order
    drawn by `seed` and `epoch` is cut into steps, a step into contiguous shares, one for each
    process, and a share into micro-batches. A last step that is not full is left out.

    Args:
        batch_size: images in a step, over all processes; a multiple of world_size * accumulation.
        first_step: steps before this one are left out, as a resumed training has taken them.
        rank: number of this process among `world_size`.
        accumulation: micro-batches in a step.
        blocks: images that are read together. Blocks are shuffled, and then the images of as many
            as are kept in memory.
    """
    micro_batch, remainder = divmod(batch_size, world_size * accumulation)
    assert not remainder, "batch_size must be a multiple of world_size * accumulation"
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    order = _order(n, blocks, generator)
    return [
        order[start : start + micro_batch]
        for step in range(first_step, n // batch_size)
        for part in range(rank * accumulation, (rank + 1) * accumulation)
        for start in [step * batch_size + part * micro_batch]
    ]


def _order(n: int, blocks: Blocks | None, generator: torch.Generator) -> list[int]:
    if blocks is None:
        return torch.randperm(n, generator=generator).tolist()
    ends = (*blocks.starts[1:], n)
    ranges = [torch.arange(*ends_of) for ends_of in zip(blocks.starts, ends, strict=True)]
    shuffled = torch.randperm(len(ranges), generator=generator).tolist()
    order: list[int] = []
    for first in range(0, len(shuffled), blocks.at_once):
        near = torch.cat([ranges[block] for block in shuffled[first : first + blocks.at_once]])
        order += near[torch.randperm(len(near), generator=generator)].tolist()
    return order


def train_loader(
    data: LabelledImages,
    augmentation: Augmentation,
    *,
    batches: Iterable[list[int]],
    workers: int,
    seed: int,
    epoch: int,
    white_level: float | None = None,
) -> DataLoader[Batch]:
    """The images of each of `batches`, augmented at random. Batches are always full.

    Args:
        augmentation: how, and for how many channels.
        batches: indices into `data`, as `epoch_batches` makes them.
        workers: processes that decode.
        seed, epoch: together they decide every random choice.
        white_level: see `Preprocessing`.

    While it is iterated, it raises:
        DataError: a hundred images in a row cannot be read.
    """
    items: Dataset[Any] = _TrainItems(
        data=data,
        channels=len(augmentation.mean),
        white_level=white_level,
        transform=training_transform(augmentation),
        seed=seed,
        epoch=epoch,
    )
    return _Loader(
        items,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available(),
        # A loader draws a seed for its workers; with a generator of its own, not from the caller's.
        generator=torch.Generator(),
    )


def _collate(items: Iterable[_Item | DataError]) -> Batch | DataError:
    found: list[_Item] = []
    for item in items:
        if isinstance(item, DataError):
            return item
        found.append(item)
    return Batch(
        images=torch.stack([item.image for item in found]),
        labels=torch.tensor([item.label for item in found], dtype=torch.long),
        indices=torch.tensor([item.index for item in found], dtype=torch.long),
        problems=tuple(item.problem for item in found if item.problem),
    )


@contextmanager
def _random_stream(seed: int) -> Iterator[None]:
    """torch's CPU generator starts from `seed`, and the caller finds it as it was."""
    # Not torch.manual_seed, which reseeds a GPU too, nor fork_rng: both cost more than a crop. A
    # worker process has no caller whose state it could disturb.
    state = None if get_worker_info() else torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if state is not None:
            torch.set_rng_state(state)
