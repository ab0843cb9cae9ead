"""Training batches: decoded and augmented in worker processes, normalized on the device."""

import re
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from splitattn.data.augmentation import Augmentation
from splitattn.data.labeled import Blocks, LabeledImages
from splitattn.data.training_transforms import training_transform
from splitattn.errors import DataError, ImageError, InputError
from splitattn.images.decode import decode_as
from splitattn.processes import end_with_parent

T = TypeVar("T")

# Unreadable images in a row after which a training gives up: a disk that is gone, not a bad file.
_GIVE_UP = 100

# How PyTorch says that a worker died, and how it died.
_DEAD_WORKER = re.compile(
    r"DataLoader worker \(pid[^)]*\) ((?:is|was) killed by signal: [\w ]+|exited unexpectedly)"
)


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


class Packed(ABC, Generic[T]):
    """A batch on its way from a worker, as arrays.

    Tensors would travel in shared memory, of which containers have little, or by a socket in
    TMPDIR. A worker that cannot hand over a batch that way loses it, and its process waits forever.
    """

    @abstractmethod
    def tensors(self) -> T:
        """The batch."""


@dataclass(frozen=True, kw_only=True)
class _Packed(Packed[Batch]):
    images: NDArray[Any]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    problems: tuple[str, ...]

    def tensors(self) -> Batch:
        return Batch(
            images=torch.from_numpy(self.images),
            labels=torch.from_numpy(self.labels),
            indices=torch.from_numpy(self.indices),
            problems=self.problems,
        )

    def pin_memory(self) -> Batch:
        """The same in memory that a GPU reads by itself. Loaders call this."""
        batch = self.tensors()
        return replace(
            batch,
            images=batch.images.pin_memory(),
            labels=batch.labels.pin_memory(),
            indices=batch.indices.pin_memory(),
        )


@dataclass(frozen=True, kw_only=True)
class _Item:
    image: Tensor
    label: int
    index: int
    problem: str


@dataclass(frozen=True, kw_only=True)
class Readable(Generic[T]):
    """What was read of the image that was drawn, or else of the next one that can be read.

    Attributes:
        index: of the image in the data set.
        content: what was read.
        problem: of the image that was drawn; empty if there is none.
    """

    index: int
    content: T
    problem: str


def first_readable(n: int, drawn: int, read: Callable[[int], T]) -> Readable[T] | DataError:
    """Read the image that was drawn, or the next that can be read, from the first after the last.

    Args:
        n: how many images there are.
        drawn: the image's index, or its draw (see `epoch_batches`).
        read: reads an image by its index, or raises `ImageError`.

    Returns:
        What was read, or the error if a hundred images in a row cannot be read.
    """
    problem = ""  # of the image that was drawn; the others are drawn themselves
    attempts = min(n, _GIVE_UP)
    for index in ((drawn + offset) % n for offset in range(attempts)):
        try:
            return Readable(index=index, content=read(index), problem=problem)
        except ImageError as error:
            problem = problem or str(error)
    return DataError(
        f"training needs readable images, got {attempts} in a row that are not; "
        f"the first: {problem}"
    )


@dataclass(frozen=True, kw_only=True)
class _TrainItems(Dataset[_Item | DataError]):
    data: LabeledImages
    channels: int
    white_level: float | None
    transform: Callable[[Image.Image | Tensor], Tensor]
    seed: int
    epoch: int

    def __getitem__(self, drawn: int) -> _Item | DataError:
        found = first_readable(len(self.data), drawn, self._decoded)
        if isinstance(found, DataError):
            return found
        # Each draw has a random stream of its own, so the number of workers changes nothing.
        with random_stream(derive_seed(self.seed, self.epoch, drawn)):
            pixels = self.transform(found.content)
        label = self.data.labels[found.index]
        return _Item(image=pixels, label=label, index=found.index, problem=found.problem)

    def _decoded(self, index: int) -> Image.Image | Tensor:
        """RGB as a Pillow image, any other number of channels as floats (C, H, W)."""
        source, name = self.data.images[index], self.data.names[index]
        image = decode_as(source, self.channels, name=name, white_level=self.white_level)
        return image if isinstance(image, Image.Image) else torch.from_numpy(image)


def begin_worker(_: int) -> None:
    """End when the main process does, and not before.

    A terminal or a batch system tells all processes to stop at once, but the main process saves
    first, and then ends its workers. If it is killed, a worker that waits to hand over a batch
    would wait forever.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


class Loader(DataLoader[T]):
    """Raises here what went wrong in a worker; raised there, it would carry a whole traceback."""

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        try:
            batches: Iterator[Any] = super().__iter__()
        except (OSError, EOFError) as error:  # too many processes, no memory, a bad TMPDIR
            raise InputError(
                f"cannot start {self.num_workers} worker processes: {error or 'they ended'}; use "
                "fewer --workers, or --workers 0"
            ) from error
        try:
            for batch in batches:
                if isinstance(batch, DataError):
                    raise batch
                yield batch.tensors() if isinstance(batch, Packed) else batch
        finally:
            # An error keeps this frame, and with it the iterator, until garbage is collected. Then
            # the queue to the workers closes first, and nobody tells them to end.
            del batches


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Turn the error for a worker that died into one line.

    PyTorch raises it in a signal handler, so it can come out of any line of the main process.

    Raises:
        InputError: a worker process died.
    """
    try:
        yield
    except RuntimeError as error:
        # Its cause, if it has one, knows by which signal.
        found = _DEAD_WORKER.search(f"{error.__cause__} {error}")
        if not found:
            raise
        how = found[1]
        likely = "its shared memory" if "Bus error" in how else "the memory"
        raise InputError(
            f"worker processes must live as long as the training, one {how}: perhaps {likely} of "
            "the machine or container is full; use fewer --workers or --workers 0, raise a "
            "container's --memory or --shm-size, and --resume"
        ) from error


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
    balanced: Sequence[int] | None = None,
) -> list[list[int]]:
    """Which of `n` images one process takes in each micro-batch of an epoch, in order.

    An image that is drawn for the k-th time, counted from 0, is `index + k * n`. So each of its
    draws has a number of its own, and with it an augmentation of its own.

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
        balanced: the label of each image: each class is drawn equally often, up to one draw, and
            its images in turn. None draws each image once.
    """
    micro_batch, remainder = divmod(batch_size, world_size * accumulation)
    assert not remainder, "batch_size must be a multiple of world_size * accumulation"
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    draws = torch.arange(n) if balanced is None else _balanced(balanced, generator)
    order = _order(draws, n, blocks, generator)
    return [
        order[start : start + micro_batch]
        for step in range(first_step, n // batch_size)
        for part in range(rank * accumulation, (rank + 1) * accumulation)
        for start in [step * batch_size + part * micro_batch]
    ]


def _balanced(labels: Sequence[int], generator: torch.Generator) -> Tensor:
    """(N,) as many draws as there are images, see `epoch_batches`."""
    all_labels = torch.tensor([*labels])
    n = len(all_labels)
    _, counts = torch.unique(all_labels, return_counts=True)
    by_class = torch.split(torch.argsort(all_labels, stable=True), counts.tolist())
    share, rest = divmod(n, len(by_class))
    draws = []
    for place, number in enumerate(torch.randperm(len(by_class), generator=generator).tolist()):
        images = by_class[number]
        count = share + (place < rest)
        rounds = [
            images[torch.randperm(len(images), generator=generator)] + k * n
            for k in range(-(-count // len(images)))
        ]
        draws.append(torch.cat(rounds)[:count] if rounds else images[:0])
    return torch.cat(draws)


def _order(draws: Tensor, n: int, blocks: Blocks | None, generator: torch.Generator) -> list[int]:
    if blocks is None:
        return draws[torch.randperm(len(draws), generator=generator)].tolist()
    draws = draws[(draws % n).argsort(stable=True)]
    bounds = torch.searchsorted(draws % n, torch.tensor([*blocks.starts, n])).tolist()
    ranges = [draws[start:end] for start, end in pairwise(bounds)]
    shuffled = torch.randperm(len(ranges), generator=generator).tolist()
    order: list[int] = []
    for first in range(0, len(shuffled), blocks.at_once):
        near = torch.cat([ranges[block] for block in shuffled[first : first + blocks.at_once]])
        order += near[torch.randperm(len(near), generator=generator)].tolist()
    return order


def train_loader(
    data: LabeledImages,
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
        batches: draws of images of `data`, as `epoch_batches` makes them.
        workers: processes that decode.
        seed, epoch: together they decide every random choice.
        white_level: see `Preprocessing`.

    While it is iterated, it raises:
        DataError: a hundred images in a row cannot be read.
        InputError: the workers cannot be started.
    """
    items: Dataset[Any] = _TrainItems(
        data=data,
        channels=len(augmentation.mean),
        white_level=white_level,
        transform=training_transform(augmentation),
        seed=seed,
        epoch=epoch,
    )
    return Loader(
        items,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=begin_worker,
        pin_memory=torch.cuda.is_available(),
        # A loader draws a seed for its workers; with a generator of its own, not from the caller's.
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
        labels=np.array([item.label for item in found], np.int64),
        indices=np.array([item.index for item in found], np.int64),
        problems=tuple(item.problem for item in found if item.problem),
    )


@contextmanager
def random_stream(seed: int) -> Iterator[None]:
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
