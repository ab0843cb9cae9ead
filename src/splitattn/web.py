"""Reads files from the web, within one deadline.

The deadline covers the whole exchange: name lookup, connection, TLS, headers, informational
responses, redirects, body and trailers. HTTP clients only have a timeout for each read, with which
a server that sends a byte now and then could go on forever.

A server has `PATIENCE` seconds, plus one second for every `SLOWEST` bytes of the body that arrive.
It never has more than `PATIENCE` seconds left.
"""

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ssl import SSLContext

    from httpx2 import Client, Response

PATIENCE = 8.0
SLOWEST = 1 << 14

T = TypeVar("T")

# Browsers follow as many redirects.
_MOST_REDIRECTS = 20
_SCHEMES = ("http", "https")


class WebError(OSError):
    """A file cannot be read from the web. The message does not name the URL."""


class WebTimeoutError(WebError):
    """The server did not answer in time."""


class RefusedError(WebError):
    """The server answered with an error status."""


class Deadline:
    """The time limit of an exchange, by the rule of this module.

    Args:
        seconds: time for the server before anything arrives; None for `PATIENCE`.
        most: limit in seconds for the whole exchange.
    """

    def __init__(self, seconds: float | None = None, *, most: float = math.inf) -> None:
        self._start = time.monotonic()
        self._patience = PATIENCE if seconds is None else seconds
        self._end = self._start + self._patience
        self._last = self._start + most
        self._received = 0

    def receive(self, count: int) -> None:
        """Extend the time by the share of `count` bytes that have arrived."""
        self._received += count
        self._end = min(self._end + count / SLOWEST, time.monotonic() + self._patience)

    def left(self) -> float:
        """Seconds left."""
        return min(self._end, self._last) - time.monotonic()

    def missed(self) -> "WebTimeoutError":
        """The error for a server that is too slow."""
        seconds = time.monotonic() - self._start
        return WebTimeoutError(f"too slow, {self._received:,} bytes in {seconds:.1f} s")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A server's response to a successful request.

    Attributes:
        status: 200, or 206 for the requested range.
        length: bytes in the body, or None if the server does not state it.
    """

    status: int
    length: int | None
    _response: "Response"
    _watch: "_Watch"

    def chunks(self) -> Iterator[bytes]:
        """Yield the body in chunks.

        Raises:
            WebError: the server is too slow, or the connection breaks.
        """
        with _in_words(self._watch):
            for chunk in self._response.iter_raw():
                self._watch.deadline.receive(len(chunk))
                yield chunk


@contextmanager
def get(url: str, *, seconds: float = math.inf, headers: Mapping[str, str] = {}) -> Iterator[Reply]:
    """Request `url`; follow redirects to http and https, without reading their bodies.

    Args:
        seconds: limit for everything until the context ends.
        headers: sent with the request.

    Raises:
        RefusedError: the server answers with an error.
        WebTimeoutError: it is too slow.
        WebError: it cannot be reached, does not speak HTTP, or redirects too often or elsewhere.
    """
    with _Watch(Deadline(most=seconds)) as watch:
        with _in_words(watch):
            # In a thread, since a name lookup cannot be canceled.
            client, response = within(watch.deadline, partial(_answer, url, headers, watch))
        try:
            if response.status_code not in (200, 206):
                raise RefusedError(f"HTTP {response.status_code} {response.reason_phrase}")
            length = response.headers.get("Content-Length", "")
            yield Reply(
                status=response.status_code,
                length=int(length) if length.isdecimal() else None,
                _response=response,
                _watch=watch,
            )
        finally:
            response.close()
            client.close()


def within(deadline: Deadline, call: Callable[[], T]) -> T:
    """The result of `call`, limited by `deadline`.

    Raises:
        WebTimeoutError: it takes longer. It continues in a daemon thread.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while (left := deadline.left()) > 0:
        wait([outcome], left)
        if outcome.done():
            return outcome.result()
    raise deadline.missed()


def _answer(url: str, headers: Mapping[str, str], watch: "_Watch") -> tuple["Client", "Response"]:
    """The first response that is not a redirect, and its client."""
    import httpx2  # slow to import, and only needed here

    # No compression: a small body could decompress to more than any limit.
    plain = {"User-Agent": "splitattn", "Accept-Encoding": "identity", **headers}
    client = httpx2.Client(verify=_tls(), timeout=max(watch.deadline.left(), 0.001), headers=plain)
    try:
        for redirects in range(_MOST_REDIRECTS + 1):
            request = client.build_request("GET", url, extensions={"trace": watch.trace})
            if request.url.scheme not in _SCHEMES or not request.url.host:
                said = f"it redirects to {url[:200]}" if redirects else "it is not a web address"
                raise WebError(f"{said}; only http and https with a host are read")
            response = client.send(request, stream=True)
            if response.next_request is None:
                return client, response
            url = str(response.next_request.url)
            response.close()
        raise WebError(f"it redirects more than {_MOST_REDIRECTS} times")
    except BaseException:
        client.close()
        raise


@cache
def _tls() -> "SSLContext":
    import httpx2

    return httpx2.create_ssl_context()


class _Watch:
    """Closes connections when their time is over, whatever they wait for."""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.expired = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> "_Watch":
        threading.Thread(target=self._wait, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with self._lock:
            self.expired = self.expired or self.deadline.left() <= 0
            for connection in self._sockets:
                connection.close()
            self._sockets.clear()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """A trace callback of httpx2 that records new connections."""
        if not event.endswith("connect_tcp.complete"):
            return
        connection = info["return_value"].get_extra_info("socket")
        with self._lock:
            if self.expired or self._over.is_set():
                _end(connection)
            else:
                # A duplicate remains usable when TLS takes over the original socket.
                self._sockets.append(socket.socket(fileno=os.dup(connection.fileno())))

    def _wait(self) -> None:
        while (left := self.deadline.left()) > 0:
            if self._over.wait(left):
                return
        with self._lock:
            self.expired = True
            for connection in self._sockets:
                _end(connection)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _in_words(watch: _Watch) -> Iterator[None]:
    """Turn every error of the HTTP library into a `WebError` of one line."""
    import httpx2

    try:
        yield
    except WebError:
        raise
    except httpx2.TimeoutException as error:
        raise watch.deadline.missed() from error
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ValueError) as error:
        if watch.expired:
            raise watch.deadline.missed() from error
        unreachable = isinstance(error, httpx2.ConnectError)
        what = "the server cannot be reached: " if unreachable else ""
        raise WebError(f"{what}{_one_line(error)}") from error
    if watch.expired:  # a body without a length looks complete when its connection is closed
        raise watch.deadline.missed()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
