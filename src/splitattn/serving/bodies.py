"""Reads the images of request bodies: an image file, a multipart form, or base64 in JSON."""

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from splitattn.serving.request_errors import RequestError, bad_request, too_large

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

JSON, FORM, BYTES = "application/json", "multipart/form-data", "application/octet-stream"
_BY_CURL = "application/x-www-form-urlencoded"  # what `curl --data-binary` calls any file
# Bytes that `curl -d @photo.jpg` removes from a file. Every image file has some of these.
_LOST = (b"\r", b"\n", b"\0")
_LONGEST_NAME = 200
_MOST_VALUES, _BEFORE_VALUES = 2**20, (b",", b"[", b"{")


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What a request holds.

    Attributes:
        images: name and encoded bytes of each, or the `RequestError` of one that has no bytes.
        is_list: whether the answer is a list, even of one image.
    """

    images: tuple[tuple[str, bytes | RequestError], ...]
    is_list: bool


def media_type(header: str) -> str:
    """What the header Content-Type says, without its parameters."""
    return header.partition(";")[0].strip().lower()


def is_file(header: str) -> bool:
    """Whether a body of this Content-Type is an image file, and not JSON or a form."""
    return media_type(header) not in (JSON, FORM)


def check_media_type(header: str) -> None:
    """Check that a body of this Content-Type can hold images.

    Raises:
        RequestError: it cannot (415).
    """
    kind = media_type(header)
    if kind and kind not in (JSON, FORM, BYTES, _BY_CURL) and not kind.startswith("image/"):
        raise RequestError(
            415,
            "unsupported_media_type",
            f"Content-Type must be image/*, {BYTES}, {FORM} or {JSON}, got {kind!r:.60}",
        )


def read_images(body: bytes, content_type: str, most: int) -> Sent:
    """The images in a body.

    Args:
        body: whole.
        content_type: the header.
        most: images that one request may have.

    Raises:
        RequestError: the body is not what the header says, or has no image or too many.
    """
    kind = media_type(content_type)
    if kind == FORM:
        sent = Sent(images=tuple(_read_form(body, content_type, most)), is_list=True)
    elif kind == JSON:
        sent = _read_json(body, most)
    elif kind == _BY_CURL and body and not any(byte in body for byte in _LOST):
        raise bad_request(
            "the body must be an image, got a file that has lost its line ends, or no file: with "
            "curl, send it as --data-binary @photo.jpg"
        )
    else:
        sent = Sent(images=(("image", body),) if body else (), is_list=False)
    if not sent.images:
        raise bad_request("the request must hold an image, got none: send it as the body")
    return sent


def _too_many(most: int) -> RequestError:
    return too_large(f"one request may hold {most} images, got more: send several requests")


def read_json(body: bytes) -> dict[str, Any]:
    """Parse a body that is a JSON object.

    Raises:
        RequestError: it is something else, or has too many values.
    """
    # Small values take much more memory than their text. Count the signs that stand before values.
    values = sum(map(body.count, _BEFORE_VALUES))
    if values > _MOST_VALUES:
        raise too_large(
            f"JSON may hold {_MOST_VALUES:,} values, got {values:,}: send images as base64 or as "
            "they are"
        )
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request("the body must be JSON, got something else") from None
    if not isinstance(value, dict):
        raise bad_request(f"the body must be a JSON object, got {type(value).__name__}")
    return value


def _read_json(body: bytes, most: int) -> Sent:
    value = read_json(body)
    if unknown := value.keys() - {"image", "images"}:
        raise bad_request(
            f"the object may hold image or images, got {min(unknown)!r:.60}; parameters go into "
            "the URL"
        )
    images = value.get("images", [value["image"]] if "image" in value else [])
    if not isinstance(images, list):
        raise bad_request(f"images must be a list, got {type(images).__name__}")
    if len(images) > most:
        raise _too_many(most)
    return Sent(
        images=tuple((f"images[{i}]", decoded(text)) for i, text in enumerate(images)),
        is_list="images" in value,
    )


def decoded(text: object) -> bytes | RequestError:
    """Decode base64, with or without the prefix of a data URL, or return what is wrong with it."""
    if not isinstance(text, str):
        return bad_request(f"an image must be base64 text, got {type(text).__name__}")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if text.lower().startswith(("http:", "https:", "file:")):
        return bad_request("an image must be base64 text, got a URL, which is never fetched")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        return bad_request(f"an image must be base64 text, got text that is not: {error}")


class _Form:
    """Collects the files of a form."""

    def __init__(self, most: int) -> None:
        self.images: list[tuple[str, bytes]] = []
        self._most = most
        self._header, self._value = b"", b""
        self._disposition = b""
        self._parts: list[bytes] = []

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_header_field": self._on_header,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header_end,
        }

    def _begin(self) -> None:
        self._header, self._value, self._disposition, self._parts = b"", b"", b"", []

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._parts.append(data[start:end])

    def _end(self) -> None:
        if len(self.images) >= self._most:
            raise _too_many(self._most)
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename") or options.get(b"name") or b"image"
        shown = name.decode("utf-8", "replace")[:_LONGEST_NAME]
        self.images.append((shown, b"".join(self._parts)))


def _read_form(body: bytes, content_type: str, most: int) -> list[tuple[str, bytes]]:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise bad_request("a form must state its boundary in Content-Type, got none")
    form = _Form(most)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise bad_request("the form is damaged: send it again") from None
    return form.images
