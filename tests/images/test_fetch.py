import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest
import skimage.data
from PIL import Image

from splitattn.errors import ImageError
from splitattn.images.decode import decode
from splitattn.images.limits import Limits
from tests.images.site import answer, site

finished = threading.Event()


def stall(_: BaseHTTPRequestHandler) -> None:
    finished.wait(10)


def stall_after_headers(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "100")
    request.end_headers()
    finished.wait(10)


def drip(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    while not finished.wait(0.05):
        request.wfile.write(b"x")


def flood(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(bytes(10_000))


def break_off(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "100")
    request.end_headers()
    request.wfile.write(b"short")


def redirect(request: BaseHTTPRequestHandler) -> None:
    request.send_response(302)
    request.send_header("Location", "/photo")
    request.end_headers()


def redirect_to_file(request: BaseHTTPRequestHandler) -> None:
    request.send_response(302)
    request.send_header("Location", "file:///etc/hostname")
    request.end_headers()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    stream = io.BytesIO()
    Image.fromarray(skimage.data.chelsea()).save(stream, "PNG")
    pages = {
        "/photo": answer(200, stream.getvalue()),
        "/page": answer(200, b"<html>no photograph</html>"),
        "/forbidden": answer(403),
        "/stall": stall,
        "/stall-after-headers": stall_after_headers,
        "/drip": drip,
        "/flood": flood,
        "/break-off": break_off,
        "/redirect": redirect,
        "/redirect-to-file": redirect_to_file,
    }
    with site(pages) as address:
        yield address
        finished.set()


@pytest.mark.parametrize("path", ["/photo", "/redirect"])
def test_an_image_comes_from_a_url(address: str, path: str) -> None:
    assert decode(address + path).size == (451, 300)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/missing", "404"),
        ("/forbidden", "403"),
        ("/page", "expected an image"),
        ("/stall", "too slow, [0-9]+ bytes in 0"),
        ("/stall-after-headers", "too slow, [0-9]+ bytes in 0"),
        ("/drip", "too slow, [0-9]+ bytes in 0"),
        ("/flood", "at most 1,000,000 bytes"),
        ("/break-off", "expected an image|cannot be fetched"),
        ("/redirect-to-file", "redirects to file://.*/etc/hostname; only http and https"),
        ("/with space", "404"),
    ],
)
def test_a_url_that_fails_is_reported_in_one_line_that_names_it(
    address: str, path: str, complaint: str
) -> None:
    started = time.monotonic()
    with pytest.raises(ImageError, match=complaint) as raised:
        decode(address + path, limits=Limits(max_bytes=1_000_000, max_seconds=0.3))
    assert time.monotonic() - started < 5
    message = str(raised.value)
    assert message.startswith(address + path)
    assert message.isprintable()


def test_a_server_that_is_not_there_is_reported() -> None:
    with pytest.raises(ImageError, match="cannot be reached"):
        decode("http://127.0.0.1:1/photo.jpg")


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://", "https://:x/", "http://a b/", "HTTP://\udcff"]
)
def test_an_invalid_url_is_reported_in_one_line(url: str) -> None:
    with pytest.raises(ImageError) as raised:
        decode(url)
    assert str(raised.value).isprintable()
