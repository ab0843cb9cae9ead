"""What a service measures of itself, in the format of Prometheus."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from splitattn.serving.batcher import Ran

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters of one service; each has a registry of its own.

    Args:
        queued: how many images wait or are computed.
        queued_bytes: of the request bodies that are held.
        ready: whether requests are taken.
    """

    def __init__(
        self,
        *,
        queued: Callable[[], float],
        queued_bytes: Callable[[], float],
        ready: Callable[[], float],
    ) -> None:
        own = self._registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self.requests = Counter(
            "splitattn_requests", "Requests by path and status", ["path", "status"], registry=own
        )
        self.request_seconds = Histogram(
            "splitattn_request_seconds",
            "From the headers of a request to its answer",
            ["path"],
            buckets=_SECONDS,
            registry=own,
        )
        self.images = Counter(
            "splitattn_images", "Images of all routes by result", ["result"], registry=own
        )
        self._stages = Histogram(
            "splitattn_stage_seconds",
            "Time of one image, or for compute of one batch: wait, decode, queue, compute, explain",
            ["stage"],
            buckets=_SECONDS,
            registry=own,
        )
        self._batch = Histogram(
            "splitattn_batch_images",
            "Images in each batch",
            buckets=(*range(1, 9), 12, 16, 24, 32, 64),
            registry=own,
        )
        self.dropped = Counter(
            "splitattn_dropped", "Requests that were given up", ["reason"], registry=own
        )
        for name, text, value in (
            ("queue_images", "Images that wait or are computed", queued),
            ("queue_bytes", "Bytes of the request bodies that are held", queued_bytes),
            ("ready", "1 while requests are taken", ready),
        ):
            Gauge(f"splitattn_{name}", text, registry=own).set_function(value)

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Measure a block."""
        started = time.monotonic()
        yield
        self.on_stage(stage, time.monotonic() - started)

    def on_stage(self, stage: str, seconds: float) -> None:
        self._stages.labels(stage).observe(seconds)

    def on_batch(self, ran: Ran) -> None:
        self._batch.observe(ran.size)
        self.on_stage("compute", ran.seconds)
        for seconds in ran.waited:
            self.on_stage("queue", seconds)

    def text(self) -> bytes:
        """Everything, as `/metrics` gives it."""
        text: bytes = generate_latest(self._registry)
        return text
