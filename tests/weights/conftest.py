"""A local server with faults that a test chooses, and an empty cache."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from splitattn.preprocessing import center_crop
from splitattn.weights import download
from splitattn.weights.catalogue import WeightsEntry

BODY = bytes(range(256)) * 4096  # 1 MiB, which the client reads in several parts

Reply = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Server:
    """A server that answers each path with its reply and records the requests."""

    url: str
    replies: dict[str, Reply] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range header of every request."""
    closing: threading.Event = field(default_factory=threading.Event)

    def add(self, path: str, reply: Reply) -> str:
        self.replies[path] = reply
        return self.url + path


def sends(body: bytes, *, ranges: bool = True) -> Reply:
    """A reply with the whole body, or, if `ranges`, with the requested part."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers["Range"] if ranges else None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        handler.send_response(206 if asked else 200)
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        handler.wfile.write(body[start:])

    return reply


def breaks_off(body: bytes, after: int) -> Reply:
    """A reply that announces the whole body and closes the connection after a part of it."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:after])

    return reply


def stalls(body: bytes, after: int, closing: threading.Event) -> Reply:
    """A reply that announces the whole body and sends nothing after a part of it."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        breaks_off(body, after)(handler)
        handler.wfile.flush()
        closing.wait()

    return reply


def refuses(status: int) -> Reply:
    return lambda handler: handler.send_error(status)


def in_turn(*replies: Reply) -> Reply:
    """A reply that is each of `replies` in turn; the last one is repeated."""
    left = list(replies)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            running.requests.append((self.path, self.headers["Range"]))
            running.replies.get(self.path, refuses(404))(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        running = Server(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.closing.set()
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no mirror, and no waiting between attempts."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPLITATTN_CACHE", str(folder))
    monkeypatch.delenv("SPLITATTN_MIRROR", raising=False)
    monkeypatch.delenv("SPLITATTN_OFFLINE", raising=False)
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.0)
    return folder


def make_entry(*urls: str, body: bytes = BODY, **fields: Any) -> WeightsEntry:
    """An entry of resnest50 for the file `body`, at `urls`."""
    defaults: dict[str, Any] = {
        "model": "resnest50",
        "tag": "test",
        "filename": "weights.pth",
        "urls": urls,
        "sha256": hashlib.sha256(body).hexdigest(),
        "preprocessing": center_crop(224),
        "class_set": "imagenet1k",
        "license": "Apache-2.0",
        "source": "these tests",
    }
    return WeightsEntry(**defaults | fields)


def files_in(folder: Path) -> list[str]:
    """Names of the files in the cache, without lock files."""
    return sorted(
        path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
    )
