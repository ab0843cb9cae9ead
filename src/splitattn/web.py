"""Reads files from the web, within one deadline.

The deadline covers all of an exchange: name and connection, TLS, headers, informational answers,
redirects, body and trailers. A timeout for each read, which is all that HTTP clients offer, would
let a server that sends a byte now and then go on for ever.

A server has `PATIENCE` seconds, and each `SLOWEST` bytes of the body that arrive are worth another
second. No more than `PATIENCE` seconds can be saved up.
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

# As many as browsers follow.
_MOST_REDIRECTS = 20
_SCHEMES = ("http", "https")


class WebError(OSError):
    """A file cannot be read from the web. The message does not name the URL."""


class WebTimeoutError(WebError):
    """The server did not answer in time."""


class RefusedError(WebError):
    """The server answered with a status that is an error."""


class Deadline:
    """When a server is too slow, by the rule of this module.

    Args:
        seconds: how many a server has before anything arrives; None is `PATIENCE`.
        most: seconds for everything, however fast the server is.
    """

    def __init__(self, seconds: float | None = None, *, most: float = math.inf) -> None:
        self._start = time.monotonic()
        self._patience = PATIENCE if seconds is None else seconds
        self._end = self._start + self._patience
        self._last = self._start + most
        self._received = 0

    def receive(self, count: int) -> None:
        """Grant the server time for `count` bytes that have arrived."""
        self._received += count
        self._end = min(self._end + count / SLOWEST, time.monotonic() + self._patience)

    def left(self) -> float:
        """Seconds until the server is too slow."""
        return min(self._end, self._last) - time.monotonic()

    def missed(self) -> "WebTimeoutError":
        """The error for a server that is too slow."""
        seconds = time.monotonic() - self._start
        return WebTimeoutError(f"too slow, {self._received:,} bytes in {seconds:.1f} s")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A server's answer to a request that succeeded.

    Attributes:
        status: 200, or 206 if it has the range that was asked for.
        length: bytes in the body, or None if the server does not say.
    """

    status: int
    length: int | None
    _response: "Response"
    _watch: "_Watch"

    def chunks(self) -> Iterator[bytes]:
        """The body, piece by piece.

        Raises:
            WebError: the server is too slow, or breaks off.
        """
        with _in_words(self._watch):
            for chunk in self._response.iter_raw():
                self._watch.deadline.receive(len(chunk))
                yield chunk


@contextmanager
def get(url: str, *, seconds: float = math.inf, headers: Mapping[str, str] = {}) -> Iterator[Reply]:
    """Ask for `url`, following redirects to http and https. Nothing of their bodies is read.

    Args:
        seconds: for everything until this context ends, however fast the server is.
        headers: sent with the request.

    Raises:
        RefusedError: the server answers with an error.
        WebTimeoutError: it is too slow.
        WebError: it cannot be reached, does not speak HTTP, or redirects too often or elsewhere.
    """
    with _Watch(Deadline(most=seconds)) as watch:
        with _in_words(watch):
            # In a thread, since nothing ends the search for a server's name.
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
    """The result of `call`, which has no deadline of its own.

    Raises:
        WebTimeoutError: it takes longer. It goes on in a thread that does not keep the process
            alive.
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
    """The first answer that is no redirect, and the client that got it."""
    import httpx2  # only what needs the web pays for it

    # A body that is compressed could unfold to more than any limit.
    plain = {"User-Agent": "splitattn", "Accept-Encoding": "identity", **headers}
    client = httpx2.Client(verify=_tls(), timeout=max(watch.deadline.left(), 0.001), headers=plain)
    try:
        for redirects in range(_MOST_REDIRECTS + 1):
            request = client.build_request("GET", url, extensions={"trace": watch.trace})
            if request.url.scheme not in _SCHEMES or not request.url.host:
                said = f"it redirects to {url[:200]}" if redirects else "it is no web address"
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
    """Ends connections when their time is over, whatever they wait for."""

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
        """Take part in what httpx2 reports of a request: the connections that it makes."""
        if not event.endswith("connect_tcp.complete"):
            return
        connection = info["return_value"].get_extra_info("socket")
        with self._lock:
            if self.expired or self._over.is_set():
                _end(connection)
            else:
                # A duplicate stays what it is while TLS takes the original over.
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
    if watch.expired:  # a body without a length ends where its connection does
        raise watch.deadline.missed()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
