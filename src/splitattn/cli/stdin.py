"""What `-` means where a verb takes images: a list of names on stdin, or a picture."""

import codecs
import glob
import io
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from splitattn.cli.output import reconfigure
from splitattn.errors import InputError
from splitattn.files import exists, is_file, is_folder

Given = tuple[Iterator[str], Callable[[str], str | bytes]]


def check_given(verb: str, paths: list[str] | None) -> list[str]:
    """The arguments of `verb` that stand for images, checked before any work is done.

    Raises:
        InputError: there are none, the only one is a list of names, or it is a folder or a glob
            that stands for no image.
    """
    if not paths:
        raise InputError(
            f"{verb} needs images, got none; name files, folders, globs or URLs, or - for stdin"
        )
    if len(paths) == 1 and paths[0].lower().endswith(".txt") and is_file(paths[0]):
        raise InputError(
            f"images must be pictures, got {paths[0]}: a list of names is read from stdin, as in "
            f"splitattn {verb} - < {paths[0]}"
        )
    if len(paths) == 1:
        _check_not_empty(verb, paths[0])
    return paths


def _check_not_empty(verb: str, path: str) -> None:
    from splitattn.images.paths import expand, is_url, passed_over_text

    is_glob = glob.has_magic(path) and not is_url(path) and not exists(path)
    if not (is_glob or is_folder(path)):
        return
    passed_over: Counter[str] = Counter()
    if next(expand([path], passed_over=passed_over), None) != path:
        return
    others = f"; {passed_over_text(passed_over)}" if passed_over else ""
    where = f": no file matches {path}; check the path" if is_glob else f" in the folder {path}"
    raise InputError(f"{verb} needs images, got none{where}{others}")


def images_given(paths: Sequence[str], passed_over: Counter[str] | None = None) -> Given:
    """The names of the images that `paths` stand for, and what to decode for a name.

    Args:
        paths, passed_over: see `images.paths.expand`.

    Raises:
        InputError: a list on stdin is not in UTF-8.
    """
    from splitattn.images.paths import expand

    picture: bytes | None = None
    listed: Iterable[str] = ()
    if "-" in paths:  # else stdin is left alone: it may be a terminal, where reading waits
        picture = _picture_on_stdin()
        listed = _listed_on_stdin() if picture is None else ("-",)

    def source_of(name: str) -> str | bytes:
        return name if picture is None or name != "-" else picture

    return expand(paths, listed, passed_over), source_of


# How gzip, ZIP, xz, bzip2 and zstd begin.
_ARCHIVES = (b"\x1f\x8b", b"PK\x03\x04", b"\xfd7zXZ", b"BZh9", b"(\xb5/\xfd")
# How JPEG, PNG, GIF, TIFF, BMP and WebP begin, and JPEG 2000, AVIF and HEIC after four bytes.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"BM", b"RIFF")
_LATER_SIGNATURES = (b"jP  ", b"ftyp")
# What is in no list of names: control characters but tab, line ends and escape, an empty name
# between NULs, and the start of PBM, PGM and PPM.
_NO_LIST = re.compile(
    rb"[\x01-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f]|\0\0|\AP[1-6]\s(?:\s|#.*\n)*\d+\s+\d+\s"
)
# A line in UTF-16. Names of one letter between NULs look like it, but have no such line end.
_UTF_16 = re.compile(rb"(?:[^\0]\0)+\n\0|(?:\0[^\0])+\0\n")


def _picture_on_stdin() -> bytes | None:
    """The bytes on stdin, to be decoded as a picture; None if they are a list of names."""
    # File names need not be text: they come in as the system gives them and leave escaped.
    reconfigure(sys.stdin, errors="surrogateescape")
    stream = getattr(sys.stdin, "buffer", None)
    begun = stream.peek() if isinstance(stream, io.BufferedReader) else b""
    start = begun[:12]
    if start.startswith(_ARCHIVES):
        raise InputError("stdin must be a list of names or a picture, got an archive: unpack it")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or _UTF_16.match(begun):
        raise InputError("a list on stdin must be in UTF-8, got UTF-16: convert it")
    signed = start.startswith(_SIGNATURES) or start[4:].startswith(_LATER_SIGNATURES)
    # A name may begin with "BM" too, but a picture goes on with bytes that are in no name.
    first_line = start.partition(b"\n")[0].rstrip(b"\r")
    is_name = first_line.isascii() and first_line.decode().isprintable()
    is_picture = (signed and not is_name) or _NO_LIST.search(begun)
    if not is_picture:
        return None
    from splitattn.images.limits import DEFAULT_LIMITS

    assert stream is not None
    content: bytes = stream.read(DEFAULT_LIMITS.max_bytes + 1)
    _check_one_picture(content)
    return content


def _listed_on_stdin() -> Iterable[str]:
    """The lines of stdin. If NUL ends each name, the names, which may then hold line ends."""
    stream = getattr(sys.stdin, "buffer", None)
    if not isinstance(stream, io.BufferedReader) or b"\0" not in stream.peek():
        return sys.stdin
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(newline="")
    return _ended_by_nul(sys.stdin)


def _ended_by_nul(lines: Iterable[str]) -> Iterator[str]:
    rest = ""
    for line in lines:
        *names, rest = (rest + line).split("\0")
        yield from (f"{name}\0" for name in names)
    yield f"{rest}\0"


# The end of a JPEG, or the last chunk of a PNG, and right after it the start of another picture.
_SECOND = re.compile(
    rb"(?:\xff\xd9|IEND\xae\x42\x60\x82)(?=\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8|RIFF)"
)
# The segment by which a JPEG says that it holds several pictures, as those of cameras may.
_MULTI_PICTURE = b"MPF\0"


def _check_one_picture(content: bytes) -> None:
    """Raise if a second picture follows the first, as after `cat a.jpg b.jpg`.

    Raises:
        InputError: one does.
    """
    if not content.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        return  # others, such as TIFF, may be made of JPEG streams
    end = _SECOND.search(content)
    if end and _MULTI_PICTURE not in content[: end.start()]:
        raise InputError(
            "stdin must be one picture, got another after it: name the files, or pipe their names"
        )
