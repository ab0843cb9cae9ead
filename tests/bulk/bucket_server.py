"""An object store that can be made to fail, for clients of S3 and of Google Cloud Storage.

Google's XML interface has the paths, parameters and answers of S3; credentials are a bearer token.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "photos"
SECRET = "a-secret"


class BucketServer(ThreadingHTTPServer):
    """A server with one bucket.

    Attributes:
        objects: the bytes of each object, by key.
        busy: number of further requests to answer with `refusal`, by kind: "LIST", "PUT", or a
            method and the ending of a key, such as "GET .jpg".
        refusal: status that means "slow down": 503 for S3, 429 or 503 for Google.
        forbidden: keys with this prefix are answered with 403.
        faults: the faults of the next GETs, by key. "silent" sends nothing, "stalled" sends half of
            the bytes and then nothing, "cut" sends half of them and closes the connection.
        over: set when the server ends; silent and stalled connections wait for it.
        page: number of keys in one page of a listing.
        credentials: the Authorization header of each request, in order of arrival.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.busy: Counter[str] = Counter()
        self.refusal = 503
        self.forbidden = "nothing"
        self.faults: dict[str, list[str]] = {}
        self.over = threading.Event()
        self.page = 1000
        self.credentials: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: BucketServer
    protocol_version = "HTTP/1.1"

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self._begin(status, body, **headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()

    def _fail(self, fault: str, status: int, body: bytes, **headers: str) -> None:
        self.close_connection = True
        if fault != "silent":
            self._begin(status, body, **headers)
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
        if fault != "cut":
            self.server.over.wait()

    def _refused(self, key: str) -> bool:
        self.server.credentials.append(self.headers["Authorization"])
        command = self.command if key else "LIST"
        kind = command if command in ("LIST", "PUT") else f"{command} {PurePosixPath(key).suffix}"
        if key.startswith(self.server.forbidden):
            self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        elif self.server.busy[kind] > 0:
            self.server.busy[kind] -= 1
            self._answer(self.server.refusal, b"<Error><Code>SlowDown</Code></Error>")
        else:
            return False
        return True

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        key = unquote(parts.path).removeprefix(f"/{BUCKET}").lstrip("/")
        if self._refused(key):
            return
        if not key:
            self._list(parse_qs(parts.query))
        elif key in self.server.objects:
            status, content = 200, self.server.objects[key]
            headers = {"ETag": etag_of(content), "Last_Modified": "Sun, 01 Nov 2026 00:00:00 GMT"}
            if asked := self.headers.get("Range"):
                first, last = (int(n) for n in asked.removeprefix("bytes=").split("-"))
                part = content[first : last + 1]
                headers["Content_Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
                status, content = 206, part
            if faults := self.server.faults.get(key):
                self._fail(faults.pop(0), status, content, **headers)
            else:
                self._answer(status, content, **headers)
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        key = unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")
        if self._refused(key):
            return
        self.server.objects[key] = content
        self._answer(200, ETag=etag_of(content))

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        delimiter = query.get("delimiter", [""])[0]
        keys = [
            key for key in sorted(self.server.objects) if key.startswith(prefix) and key > after
        ]
        if delimiter:
            keys = [key for key in keys if delimiter not in key[len(prefix) :]]
        shown = keys[: self.server.page]
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.server.objects[key])}</Size>"
            f"<LastModified>2026-11-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(etag_of(self.server.objects[key]))}</ETag></Contents>"
            for key in shown
        )
        more = len(keys) > len(shown)
        token = (
            f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>" if more else ""
        )
        self._answer(
            200,
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}"
            "</ListBucketResult>".encode(),
            Content_Type="application/xml",
        )

    def log_message(self, *_: object) -> None:
        pass


def etag_of(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


@contextmanager
def serving() -> Iterator[BucketServer]:
    server = BucketServer()
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


def environment(server: BucketServer) -> dict[str, str]:
    """The environment variables that point every client at `server`."""
    return {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "GOOGLE_BASE_URL": server.url,
        "GOOGLE_BEARER_TOKEN": SECRET,
    }
