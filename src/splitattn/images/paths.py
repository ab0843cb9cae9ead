"""What a person types becomes a stream of image files and URLs."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from mimetypes import MimeTypes
from pathlib import Path

from splitattn.files import as_on_disk, is_folder

# Of the formats that `decode` reads.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".png", ".apng", ".webp"}
    | {".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs", ".heic", ".heif", ".hif"}
    | {".jp2", ".j2k", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".npy"}
)
# What systems, archivers and storage leave among a person's files, besides hidden files.
_LITTER = frozenset(
    {"__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "$recycle.bin", "lost+found"}
    | {"system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"}
    | {"@tmp", "@recently-snapshot", "~snapshot", "network trash folder", "temporary items"}
)
_KINDS = MimeTypes()  # Python's own table, not the system's
_SHOWN = 5
_MARK = "\ufeff"  # with which some programs begin a text in UTF-8


def is_url(source: str) -> bool:
    """Whether `source` is an http(s) URL rather than a path."""
    return source.lower().startswith(("http://", "https://"))


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left by a system and not by a person."""
    return name.startswith(".") or name.casefold() in _LITTER


def is_image_name(name: str) -> bool:
    """Whether a file of this name in a folder is taken for an image."""
    return Path(name).suffix.lower() in SUFFIXES and not is_litter(name)


def is_image(name: str, passed_over: Counter[str]) -> bool:
    """As `is_image_name`.

    Args:
        passed_over: counts, by ending, the other files that may be pictures.
    """
    if is_image_name(name):
        return True
    if not is_litter(name) and _may_be_picture(name):
        passed_over[Path(name).suffix.lower() or "no ending"] += 1
    return False


def expand(
    paths: Iterable[str], stdin: Iterable[str] = (), passed_over: Counter[str] | None = None
) -> Iterator[str]:
    """The images that `paths` stand for, found as they are asked for.

    Args:
        paths: files and URLs, which stand for themselves; folders, for every image file below
            them, sorted, without litter; globs (`**` too), for every file that matches, sorted; and
            `-`, for `stdin`. Links to folders are followed, and no folder is read twice.
        stdin: lines, each with a file, a URL or a folder, or several with NUL after each. Names
            may hold glob characters, and before a NUL line ends.
        passed_over: counts files in folders that may be pictures, but not by their ending.

    A path that leads to nothing is passed on as it is, for `decode` to say what is wrong with it
    when its turn comes.
    """
    passed_over = Counter() if passed_over is None else passed_over
    for path in paths:
        if path == "-":
            for number, line in enumerate(stdin):
                line = line if number else line.removeprefix(_MARK)
                for name in filter(None, line.rstrip("\r\n").split("\0")):  # as of find -print0
                    yield from _images(name, passed_over)
        elif is_url(path) or os.path.lexists(path) or not glob.has_magic(path):
            yield from _images(path, passed_over)
        else:
            yield from expand_glob(path) or [path]


def expand_glob(pattern: str) -> list[str]:
    """The files that match, sorted. `**` follows links as folders do, where glob's own may never
    end."""
    head, recursive, tail = pattern.partition("**")
    if not recursive or (head and not head.endswith(os.sep)) or (tail and tail[0] != os.sep):
        # Not Path.glob, which knows no absolute patterns.
        return sorted(filter(os.path.isfile, glob.iglob(pattern)))  # noqa: PTH207
    found: set[str] = set()
    for root in glob.glob(head) if head else [""]:  # noqa: PTH207
        for folder, _ in _folders_below(root or "."):
            below = glob.escape(os.path.normpath(folder) if root else os.path.relpath(folder))
            below = "" if below == "." else f"{below}{os.sep}"
            found.update(expand_glob(f"{below}{tail.lstrip(os.sep) or '*'}"))
    return sorted(found)


def images_below(folder: str | Path, passed_over: Counter[str]) -> Iterator[str]:
    """Every image file below `folder`, sorted, without litter.

    Args:
        passed_over: counts, by ending, the other files that may be pictures.
    """
    for path, names in _folders_below(str(folder)):
        for name in names:
            if is_image(name, passed_over):
                yield str(Path(path, name))


def passed_over_text(passed_over: Counter[str]) -> str:
    """The counts in words, such as "2 files are passed over, ...: .svg (2)"."""
    shown = [f"{ending} ({count})" for ending, count in passed_over.most_common(_SHOWN)]
    more = ", ..." if len(passed_over) > _SHOWN else ""
    total = passed_over.total()
    subject, whose = ("1 file is", "its") if total == 1 else (f"{total} files are", "their")
    return f"{subject} passed over, being no images by {whose} ending: {', '.join(shown)}{more}"


def _folders_below(folder: str) -> Iterator[tuple[str, list[str]]]:
    """`folder` and those below it, each once and with its files' names, sorted, without litter.

    A link to a folder above it is not followed: what lies there is not below it.
    """
    seen = set(_identities(Path(os.path.realpath(folder)).parents))
    for path, folders, names in os.walk(folder, followlinks=True):
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError:  # gone since it was listed
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_litter(name))
        yield path, sorted(name for name in names if not is_litter(name))


def _identities(folders: Iterable[Path]) -> Iterator[tuple[int, int]]:
    for folder in folders:
        with suppress(OSError):  # not ours to look at
            status = folder.stat()
            yield status.st_dev, status.st_ino


def _may_be_picture(name: str) -> bool:
    kind, _ = _KINDS.guess_type(name)
    return kind is None or kind.startswith("image/")


def _images(path: str, passed_over: Counter[str]) -> Iterator[str]:
    """`path` itself, or the images below it if it is a folder that has any."""
    # Nothing is not the current folder: a shell's variable may be empty by mistake.
    folder = path if not path or is_url(path) else str(as_on_disk(Path(path)))
    if not path or is_url(path) or not is_folder(folder):
        yield path
        return
    empty = True
    for image in images_below(folder, passed_over):
        empty = False
        yield image
    if empty:
        yield path
