"""From requests' images to answers: admission, decoding, batches, deadlines; but no routes."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from threading import Thread
from typing import Any, Literal, TypeVar

from starlette.requests import ClientDisconnect, Request

from splitattn.errors import ImageError
from splitattn.processes import give_way
from splitattn.serving.batcher import Batcher
from splitattn.serving.metrics import Metrics
from splitattn.serving.request_errors import RequestError, queue_full, too_large, unavailable
from splitattn.serving.served import Options, Served
from splitattn.serving.settings import Settings

LOG = logging.getLogger("splitattn.serving")
T = TypeVar("T")
State = Literal["loading", "ready", "failed", "draining", "stopping"]


class Service:
    """One model with everything around it that a server needs.

    Args:
        served: the model.
        settings: limits and options.

    Attributes:
        state: "loading" until `start` has compiled, "failed" if it could not; "draining" while
            requests are still answered but no more should come; "stopping" when no more are taken.
        metrics: counters and times.
    """

    def __init__(self, served: Served, settings: Settings) -> None:
        self.served, self.settings = served, settings
        self.state: State = "loading"
        self._images, self._bytes = 0, 0
        self.metrics = Metrics(
            queued=lambda: self._images,
            queued_bytes=lambda: self._bytes,
            ready=lambda: float(self.state == "ready"),
        )
        workers = settings.workers or min(32, (os.cpu_count() or 1) + 4)
        # These threads give way to the one that answers, so that refusals need not wait for them.
        self._pool = ThreadPoolExecutor(workers, "splitattn-decode", initializer=give_way)
        # Bodies are parsed in a thread of their own, so that they need not wait for images: images
        # can be counted or refused only after that.
        self._readers = ThreadPoolExecutor(1, "splitattn-read")
        self._max_batch = min(settings.max_batch, served.most_of_a_batch or settings.max_batch)
        # How many images are decoded or computed at a time: several batches, so that no batch waits
        # for one large image.
        self._decoded = asyncio.Semaphore(max(4 * self._max_batch, workers))
        self._batcher: Batcher[Any, Any] = Batcher(
            served.compute,
            max_batch=self._max_batch,
            max_wait=settings.max_wait,
            at_once=served.batches_at_once,
            on_batch=self.metrics.on_batch,
        )
        self._explaining = Thread(target=self._prepare_explanations, name="splitattn-explain")

    def start(self) -> None:
        """Compile for single images and full batches; then the service is ready.

        Explanations are prepared after that, in a thread; the first requests for one wait for it.
        """
        try:
            self.served.prepare(sorted({1, self._max_batch}))
        except Exception:
            LOG.exception("the model cannot be prepared")
            self.state = "failed"
            return
        if self.state == "loading":
            self.state = "ready"
        if self.served.explains:
            self._explaining.start()

    def _prepare_explanations(self) -> None:
        try:
            self.served.prepare_explanations()
        except Exception:
            LOG.exception("explanations cannot be prepared")

    def drain(self) -> None:
        """Report that the service is no longer ready; requests are still taken."""
        self.state = "draining"

    def stop(self) -> None:
        """Take no more requests."""
        self.state = "stopping"

    @property
    def is_ending(self) -> bool:
        """Whether the service is about to end, so that clients should ask elsewhere."""
        return self.state in ("draining", "stopping")

    def close(self) -> None:
        """Answer what was accepted, then end all threads."""
        self.stop()
        if self._explaining.ident is not None:
            self._explaining.join()
        self._readers.shutdown()
        self._pool.shutdown()
        self._batcher.close()

    def check_ready(self) -> None:
        """Raise `RequestError` if requests are not taken (503) or the queue is full (429)."""
        if self.state in ("loading", "failed", "stopping"):
            raise unavailable(self.state)
        self._check_room(1)

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Receive the body of a request. Its bytes count as held until the block ends.

        Raises:
            RequestError: it is too large (413), too slow (408), or too many bytes are held (429).
        """
        settings = self.settings
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > settings.max_body:
            raise _body_too_large(settings)
        chunks, own = [], 0
        try:
            try:
                async with asyncio.timeout(settings.body_timeout):
                    async for chunk in request.stream():
                        own += len(chunk)
                        self._bytes += len(chunk)
                        if own > settings.max_body:
                            raise _body_too_large(settings)
                        if self._bytes > settings.max_queued_bytes:
                            raise queue_full(
                                f"requests may hold {settings.max_queued_bytes:,} bytes together, "
                                "got more: send it again"
                            )
                        chunks.append(chunk)
            except TimeoutError:
                raise RequestError(
                    408,
                    "body_timeout",
                    f"a body must arrive within {settings.body_timeout:g} s, this one took longer",
                    {"Connection": "close"},
                ) from None
            yield b"".join(chunks)
        finally:
            self._bytes -= own

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that parses a body, in the thread for bodies."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that computes, in one of the threads that decode."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    @contextmanager
    def admitted(self, images: int) -> Iterator[None]:
        """Count `images` images as part of the queue until the block ends.

        Raises:
            RequestError: the queue is full (429).
        """
        self._check_room(images)
        self._images += images
        try:
            yield
        finally:
            self._images -= images

    async def answer(self, name: str, content: bytes | RequestError, options: Options) -> Any:
        """The model's answer for an image, as JSON; raises as `each`."""
        in_thread = any(options.get(slow) for slow in self.served.slow)

        def answer(loaded: Any, result: Any) -> dict[str, Any]:
            return self.served.answer(loaded, result, options, name)

        return await self.each(name, content, options, answer, in_thread=in_thread)

    async def each(
        self,
        name: str,
        content: bytes | RequestError,
        options: Options,
        finish: Callable[[Any, Any], T],
        *,
        in_thread: bool = False,
    ) -> T:
        """Decode an image, run the model on it, and return `finish(loaded, result)`.

        Args:
            content: the encoded image; a `RequestError` is raised.
            in_thread: call `finish` in a thread, since it takes long.

        Raises:
            ImageError: the image cannot be used.
        """
        arrived = time.monotonic()
        with self._counted():
            if isinstance(content, RequestError):
                raise content
            async with self._loaded(name, content, options) as loaded:
                result = await asyncio.wrap_future(self._batcher.submit(loaded, arrived))
                if in_thread:
                    return await self.in_thread(finish, loaded, result)
                return finish(loaded, result)

    async def explain(
        self,
        name: str,
        content: bytes | RequestError,
        label: str | None,
        method: str,
        finish: Callable[[Any], T],
    ) -> T:
        """Explain a label of an image, and return `finish(explanation)`; raises as `each`."""
        with self._counted():
            if isinstance(content, RequestError):
                raise content
            async with self._loaded(name, content, {"explain": True}) as loaded:
                return await self.in_thread(
                    lambda: finish(self._explained(loaded, label, method, name))
                )

    async def run(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is canceled if the client leaves or the deadline passes.

        Raises:
            RequestError: the deadline has passed (504).
            ClientDisconnect: the client has left.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait(
                {task, gone},
                timeout=self.settings.deadline,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if task.done():
                return task.result()
            self.metrics.dropped.labels("client_left" if gone.done() else "deadline").inc()
            if gone.done():
                raise ClientDisconnect
            raise RequestError(
                504,
                "deadline",
                f"no answer within {self.settings.deadline:g} s: send it again later",
            )
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count an image among the answered ones, or those with an error."""
        try:
            yield
        except (ImageError, RequestError):
            self.metrics.images.labels("error").inc()
            raise
        self.metrics.images.labels("answered").inc()

    @asynccontextmanager
    async def _loaded(self, name: str, content: bytes, options: Options) -> AsyncIterator[Any]:
        """Decode an image, which is held until the block ends, within the limit of held images."""
        started = time.monotonic()
        async with self._decoded:
            self.metrics.on_stage("wait", time.monotonic() - started)
            yield await self.in_thread(self._load, content, name, options)

    def _load(self, content: bytes, name: str, options: Options) -> Any:
        with self.metrics.stage("decode"):
            return self.served.load(content, self.settings.limits, name, options)

    def _explained(self, loaded: Any, label: str | None, method: str, name: str) -> Any:
        with self.metrics.stage("explain"):
            return self.served.explain(loaded, label, method, name)

    def _check_room(self, images: int) -> None:
        if self._images + images > self.settings.max_queue:
            raise queue_full(
                f"{self._images} images are waiting, and at most {self.settings.max_queue} may: "
                "send it again"
            )


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all in order. The first that fails ends the others, and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _left(request: Request) -> None:
    """Wait until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _body_too_large(settings: Settings) -> RequestError:
    return too_large(f"a request may have {settings.max_body} bytes, got more: send less at a time")
