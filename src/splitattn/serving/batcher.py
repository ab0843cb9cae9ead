"""Gathers items of many callers into batches. It knows nothing of HTTP and images."""

import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any, Generic, TypeVar

from splitattn.processes import give_way

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Ran:
    """Size and times of one batch.

    Attributes:
        size: items in it.
        seconds: from start to end of the computation, even if other batches ran beside it.
        waited: seconds that each item waited before.
    """

    size: int
    seconds: float
    waited: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    future: "Future[Result]"
    arrived: float
    since: float


def _arrival(entry: _Entry[Any, Any]) -> float:
    return entry.arrived


class Batcher(Generic[Item, Result]):
    """Computes items in batches, in threads of its own, in the order of their arrival.

    While one batch is computed, the next one gathers. An idle batcher computes at once. An item
    whose future is canceled while it waits is dropped.

    Args:
        compute: from one to `max_batch` items to a result for each. What it raises becomes the
            result of all items of its batch.
        max_batch: the most items in a batch.
        max_wait: seconds that an idle batcher waits for a full batch after its first item came.
        at_once: the most batches that are computed at the same time, all but one of them full.
        on_batch: called with each batch's `Ran`, in the thread that computed it.
    """

    def __init__(
        self,
        compute: Callable[[list[Item]], Sequence[Result]],
        *,
        max_batch: int,
        max_wait: float = 0.0,
        at_once: int = 1,
        on_batch: Callable[[Ran], None] = lambda _: None,
    ) -> None:
        self._compute, self._on_batch = compute, on_batch
        self._max_batch, self._max_wait = max_batch, max_wait
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._changed = Condition()
        self._closed, self._running = False, 0
        self._threads = [
            Thread(target=self._run, name=f"splitattn-batcher-{number}", daemon=True)
            for number in range(at_once)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, item: Item, arrived: float | None = None) -> "Future[Result]":
        """Have `item` computed.

        Args:
            arrived: the time of its arrival, by `time.monotonic`; None is now. An image that took
                long to decode is so computed before images that arrived later.

        Raises:
            RuntimeError: the batcher is closed.
        """
        now = time.monotonic()
        entry: _Entry[Item, Result] = _Entry(
            item=item, future=Future(), arrived=now if arrived is None else arrived, since=now
        )
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            insort(self._waiting, entry, key=_arrival)
            self._changed.notify()
        entry.future.add_done_callback(self._forget)
        return entry.future

    def close(self) -> None:
        """Compute what has been submitted, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        give_way()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._may_start() or self._is_done())
                if self._is_done():
                    return
                if self._max_wait and not self._running:
                    first = self._waiting[0]
                    left = first.since + self._max_wait - time.monotonic()
                    self._changed.wait_for(self._is_full, max(left, 0))
                    if not self._waiting or self._waiting[0] is not first:
                        continue  # another thread took it, or its caller left
                batch = self._taken() if self._may_start() else []
                self._running += bool(batch)
            if batch:
                try:
                    self._run_batch(batch)
                finally:
                    with self._changed:
                        self._running -= 1
                        self._changed.notify_all()
            batch = []  # frees its images now, and not when the next batch comes

    def _may_start(self) -> bool:
        """Whether a batch may start. While another one is computed, it must be full."""
        return bool(self._waiting) and (not self._running or self._is_full())

    def _is_done(self) -> bool:
        return self._closed and not self._waiting

    def _forget(self, future: "Future[Result]") -> None:
        """Drop the item of a future that was canceled, rather than hold it until its turn."""
        if future.cancelled():
            with self._changed:
                left = [entry for entry in self._waiting if entry.future is not future]
                self._waiting = deque(left)

    def _is_full(self) -> bool:
        return len(self._waiting) >= self._max_batch or self._closed

    def _taken(self) -> list[_Entry[Item, Result]]:
        """The next batch, without canceled items."""
        batch: list[_Entry[Item, Result]] = []
        while self._waiting and len(batch) < self._max_batch:
            entry = self._waiting.popleft()
            if entry.future.set_running_or_notify_cancel():
                batch.append(entry)
        return batch

    def _run_batch(self, batch: list[_Entry[Item, Result]]) -> None:
        start = time.monotonic()
        try:
            results = self._compute([entry.item for entry in batch])
            for entry, result in zip(batch, results, strict=True):
                entry.future.set_result(result)
        except Exception as error:
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(error)
        waited = tuple(start - entry.since for entry in batch)
        self._on_batch(Ran(size=len(batch), seconds=time.monotonic() - start, waited=waited))
