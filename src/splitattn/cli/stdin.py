"""What `-` means where a verb takes images: a list of names on stdin, or a picture."""

import codecs
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from splitattn.cli.output import reconfigure
from splitattn.errors import InputError

Given = tuple[Iterator[str], Callable[[str], str | bytes]]


def images_given(paths: Sequence[str], passed_over: Counter[str] | None = None) -> Given:
    """The names of the images that `paths` stand for, and what to decode for a name.

    Args:
        paths, passed_over: see `images.paths.expand`.

    Raises:
        InputError: a list on stdin is not in UTF-8.
    """
    from splitattn.images.paths import expand

    picture = _picture_on_stdin() if "-" in paths else None
    listed = sys.stdin if picture is None else ("-",)

    def source_of(name: str) -> str | bytes:
        return name if picture is None or name != "-" else picture

    return expand(paths, listed, passed_over), source_of


# How JPEG, PNG, GIF, TIFF, BMP and WebP begin, and JPEG 2000, AVIF and HEIC after four bytes.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"BM", b"RIFF")
_LATER_SIGNATURES = (b"jP  ", b"ftyp")


def _picture_on_stdin() -> bytes | None:
    """The bytes of a picture that is piped in, or None if stdin gives a list of names."""
    # File names need not be text: they come in as the system gives them and leave escaped.
    reconfigure(sys.stdin, errors="surrogateescape")
    stream = getattr(sys.stdin, "buffer", None)
    start = stream.peek(12)[:12] if isinstance(stream, io.BufferedReader) else b""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError("a list on stdin must be in UTF-8, got UTF-16: convert it")
    binary = start.startswith(_SIGNATURES) or start[4:].startswith(_LATER_SIGNATURES)
    # "BM" and others are letters too, but a picture goes on with what is in no name.
    first_line = start.partition(b"\n")[0].rstrip(b"\r")
    if not binary or (first_line.isascii() and first_line.decode().isprintable()):
        return None
    from splitattn.images.limits import DEFAULT_LIMITS

    assert stream is not None
    content: bytes = stream.read(DEFAULT_LIMITS.max_bytes + 1)
    return content
