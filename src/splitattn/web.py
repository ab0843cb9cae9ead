"""Reads files from the web, within one deadline.

The deadline covers all of an exchange: name and connection, TLS, headers, informational answers,
redirects, body and trailers. A timeout for each read, which is all that HTTP clients offer, would
let a server that sends a byte now and then go on for ever.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl import SSLContext

    from httpx2 import Client, Response

# As many as browsers follow.
_MOST_REDIRECTS = 20
_SCHEMES = ("http", "https")


class WebError(OSError):
    """A file cannot be read from the web. The message does not name the URL."""


class WebTimeoutError(WebError):
    """The server did not answer in time."""


class RefusedError(WebError):
    """The server answered with a status that is an error."""


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
            yield from self._response.iter_raw()


@contextmanager
def get(
    url: str, *, seconds: float, timeout: float | None = None, headers: Mapping[str, str] = {}
) -> Iterator[Reply]:
    """Ask for `url`, following redirects to http and https. Nothing of their bodies is read.

    Args:
        seconds: for everything until this context ends.
        timeout: seconds until the headers are there, and for each read of the body; by default
            `seconds`.
        headers: sent with the request.

    Raises:
        RefusedError: the server answers with an error.
        WebTimeoutError: it does not answer in time.
        WebError: it cannot be reached, does not speak HTTP, or redirects too often or elsewhere.
    """
    import httpx2  # only what needs the web pays for it

    deadline = time.monotonic() + seconds
    timeout = min(seconds, timeout or seconds)
    client = httpx2.Client(verify=_tls(), timeout=timeout, headers={"User-Agent": "splitattn"})
    with _Watch() as watch, client:
        with _in_words(watch):
            watch.expire_in(timeout)
            # A body that is compressed could unfold to more than any limit.
            plain = {"Accept-Encoding": "identity", **headers}
            response = _answer(client, url, plain, watch)
            watch.expire_in(deadline - time.monotonic())
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


def _answer(client: "Client", url: str, headers: Mapping[str, str], watch: "_Watch") -> "Response":
    for _ in range(_MOST_REDIRECTS + 1):
        request = client.build_request(
            "GET", url, headers=dict(headers), extensions={"trace": watch.trace}
        )
        if request.url.scheme not in _SCHEMES:
            raise WebError(f"it redirects to {url[:200]}, and only http and https are followed")
        response = client.send(request, stream=True)
        if response.next_request is None:
            return response
        url = str(response.next_request.url)
        response.close()
    raise WebError(f"it redirects more than {_MOST_REDIRECTS} times")


@cache
def _tls() -> "SSLContext":
    import httpx2

    return httpx2.create_ssl_context()


class _Watch:
    """Ends connections when their time is over, whatever they wait for."""

    def __init__(self) -> None:
        self.expired = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
        with self._lock:
            for connection in self._sockets:
                connection.close()
            self._sockets.clear()

    def expire_in(self, seconds: float) -> None:
        """Set the time that is left, in place of what was set before."""
        if self._timer:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Take part in what httpx2 reports of a request: the connections that it makes."""
        if not event.endswith("connect_tcp.complete"):
            return
        connection = info["return_value"].get_extra_info("socket")
        # A duplicate stays what it is while TLS takes the original over.
        with self._lock:
            self._sockets.append(socket.socket(fileno=os.dup(connection.fileno())))
        if self.expired:
            self._expire()

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            for connection in self._sockets:
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
        raise WebTimeoutError("no answer in time") from error
    except httpx2.ConnectError as error:
        raise WebError(f"the server cannot be reached: {_one_line(error)}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ValueError) as error:
        if watch.expired:
            raise WebTimeoutError("no answer in time") from error
        raise WebError(_one_line(error)) from error
    if watch.expired:  # a body without a length ends where its connection does
        raise WebTimeoutError("no answer in time")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
