"""Hostile servers: they stall, send too much, or redirect elsewhere."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from splitattn import web
from splitattn.web import Deadline, RefusedError, WebError, WebTimeoutError, get, within

Answer = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
# The deadline for servers that never end, and the extra time for a busy machine.
SECONDS, GRACE = 0.2, 3.0


class Server:
    """A server that gives every request the same answer; `requests` has their first lines."""

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
        """Answer with `parts`, then send `again` repeatedly, until the test ends."""

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


def body(url: str, *, seconds: float = 5.0) -> bytes:
    with get(url, seconds=seconds) as reply:
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
    with pytest.raises(WebTimeoutError, match=r"too slow, [0-9,]+ bytes in"):
        body(server.url, seconds=SECONDS)
    assert time.monotonic() - started < SECONDS + GRACE


@pytest.mark.parametrize(
    ("parts", "again"),
    [
        ([OK + b"X: "], b"a"),
        ([OK + b"Content-Length: 1000000000\r\n\r\n"], b"x"),
        ([CHUNKED, b"1\r\nx\r\n0\r\n"], b"T: x\r\n"),
        ([OK + b"\r\n" + b"x" * 1_000_000], b"x"),
    ],
    ids=["header", "body", "trailers", "fast-then-slow"],
)
def test_a_server_without_a_total_must_keep_up_a_rate(
    server: Server, monkeypatch: pytest.MonkeyPatch, parts: list[bytes], again: bytes
) -> None:
    monkeypatch.setattr(web, "PATIENCE", SECONDS)
    server.sends(*parts, again=again)
    started = time.monotonic()
    with pytest.raises(WebTimeoutError):
        body(server.url, seconds=3600)
    assert time.monotonic() - started < SECONDS + GRACE


def test_a_body_that_keeps_up_the_rate_may_take_longer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PATIENCE", 1.0)
    monkeypatch.setattr(web, "SLOWEST", 1)

    def slowly(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: 4\r\n\r\n")
        for byte in (b"a", b"b", b"c", b"d"):
            time.sleep(0.35)
            connection.sendall(byte)

    server.answer = slowly
    assert body(server.url, seconds=30) == b"abcd"


def test_name_resolution_is_within_the_deadline(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = socket.getaddrinfo
    found = threading.Event()

    def slowly(*arguments: Any, **options: Any) -> Any:
        server.over.wait(10)
        found.set()
        return find(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    started = time.monotonic()
    with pytest.raises(WebTimeoutError, match="too slow, 0 bytes"):
        body(server.url, seconds=SECONDS)
    assert time.monotonic() - started < SECONDS + GRACE
    server.over.set()
    assert found.wait(5)
    # If the server is still connected to, it gets no request.
    assert not any(server.requests)


def test_a_deadline_moves_with_what_arrives_but_saves_up_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    deadline = Deadline(8.0, most=60.0)
    now += 6
    assert deadline.left() == 2
    deadline.receive(3 * web.SLOWEST)
    assert deadline.left() == 5
    deadline.receive(10**9)
    assert deadline.left() == 8
    now += 50
    deadline.receive(10**9)
    assert deadline.left() == 4
    assert str(deadline.missed()) == "too slow, 2,000,049,152 bytes in 56.0 s"


def test_errors_of_a_call_are_raised_even_if_they_are_timeouts() -> None:
    def fails() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        within(Deadline(5.0), fails)


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


@pytest.mark.parametrize("url", ["https:///photo.jpg", "http://", "ftp://127.0.0.1/photo.jpg"])
def test_redirects_to_invalid_addresses_are_refused(url: str) -> None:
    with pytest.raises(WebError, match="it is not a web address; only http and https"), get(url):
        pass


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
def test_answers_that_are_not_http_are_reported_in_one_line(
    server: Server, head: bytes, reason: str
) -> None:
    server.sends(head)
    with pytest.raises(WebError, match=reason) as error:
        body(server.url, seconds=2)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_an_error_status_is_reported(server: Server) -> None:
    server.sends(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(RefusedError, match=re.escape("HTTP 404 Not Found")):
        body(server.url)


def test_nothing_is_unpacked(server: Server) -> None:
    server.sends(OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc")
    assert body(server.url) == b"abc"


def test_exceptions_of_the_caller_are_passed_through(server: Server) -> None:
    server.sends(OK + b"Content-Length: 3\r\n\r\nabc")
    with pytest.raises(ValueError, match="mine"), get(server.url, seconds=5):
        raise ValueError("mine")
