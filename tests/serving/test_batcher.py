"""The batcher, without any network."""

import os
import queue
import sys
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest

from splitattn.serving.batcher import Batcher, Ran

WAIT = 10  # seconds; everything that is waited for comes at once


class Gate:
    """Computes squares once `open` is set."""

    def __init__(self) -> None:
        self.open, self.busy = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, items: list[int]) -> Sequence[int]:
        self.busy.set()
        assert self.open.wait(WAIT)
        self.batches.append(items)
        return [item**2 for item in items]


@contextmanager
def batcher(gate: Gate, **options: Any) -> Iterator[Batcher[int, int]]:
    ready: Batcher[int, int] = Batcher(gate, **{"max_batch": 4, **options})  # type: ignore[arg-type]
    try:
        yield ready
    finally:
        gate.open.set()
        ready.close()


def test_items_gather_while_the_network_is_busy() -> None:
    gate = Gate()
    with batcher(gate) as running:
        first = running.submit(0)
        assert gate.busy.wait(WAIT)
        others = [running.submit(i) for i in range(1, 8)]
        gate.open.set()
        assert [each.result(WAIT) for each in (first, *others)] == [i**2 for i in range(8)]
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_items_are_computed_in_the_order_of_their_arrival() -> None:
    gate = Gate()
    with batcher(gate, max_batch=2) as running:
        first = running.submit(0)
        assert gate.busy.wait(WAIT)
        arrivals = {1: 10.0, 2: 20.0, 3: 5.0, 4: 15.0}
        others = [running.submit(item, arrived) for item, arrived in arrivals.items()]
        gate.open.set()
        assert [each.result(WAIT) for each in (first, *others)] == [0, 1, 4, 9, 16]
    assert gate.batches == [[0], [3, 1], [4, 2]]


class Lanes:
    """Computes squares; each batch waits for the event in `go` of its first item."""

    def __init__(self) -> None:
        self.began: queue.Queue[list[int]] = queue.Queue()
        self.go: dict[int, threading.Event] = defaultdict(threading.Event)

    def __call__(self, items: list[int]) -> Sequence[int]:
        self.began.put(items)
        assert self.go[items[0]].wait(WAIT)
        if items[0] < 0:
            raise ValueError("negative")
        return [item**2 for item in items]


def test_full_batches_are_computed_at_the_same_time_and_others_wait() -> None:
    lanes = Lanes()
    with closing(Batcher(lanes, max_batch=2, at_once=2)) as running:
        first = running.submit(0)
        assert lanes.began.get(timeout=WAIT) == [0]
        second = running.submit(1)
        with pytest.raises(queue.Empty):  # the batch is not full yet
            lanes.began.get(timeout=0.05)
        third, fourth = running.submit(2), running.submit(3)
        assert lanes.began.get(timeout=WAIT) == [1, 2]
        lanes.go[1].set()
        assert [second.result(WAIT), third.result(WAIT)] == [1, 4]
        with pytest.raises(queue.Empty):
            lanes.began.get(timeout=0.05)
        lanes.go[0].set()
        assert first.result(WAIT) == 0
        assert lanes.began.get(timeout=WAIT) == [3]
        lanes.go[3].set()
        assert fourth.result(WAIT) == 9


def test_one_batch_that_fails_leaves_the_other_lane_and_what_waits() -> None:
    lanes = Lanes()
    with closing(Batcher(lanes, max_batch=2, at_once=2)) as running:
        first = running.submit(0)
        assert lanes.began.get(timeout=WAIT) == [0]
        failing = [running.submit(-1), running.submit(-2)]
        assert lanes.began.get(timeout=WAIT) == [-1, -2]
        lanes.go[-1].set()
        for each in failing:
            with pytest.raises(ValueError, match="negative"):
                each.result(WAIT)
        lanes.go[0].set()
        assert first.result(WAIT) == 0
        last = running.submit(5)
        lanes.go[5].set()
        assert last.result(WAIT) == 25


def test_closing_computes_what_waits_in_both_lanes() -> None:
    lanes = Lanes()
    running = Batcher(lanes, max_batch=2, at_once=2)
    answers = [running.submit(i) for i in range(9)]
    for i in range(9):
        lanes.go[i].set()
    running.close()
    assert [each.result(0) for each in answers] == [i**2 for i in range(9)]


def test_two_lanes_wait_for_a_full_batch_and_take_it_once() -> None:
    lanes = Lanes()
    with closing(Batcher(lanes, max_batch=2, max_wait=WAIT, at_once=2)) as running:
        left = running.submit(7)
        assert left.cancel()
        answers = [running.submit(0), running.submit(1)]
        assert lanes.began.get(timeout=WAIT) == [0, 1]
        lanes.go[0].set()
        assert [each.result(WAIT) for each in answers] == [0, 1]
        assert lanes.began.empty()


@pytest.mark.skipif(
    sys.platform != "linux", reason="only on Linux do threads have a niceness of their own"
)
@pytest.mark.parametrize("more", [0, 7])
def test_threads_that_compute_have_a_lower_priority(more: int) -> None:
    def niceness(_: object = None) -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def compared() -> tuple[int, int]:
        """The niceness of the batcher's thread and of this thread."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness() + more)
        running: Batcher[int, int] = Batcher(lambda items: [*map(niceness, items)], max_batch=4)
        with closing(running):
            return running.submit(0).result(WAIT), niceness()

    with ThreadPoolExecutor(1) as pool:  # a separate thread, whose niceness ends with it
        computing, answering = pool.submit(compared).result(WAIT)
    assert computing > answering


def test_a_single_item_is_computed_at_once() -> None:
    gate, told = Gate(), list[Ran]()
    gate.open.set()
    with batcher(gate, on_batch=told.append) as running:
        for _ in range(20):
            assert running.submit(3).result(WAIT) == 9
    assert min(ran.waited[0] for ran in told) < 0.001


def test_with_a_wait_a_full_batch_goes_at_once_and_a_part_of_one_later() -> None:
    gate = Gate()
    gate.open.set()
    with batcher(gate, max_wait=0.2) as running:
        full = [running.submit(i) for i in range(4)]
        started = time.monotonic()
        assert [each.result(WAIT) for each in full] == [0, 1, 4, 9]
        assert time.monotonic() - started < 0.15
        running.submit(5).result(WAIT)
        assert time.monotonic() - started >= 0.2
    assert [len(batch) for batch in gate.batches] == [4, 1]


def test_an_item_that_has_waited_while_the_network_was_busy_waits_no_more() -> None:
    gate = Gate()
    with batcher(gate, max_wait=0.3) as running:
        running.submit(0)
        assert gate.busy.wait(WAIT)
        late = running.submit(1)
        time.sleep(0.3)
        gate.open.set()
        opened = time.monotonic()
        assert late.result(WAIT) == 1
        assert time.monotonic() - opened < 0.2


def test_canceled_items_are_freed() -> None:
    gate = Gate()
    running: Batcher[Any, int] = Batcher(gate, max_batch=1)
    running.submit(0)
    assert gate.busy.wait(WAIT)
    item = np.zeros(1)
    held = weakref.ref(item)
    running.submit(item).cancel()
    del item
    assert held() is None
    gate.open.set()
    running.close()


def test_canceled_items_are_not_computed() -> None:
    gate = Gate()
    with batcher(gate) as running:
        first = running.submit(0)
        assert gate.busy.wait(WAIT)
        left, stays = running.submit(1), running.submit(2)
        assert left.cancel()
        gate.open.set()
        assert (first.result(WAIT), stays.result(WAIT)) == (0, 4)
    assert gate.batches == [[0], [2]]


def test_closing_computes_what_was_submitted_and_ends_the_thread() -> None:
    gate = Gate()
    running: Batcher[int, int] = Batcher(gate, max_batch=2)
    futures = [running.submit(i) for i in range(5)]
    gate.open.set()
    running.close()
    assert [each.result(0) for each in futures] == [0, 1, 4, 9, 16]
    assert "splitattn-batcher" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(RuntimeError):
        running.submit(1)


def test_an_error_is_the_result_of_its_batch_alone() -> None:
    def compute(items: list[int]) -> list[int]:
        if 0 in items:
            raise ValueError("no zero")
        return items

    running: Batcher[int, int] = Batcher(compute, max_batch=1)
    bad, good = running.submit(0), running.submit(1)
    with pytest.raises(ValueError, match="no zero"):
        bad.result(WAIT)
    assert good.result(WAIT) == 1
    running.close()


def test_each_batch_is_reported() -> None:
    gate, told = Gate(), list[Ran]()
    gate.open.set()
    running: Batcher[int, int] = Batcher(gate, max_batch=4, on_batch=told.append)
    running.submit(0).result(WAIT)
    running.close()
    assert [each.size for each in told] == [1]
    assert all(each.seconds >= 0 and min(each.waited) >= 0 for each in told)
