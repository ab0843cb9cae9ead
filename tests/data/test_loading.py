"""Batches hold every image once, do not depend on the workers, and list errors."""

import errno
import gc
import os
import pickle
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from itertools import chain
from multiprocessing import active_children, current_process, get_context
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import SemLock
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import torch

from splitattn.data.augmentation import Augmentation
from splitattn.data.labeled import Blocks, LabeledImages
from splitattn.data.loading import (
    Batch,
    dead_workers_named,
    derive_seed,
    epoch_batches,
    train_loader,
)
from splitattn.data.sources import open_data
from splitattn.errors import DataError, InputError
from tests.data.datasets import encoded, write_class_folders

AUGMENTATION = Augmentation(size=32, crop_scale=0.3)


@pytest.fixture
def data(tmp_path: Path) -> LabeledImages:
    return open_data(str(write_class_folders(tmp_path / "data", 7)), "val")


def epoch(
    data: LabeledImages,
    *,
    number: int = 0,
    workers: int = 0,
    seed: int = 5,
    augmentation: Augmentation = AUGMENTATION,
    **split: int,
) -> list[Batch]:
    batches = epoch_batches(len(data), batch_size=4, seed=seed, epoch=number, **split)
    return list(
        train_loader(data, augmentation, batches=batches, workers=workers, seed=seed, epoch=number)
    )


def joined(batches: list[Batch], field: str = "images") -> Any:
    return torch.cat([getattr(batch, field) for batch in batches])


def spoil(data: LabeledImages, *indices: int) -> list[str]:
    paths = [Path(str(data.images[index])) for index in indices]
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])
    return [str(path) for path in paths]


def test_an_epoch_is_a_permutation_without_the_rest() -> None:
    steps = epoch_batches(22, batch_size=4, seed=1, epoch=2)
    assert [len(step) for step in steps] == [4] * 5
    seen = list(chain.from_iterable(steps))
    assert len(set(seen)) == 20
    assert set(seen) < set(range(22))
    assert seen != sorted(seen)
    assert steps == epoch_batches(22, batch_size=4, seed=1, epoch=2)
    assert steps != epoch_batches(22, batch_size=4, seed=1, epoch=3)
    assert steps != epoch_batches(22, batch_size=4, seed=2, epoch=2)
    assert epoch_batches(3, batch_size=4, seed=1, epoch=2) == []


@pytest.mark.parametrize("blocks", [None, Blocks(starts=(0, 3, 3, 10), at_once=2)])
def test_balanced_sampling_draws_each_class_equally_often(blocks: Blocks | None) -> None:
    labels = [7] * 17 + [2] * 2 + [5]  # 20 draws of 3 classes: 7, 7 and 6, in any order
    [step] = epoch_batches(20, batch_size=20, seed=1, epoch=0, balanced=labels, blocks=blocks)
    assert len(set(step)) == 20, (
        "draws are numbered, so that a repeated image has different numbers"
    )
    drawn = Counter(draw % 20 for draw in step)
    by_class = Counter(dict.fromkeys(labels, 0))
    for image, times in drawn.items():
        by_class[labels[image]] += times
    assert sorted(by_class.values()) == [6, 7, 7]
    assert max(drawn[image] for image in range(17)) == 1
    assert abs(drawn[17] - drawn[18]) <= 1, "the images of a class take turns"
    [other] = epoch_batches(20, batch_size=20, seed=1, epoch=1, balanced=labels, blocks=blocks)
    assert {draw % 20 for draw in other} != set(drawn), (
        "another epoch draws other images of a large class"
    )
    halves = {"batch_size": 4, "seed": 1, "epoch": 0, "balanced": labels, "blocks": blocks}
    assert list(chain.from_iterable(epoch_batches(20, **halves, first_step=3))) == step[12:]


def test_an_image_that_is_drawn_again_is_augmented_anew(data: LabeledImages) -> None:
    n = len(data)
    [batch] = train_loader(data, AUGMENTATION, batches=[[3, 3 + n, 3]], workers=0, seed=5, epoch=0)
    assert batch.indices.tolist() == [3, 3, 3]
    assert torch.equal(batch.images[0], batch.images[2])
    assert not torch.equal(batch.images[0], batch.images[1])


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 3), (2, 1), (3, 2), (12, 1), (2, 6)])
def test_processes_and_micro_batches_together_are_one_step(
    world_size: int, accumulation: int
) -> None:
    alone = epoch_batches(100, batch_size=12, seed=1, epoch=0)
    shares = [
        epoch_batches(
            100,
            batch_size=12,
            seed=1,
            epoch=0,
            rank=rank,
            world_size=world_size,
            accumulation=accumulation,
        )
        for rank in range(world_size)
    ]
    for step, whole in enumerate(alone):
        parts = [share[step * accumulation : (step + 1) * accumulation] for share in shares]
        assert list(chain.from_iterable(chain.from_iterable(parts))) == whole
    assert {len(share) for share in shares} == {len(alone) * accumulation}


def test_an_interrupted_epoch_goes_on_where_it_was(data: LabeledImages) -> None:
    whole, rest = epoch(data), epoch(data, first_step=3)
    assert len(rest) == 2
    assert torch.equal(joined(rest), joined(whole[3:]))
    assert len(epoch_batches(21, batch_size=4, seed=0, epoch=0, first_step=5)) == 0
    halves = {"batch_size": 4, "seed": 5, "epoch": 0, "accumulation": 2}
    assert epoch_batches(21, **halves, first_step=3) == epoch_batches(21, **halves)[6:]


def test_training_batches_are_full_bytes_and_shuffled(data: LabeledImages) -> None:
    batches = epoch(data)
    assert [batch.images.shape for batch in batches] == [(4, 3, 32, 32)] * 5
    assert all(batch.images.dtype == torch.uint8 for batch in batches)
    labels, indices = joined(batches, "labels").tolist(), joined(batches, "indices").tolist()
    assert labels != sorted(labels)
    assert labels == [data.labels[index] for index in indices]
    assert [batch.indices.tolist() for batch in batches] == epoch_batches(
        21, batch_size=4, seed=5, epoch=0
    )


def test_the_same_epoch_is_the_same_with_any_number_of_workers(data: LabeledImages) -> None:
    spoil(data, 4, 5)
    everything = Augmentation(
        size=24, auto_augment="trivial", color_jitter=0.4, lighting=0.1, random_erasing=0.5
    )
    alone = epoch(data, augmentation=everything)
    shared = epoch(data, workers=2, augmentation=everything)
    assert torch.equal(joined(alone), joined(shared))
    assert torch.equal(joined(alone, "indices"), joined(shared, "indices"))


def test_an_image_is_augmented_alike_in_any_batch(data: LabeledImages) -> None:
    """Therefore augmentation does not depend on the number of processes either."""
    [batch] = train_loader(data, AUGMENTATION, batches=[[3, 8]], workers=0, seed=5, epoch=0)
    [single] = train_loader(data, AUGMENTATION, batches=[[8]], workers=0, seed=5, epoch=0)
    assert torch.equal(batch.images[1], single.images[0])


def test_epochs_and_seeds_differ(data: LabeledImages) -> None:
    batches = [[0, 1, 2]]

    def pixels(seed: int, epoch: int) -> torch.Tensor:
        loader = train_loader(
            data, AUGMENTATION, batches=batches, workers=0, seed=seed, epoch=epoch
        )
        return joined(list(loader))

    assert not torch.equal(pixels(5, 0), pixels(5, 1))
    assert not torch.equal(pixels(5, 0), pixels(6, 0))


def test_a_derived_seed_depends_on_every_part() -> None:
    parts = [(), (0,), (0, 0), (5,), (5, 0), (5, 0, 0), (0, 5), (5, 1), (1, 5), (2**62, 1)]
    assert len({derive_seed(*part) for part in parts}) == len(parts)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_random_state_as_it_was(data: LabeledImages, workers: int) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    epoch(data, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_transform_that_fails_leaves_the_random_state_too(data: LabeledImages) -> None:
    loader = train_loader(data, AUGMENTATION, batches=[[0]], workers=0, seed=0, epoch=0)

    def fail(_: object) -> None:
        torch.rand(3)
        raise RuntimeError("no")

    object.__setattr__(loader.dataset, "transform", fail)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no"):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_may_be_spawned(data: LabeledImages) -> None:
    """Workers are spawned on macOS and Windows, so the data set must survive pickling."""
    loader = train_loader(data, AUGMENTATION, batches=[[0]], workers=0, seed=5, epoch=0)
    copied = pickle.loads(pickle.dumps(loader.dataset))
    assert torch.equal(copied[3].image, loader.dataset[3].image)


def test_training_takes_the_next_readable_image_instead(data: LabeledImages) -> None:
    """The replacement keeps its own label; the unreadable image is reported in its batch."""
    # The last image of one class, the first of the next, and the last image of all.
    broken = spoil(data, 6, 7, 20)
    batches = [[6, 1], [7, 20], [8, 0]]
    found = list(train_loader(data, AUGMENTATION, batches=batches, workers=0, seed=5, epoch=0))
    assert [batch.indices.tolist() for batch in found] == [[8, 1], [8, 0], [8, 0]]
    assert joined(found, "labels").tolist() == [1, 0, 1, 0, 1, 0]
    lines = [[line.partition(": ")[0] for line in batch.problems] for batch in found]
    assert lines == [broken[:1], broken[1:], []]
    # An epoch keeps its number of images and reports no image twice.
    batches = epoch(data)
    assert [len(batch.labels) for batch in batches] == [4] * 5
    problems = [line for batch in batches for line in batch.problems]
    assert len(problems) == len(set(problems)) <= 3


@pytest.mark.parametrize("workers", [0, 1])
def test_training_gives_up_after_a_hundred_unreadable_images(workers: int) -> None:
    n = 160
    data = LabeledImages(
        origin="memory",
        classes=("green",),
        images=[b"nothing"] * (n - 1) + [encoded(1, 0)],
        labels=[0] * n,
        names=[f"image {index}" for index in range(n)],
    )
    batches = [[n - 100], [n - 101]]
    loader = iter(
        train_loader(data, AUGMENTATION, batches=batches, workers=workers, seed=0, epoch=0)
    )
    assert next(loader).indices.tolist() == [n - 1]
    with pytest.raises(DataError) as raised:
        next(loader)
    message = str(raised.value)
    assert message.startswith("training needs readable images, got 100 in a row that are not; the")
    assert f"first: image {n - 101}: " in message
    assert "\n" not in message
    assert not active_children(), "the workers end even if the error is kept"


def test_training_gives_up_where_nothing_can_be_read(data: LabeledImages) -> None:
    spoil(data, *range(21))
    with pytest.raises(DataError, match="got 21 in a row"):
        epoch(data)


class Deadly(list[Any]):
    """Reading image 9 kills the process, as a system out of memory does."""

    def __getitem__(self, index: Any) -> Any:
        if index == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_dies_is_named_with_what_to_do(data: LabeledImages) -> None:
    deadly = replace(data, images=Deadly(data.images))
    loader = train_loader(deadly, AUGMENTATION, batches=[[0], [9]], workers=1, seed=0, epoch=0)
    expected = r"one is killed by signal: Killed.*--workers 0.*--shm-size, and --resume$"
    with pytest.raises(InputError, match=expected), dead_workers_named():
        list(loader)


def test_other_errors_are_no_dead_workers() -> None:
    with pytest.raises(RuntimeError, match="of the network"), dead_workers_named():
        raise RuntimeError("a fault of the network")


def test_workers_that_cannot_be_started_are_named(
    data: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(BaseProcess, "start", fail)
    with pytest.raises(InputError, match="cannot start 1 worker processes: AF_UNIX path too long"):
        epoch(data, workers=1)


@pytest.mark.parametrize("at", ["the first queue", "the second worker"])
def test_a_loader_that_is_half_built_leaves_no_traceback_and_no_worker(
    data: LabeledImages, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    start, started = BaseProcess.start, list[BaseProcess]()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def start_one(process: BaseProcess) -> None:
        if started:
            fail()
        started.append(process)
        start(process)

    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    if at == "the first queue":
        monkeypatch.setattr(SemLock, "__init__", fail)  # as where /dev/shm is full
    else:
        monkeypatch.setattr(BaseProcess, "start", start_one)
    with pytest.raises(InputError, match=r"cannot start 2 worker processes: .*No space left"):
        epoch(data, workers=2)
    gc.collect()
    assert not unraisable
    assert not active_children()
    assert len(started) == (at == "the second worker")


def test_batches_need_no_shared_memory(
    data: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # Forked workers inherit this. A batch that needed shared memory would never arrive.
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", full)
    assert len(epoch(data, workers=1)) == 5


@pytest.mark.parametrize("name", ["a b", "l" * 120])
def test_workers_take_any_temporary_folder(
    name: str, data: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path of a socket has at most 108 characters, so workers must not put one there."""
    (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / name))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delitem(vars(current_process())["_config"], "tempdir", raising=False)
    assert len(joined(epoch(data, workers=1), "labels")) == 20


def _read_forever(data: LabeledImages, told: Any) -> None:
    large = Augmentation(size=512)  # a batch is larger than the buffer of a pipe
    loader = train_loader(data, large, batches=[[0]] * 20, workers=1, seed=0, epoch=0)
    batches = iter(loader)
    next(batches)
    told.send([process.pid for process in active_children()])
    signal.pause()


def test_no_worker_outlives_a_process_that_is_killed(data: LabeledImages) -> None:
    ours, theirs = get_context().Pipe(duplex=False)
    process = get_context("fork").Process(target=_read_forever, args=(data, theirs))
    process.start()
    try:
        [worker] = ours.recv()
    finally:
        process.kill()
        process.join()
    deadline = monotonic() + 10
    while state_of(worker) != "Z":
        assert monotonic() < deadline
        sleep(0.02)


def state_of(process: int) -> str:
    """The state of a process from /proc, such as R or S; Z if it has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
