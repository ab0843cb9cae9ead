"""Damaged answers of web servers.

An input has the parts that a local server sends, one for each connection in turn; further
connections get the last part. Other host names do not resolve, so no other server is asked.
"""

import socket
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from splitattn.errors import InputError
from splitattn.images.fetch import fetch
from splitattn.images.limits import Limits
from splitattn.weights import download
from splitattn.weights.download import file_sha256

_NEXT = b"\n-- next connection --\n"
_BODY = bytes(range(256)) * 4
_OK = b"HTTP/1.1 200 OK\r\n"
_WHOLE = _OK + b"Content-Type: image/png\r\nContent-Length: 1024\r\n\r\n" + _BODY
_MOST = 2048


def answer_seeds() -> list[bytes]:
    chunked = _OK + b"Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n200;name=value\r\n"
    chunked += _BODY[:512] + b"\r\n1\r\nx\r\n0\r\nX: y\r\n\r\n"
    moved = b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 4\r\n\r\nbody"
    part = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 512-1023/1024\r\n"
    part += b"Content-Length: 512\r\n\r\n" + _BODY[512:]
    return [
        _WHOLE,
        _OK + b"\r\n" + _BODY,
        chunked,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + _WHOLE,
        _WHOLE[:700] + _NEXT + part,
        moved % b"/again" + _NEXT + _WHOLE,
        moved % b"http://127.0.0.1/x" + _NEXT + moved % b"//[::1]:80/y?z#w" + _NEXT + _WHOLE,
        moved % b"ftp://127.0.0.1/x",
        b"HTTP/1.1 301 M\r\nLocation: a\r\nSet-Cookie: a=b; Path=/\r\n\r\n" + _NEXT + chunked,
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */1024\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\nConnection: keep-alive\r\n\r\n\x1f\x8b",
    ]


class _Server:
    """A server that sends one of `parts` to each connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.parts: list[bytes] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            part = self.parts.pop(0) if len(self.parts) > 1 else self.parts[0]
            threading.Thread(target=_serve, args=(connection, part), daemon=True).start()


def _serve(connection: socket.socket, part: bytes) -> None:
    with connection, suppress(OSError):
        connection.settimeout(2)
        connection.recv(65536)
        connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):  # closing with unread input could discard what was sent
            pass


@cache
def _server() -> _Server:
    return _Server()


def read_answer(content: bytes, folder: Path) -> None:
    """Download weights, then fetch an image. Only the image's refusal is raised."""
    server = _server()
    find = socket.getaddrinfo

    def find_server(_: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if port != server.port:
            raise socket.gaierror(socket.EAI_NONAME, "not here")
        return find("127.0.0.1", port, *arguments, **options)

    url, path = f"http://127.0.0.1:{server.port}/x", folder / "weights.pth"
    with patch("socket.getaddrinfo", find_server), patch.object(download, "_PAUSE_SECONDS", 0):
        server.parts = content.split(_NEXT)
        with suppress(InputError):
            download.download([url], path, sha256="", most=_MOST)
            assert path.stat().st_size <= _MOST
            file_sha256(path)
        assert {file.name for file in folder.iterdir()} <= {path.name}
        server.parts = content.split(_NEXT)
        body = fetch(url, limits=Limits(max_bytes=_MOST, max_seconds=5.0))
    assert len(body) <= _MOST
