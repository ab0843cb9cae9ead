"""Servers that want a client to wait, to take all memory, or to go elsewhere."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from splitattn.web import RefusedError, WebError, WebTimeoutError, get

Answer = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
# What a server that never ends may be asked for, and how much longer a busy machine may take.
SECONDS, GRACE = 0.2, 3.0


class Server:
    """Answers every request alike, over a bare socket; `requests` are its first lines."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.over = threading.Event()
        self.requests: list[bytes] = []
        self.sent = 0
        self.answer: Answer = lambda _: None
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self.requests.append(connection.recv(65536).partition(b"\r\n")[0])
            self.answer(connection)

    def sends(self, *parts: bytes, again: bytes = b"", pause: float = 0.02) -> None:
        """Answer with `parts`, and with `again` over and over."""

        def answer(connection: socket.socket) -> None:
            for part in parts:
                connection.sendall(part)
            while again and not self.over.is_set():
                connection.sendall(again)
                self.sent += len(again)
                time.sleep(pause)

        self.answer = answer

    def redirects(self, location: str, *, again: bytes = b"") -> None:
        head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\n".encode()
        self.sends(head + (b"\r\n" if again else b"Content-Length: 0\r\n\r\n"), again=again)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.over.set()
    running.listener.close()


def body(url: str, *, seconds: float = 5.0, timeout: float | None = None) -> bytes:
    with get(url, seconds=seconds, timeout=timeout) as reply:
        return b"".join(reply.chunks())


@pytest.mark.parametrize(
    ("parts", "again"),
    [
        ([], b""),
        ([OK + b"X: "], b"a"),
        ([], b"HTTP/1.1 100 Continue\r\n\r\n" * 20),
        ([], b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"),
        ([CHUNKED], b"0"),
        ([CHUNKED], b"1\r\nx\r\n"),
        ([CHUNKED, b"1\r\nx\r\n0\r\n"], b"T: x\r\n"),
        ([OK + b"Content-Length: 1000000\r\n\r\n"], b"x"),
        ([OK + b"\r\n"], b"x"),
    ],
    ids=[
        *("silence", "header", "continue", "hints", "chunk-size", "chunks", "trailers", "body"),
        "body-without-length",
    ],
)
def test_the_deadline_holds_for_every_part_of_an_answer(
    server: Server, parts: list[bytes], again: bytes
) -> None:
    server.sends(*parts, again=again)
    if not again:
        server.answer = lambda _: server.over.wait(10) and None  # type: ignore[func-returns-value]
    started = time.monotonic()
    with pytest.raises(WebTimeoutError, match="no answer in time"):
        body(server.url, seconds=SECONDS)
    assert time.monotonic() - started < SECONDS + GRACE


def test_headers_have_a_deadline_of_their_own(server: Server) -> None:
    server.sends(OK + b"X: ", again=b"a")
    started = time.monotonic()
    with pytest.raises(WebTimeoutError):
        body(server.url, seconds=60, timeout=SECONDS)
    assert time.monotonic() - started < SECONDS + GRACE


def test_a_body_may_take_longer_than_its_headers(server: Server) -> None:
    def slowly(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: 4\r\n\r\n")
        for byte in (b"a", b"b", b"c", b"d"):
            time.sleep(0.15)
            connection.sendall(byte)

    server.answer = slowly
    assert body(server.url, seconds=30, timeout=0.4) == b"abcd"


def test_redirects_are_followed_as_far_as_a_browser_does(server: Server) -> None:
    server.redirects("/again")
    with pytest.raises(WebError, match="redirects more than 20 times"):
        body(server.url)
    assert len(server.requests) == 21


def test_the_body_of_a_redirect_is_not_read(server: Server) -> None:
    server.redirects("/again", again=b"x" * 2**16)
    with pytest.raises(WebError, match="redirects more than 20 times"):
        body(server.url)


@pytest.mark.parametrize("scheme", ["ftp", "file", "gopher", "data", "unix"])
def test_redirects_lead_to_http_alone(server: Server, scheme: str) -> None:
    server.redirects(f"{scheme}://127.0.0.1:1/etc/passwd")
    with pytest.raises(WebError, match=f"redirects to {scheme}:.*only http and https"):
        body(server.url)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (OK + b"Content-Length: -5\r\n\r\nabc", r"\S"),
        (OK + b"Content-Length: 5, 6\r\n\r\nabc", r"\S"),
        (OK + b"Content-Length: 1e3\r\n\r\nabc", r"\S"),
        (b"HTTP/1.1 302 F\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n", r"\S"),
        (b"SSH-2.0-OpenSSH\r\n", r"\S"),
        (OK + b"X: " + b"a" * 200_000 + b"\r\n\r\n", r"\S"),
        (OK + b"Content-Length: 100\r\n\r\nshort", "incomplete|peer closed"),
    ],
    ids=["negative", "two", "exponent", "location", "ssh", "large-header", "short"],
)
def test_what_is_no_http_is_one_line(server: Server, head: bytes, reason: str) -> None:
    server.sends(head)
    with pytest.raises(WebError, match=reason) as error:
        body(server.url, seconds=2)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_refusal_is_told_with_its_status(server: Server) -> None:
    server.sends(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(RefusedError, match=re.escape("HTTP 404 Not Found")):
        body(server.url)


def test_nothing_is_unpacked(server: Server) -> None:
    server.sends(OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc")
    assert body(server.url) == b"abc"


def test_what_the_caller_raises_stays_what_it_is(server: Server) -> None:
    server.sends(OK + b"Content-Length: 3\r\n\r\nabc")
    with pytest.raises(ValueError, match="mine"), get(server.url, seconds=5):
        raise ValueError("mine")
