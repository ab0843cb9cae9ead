"""From requests' images to answers: admission, decoding, batches, deadlines. It knows no routes."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

from starlette.requests import ClientDisconnect, Request

from splitattn.errors import ImageError
from splitattn.serving.batcher import Batcher
from splitattn.serving.bodies import Sent
from splitattn.serving.metrics import Metrics
from splitattn.serving.request_errors import (
    RequestError,
    bad_image,
    bad_value,
    queue_full,
    too_large,
    unavailable,
)
from splitattn.serving.served import Options, Served, ServedClassifier, explanation_as_json
from splitattn.serving.settings import Settings

T = TypeVar("T")
State = Literal["loading", "ready", "draining", "stopping"]


class Service:
    """One model with everything around it that a server needs.

    Args:
        served: the model.
        settings: see there.

    Attributes:
        state: "loading" until `start` has compiled; "draining" while requests are still answered
            but no more should come; "stopping" when no more are taken.
        metrics: see there.
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
        self._pool = ThreadPoolExecutor(settings.workers, "splitattn-decode")
        # Bodies do not wait behind images: only what is read can be counted or refused.
        self._readers = ThreadPoolExecutor(1, "splitattn-read")
        self._max_batch = min(settings.max_batch, served.most_of_a_batch or settings.max_batch)
        self._batcher: Batcher[Any, Any] = Batcher(
            served.compute,
            max_batch=self._max_batch,
            max_wait=settings.max_wait,
            on_batch=self.metrics.on_batch,
        )

    @property
    def explains(self) -> bool:
        """Whether it answers what labels rest on."""
        return self.settings.explain and self.served.explains

    def start(self) -> None:
        """Compile for single images and full batches; then the service is ready."""
        self.served.prepare(sorted({1, self._max_batch}))
        if self.state == "loading":
            self.state = "ready"

    def drain(self) -> None:
        """Say that no more requests should come."""
        self.state = "draining"

    def stop(self) -> None:
        """Take no more requests."""
        self.state = "stopping"

    def close(self) -> None:
        """Answer what was accepted, then end all threads."""
        self.stop()
        self._readers.shutdown()
        self._pool.shutdown()
        self._batcher.close()

    def check_ready(self) -> None:
        """Raise while the service is loading or stopping, or where the queue is full already."""
        if self.state in ("loading", "stopping"):
            raise unavailable(self.state)
        self._check_room(1)

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, counted among the bytes that are held until the block ends.

        Raises:
            RequestError: it is too large (413), too slow (408), or too much is held (429).
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
                            raise queue_full("too much is waiting to be answered: send it again")
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
        """Call a function that takes a body apart, in a thread for that alone."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that computes, in a thread that decodes."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def predict(self, request: Request, sent: Sent, options: Options) -> list[dict[str, Any]]:
        """An answer for each image in order, or the error that says why it has none.

        Raises:
            RequestError: the queue is full (429), or the deadline has passed (504).
        """
        answers = (self._one(name, content, options) for name, content in sent.images)
        return await self.run(request, len(sent.images), together(answers))

    async def explain(
        self, request: Request, name: str, content: bytes, label: str | None, method: str
    ) -> Any:
        """The explanation of a label, an `Explanation`.

        Raises:
            RequestError: as `predict`, or the request or the image is wrong.
        """
        served = self.served
        if not self.explains or not isinstance(served, ServedClassifier):
            raise RequestError(404, "not_found", "this service explains no labels")
        if method not in ("auto", "cam", "layercam"):  # others take minutes
            raise bad_value(f"method must be auto, cam or layercam, got {method!r:.60}")

        def explained() -> Any:
            served.load(content, self.settings.limits, name)  # within the service's limits
            return served.explain(content, label, method, name)

        try:
            return await self.run(request, 1, self.in_thread(explained))
        except ImageError as error:
            raise bad_image(str(error)) from error

    async def computed(self, name: str, content: bytes) -> tuple[Any, Any]:
        """An image as it is loaded, and what the model gives for it; raises `ImageError`."""
        loaded = await self.in_thread(self._load, content, name)
        return loaded, await asyncio.wrap_future(self._batcher.submit(loaded))

    async def run(self, request: Request, images: int, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives, which counts as so many images of the queue.

        It is canceled if the client leaves or the deadline passes.

        Raises:
            RequestError: the queue is full (429), or the deadline has passed (504).
            ClientDisconnect: the client has left.
        """
        try:
            self._check_room(images)
        except RequestError:
            work.close()
            raise
        self._images += images
        try:
            return await self._while_wanted(request, work)
        finally:
            self._images -= images

    async def _one(
        self, name: str, content: bytes | RequestError, options: Options
    ) -> dict[str, Any]:
        try:
            if isinstance(content, RequestError):
                raise content
            found = await self._answer(name, content, options)
        except ImageError as error:
            found = bad_image(str(error)).as_dict()
        except RequestError as error:
            found = error.as_dict()
        self.metrics.images.labels("error" if "error" in found else "answered").inc()
        return {"name": name, **found}

    async def _answer(self, name: str, content: bytes, options: Options) -> dict[str, Any]:
        loaded, result = await self.computed(name, content)
        if options.get("draw") or options.get("masks"):
            return await self.in_thread(self.served.answer, loaded, result, options, name)
        found = self.served.answer(loaded, result, options, name)
        if options.get("explain") and self.explains and isinstance(self.served, ServedClassifier):
            # An image that may have several classes may have none: the best one is explained.
            explain, label = self.served.explain, int(result.argmax())
            explained = await self.in_thread(explain, content, label, "auto", name)
            found["explanation"] = await self.in_thread(explanation_as_json, explained)
        return found

    def _load(self, content: bytes, name: str) -> Any:
        started = time.monotonic()
        loaded = self.served.load(content, self.settings.limits, name)
        self.metrics.on_stage("decode", time.monotonic() - started)
        return loaded

    def _check_room(self, images: int) -> None:
        if self._images + images > self.settings.max_queue:
            raise queue_full(
                f"{self._images} images are waiting, and at most {self.settings.max_queue} may: "
                "send it again"
            )

    async def _while_wanted(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
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
            reason = "client_left" if gone.done() else "deadline"
            self.metrics.dropped.labels(reason).inc()
            if gone.done():
                raise ClientDisconnect
            raise RequestError(
                504,
                "deadline",
                f"no answer within {self.settings.deadline:g} s: send it again later",
            )
        finally:
            gone.cancel()
            if not task.done():
                task.cancel()


async def together(works: Iterable[Awaitable[T]]) -> list[T]:
    return await asyncio.gather(*works)


async def _left(request: Request) -> None:
    """Wait until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _body_too_large(settings: Settings) -> RequestError:
    return too_large(f"a request may have {settings.max_body} bytes, got more: send less at a time")


def asked(query: Mapping[str, str], *known: str) -> Mapping[str, str]:
    """`query`, which may have these parameters only.

    Raises:
        RequestError: it has others.
    """
    for name in query:
        if name not in known:
            raise bad_value(f"parameters here are {', '.join(known)}; got {name!r:.60}")
    return query
