"""Training batches: decoded and augmented in worker processes, normalized on the device."""

import logging
import re
import signal
import traceback
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
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from splitattn.data.augmentation import Augmentation
from splitattn.data.labeled import Blocks, LabeledImages
from splitattn.data.training_transforms import training_transform
from splitattn.errors import DataError, ImageError, InputError
from splitattn.images.decode import decode_as
from splitattn.processes import end_with_parent

logger = logging.getLogger(__name__)

T = TypeVar("T")

# After this many unreadable images in a row a training stops: the disk is probably gone.
_GIVE_UP = 100

# PyTorch's message for a worker that died.
_DEAD_WORKER = re.compile(
    r"DataLoader worker \(pid[^)]*\) ((?:is|was) killed by signal: [\w ]+|exited unexpectedly)"
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A training batch.

    Attributes:
        images: (B, C, H, W): uint8 for RGB, otherwise float32 from 0 to 1.
        labels: (B,), int64.
        indices: (B,), int64: positions in the data set.
        problems: a line for each image that could not be read and was replaced by the next readable
            one.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    problems: tuple[str, ...]


class Packed(ABC, Generic[T]):
    """A batch that a worker sends, as NumPy arrays.

    PyTorch would send tensors through shared memory, which is small in containers, or through a
    socket in TMPDIR. If that fails, the batch is lost and the main process waits forever.
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
        """Copy to page-locked memory, for fast copies to a GPU. Loaders call this."""
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
    """The drawn image, or if it cannot be read, the next readable one.

    Attributes:
        index: of the image in the data set.
        content: the result of reading it.
        problem: why the drawn image could not be read; empty if it could.
    """

    index: int
    content: T
    problem: str


def first_readable(n: int, drawn: int, read: Callable[[int], T]) -> Readable[T] | DataError:
    """Read the drawn image, or the next readable one; the first image follows the last.

    Args:
        n: number of images.
        drawn: the image's index, or its draw (see `epoch_batches`).
        read: reads an image by its index, or raises `ImageError`.

    Returns:
        The image, or the error if a hundred images in a row cannot be read.
    """
    problem = ""  # only of the drawn image; the others have draws of their own
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


def warn_of_replaced(problems: Sequence[str]) -> None:
    """Warn of drawn images that could not be read, for a batch that is shown; see `Batch`."""
    if problems:
        logger.warning(
            "unreadable images, each replaced by the next readable one: %d; the first: %s",
            len(problems),
            problems[0],
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
        # Each draw has its own random stream, so the number of workers does not matter.
        with random_stream(derive_seed(self.seed, self.epoch, drawn)):
            pixels = self.transform(found.content)
        label = self.data.labels[found.index]
        return _Item(image=pixels, label=label, index=found.index, problem=found.problem)

    def _decoded(self, index: int) -> Image.Image | Tensor:
        """RGB as a Pillow image, any other number of channels as float32 (C, H, W)."""
        source, name = self.data.images[index], self.data.names[index]
        image = decode_as(source, self.channels, name=name, white_level=self.white_level)
        return image if isinstance(image, Image.Image) else torch.from_numpy(image)


def begin_worker(_: int) -> None:
    """Make a worker process ignore interrupts, and end when the main process ends.

    A terminal or a batch system interrupts all processes at once, but the main process must save
    first and then ends its workers. If the main process is killed, a worker that waits to send a
    batch would wait forever.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


class Loader(DataLoader[T]):
    """A loader that raises errors of workers in the main process, without PyTorch's traceback."""

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        try:
            batches: Iterator[Any] = super().__iter__()
        except (OSError, EOFError) as error:  # too many processes, too little memory, bad TMPDIR
            for frame, _ in traceback.walk_tb(error.__traceback__):
                iterator = frame.f_locals.get("self")
                if isinstance(iterator, _MultiProcessingDataLoaderIter):
                    _end_half_built(iterator)
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
            # An error would keep this frame and its iterator alive until garbage collection. The
            # queue to the workers would then close first, and the workers would not end.
            del batches


def _end_half_built(iterator: _MultiProcessingDataLoaderIter) -> None:
    """End the workers of an iterator whose construction failed.

    Its own `__del__` would print a traceback, since it lacks attributes.
    """
    for worker in getattr(iterator, "_workers", ()):
        worker.kill()  # they ignore SIGTERM
        worker.join()
    iterator._shutdown = True


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Turn PyTorch's error for a dead worker into one line.

    PyTorch raises it in a signal handler, so any line of the main process can raise it.

    Raises:
        InputError: a worker process died.
    """
    try:
        yield
    except RuntimeError as error:
        # The cause, if there is one, names the signal.
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
    # Their count is included, since trailing zeros are ignored: (1, 0) would equal (1, 0, 0).
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
    """The images of each micro-batch of an epoch for one process, in order.

    The k-th draw of an image, counted from 0, is `index + k * n`. So each draw has its own number,
    and with it its own augmentation.

    All processes together take the same images in each step as a single process would. The order
    depends on `seed` and `epoch`. It is cut into steps, each step into one contiguous share for
    each process, and each share into micro-batches. An incomplete last step is left out.

    Args:
        n: number of images in the data set.
        batch_size: images in a step, over all processes; a multiple of world_size * accumulation.
        seed, epoch: decide the order.
        first_step: earlier steps are skipped, for a resumed training.
        rank: number of this process among `world_size`.
        accumulation: micro-batches in a step.
        blocks: images that are read together. Blocks are shuffled, and then the images within as
            many blocks as are kept in memory.
        balanced: the label of each image. Each class is then drawn equally often, up to one draw,
            and its images in turn. None draws each image once.
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
    """Draws (N,) that are balanced over classes; as many as images. See `epoch_batches`."""
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
    """A loader of randomly augmented batches. Batches are always full.

    Args:
        augmentation: settings of the augmentation; its `mean` has the number of channels.
        batches: draws of images of `data`, as from `epoch_batches`.
        workers: processes that decode.
        seed, epoch: decide every random choice.
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
        # A loader draws a seed for its workers; its own generator leaves the caller's unchanged.
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
    """Seed torch's CPU generator within the context; afterwards it has its former state."""
    # torch.manual_seed, which also seeds GPUs, and fork_rng take longer than a crop. In a worker
    # process no state needs to be restored.
    state = None if get_worker_info() else torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if state is not None:
            torch.set_rng_state(state)
