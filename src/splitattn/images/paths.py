"""Expands paths, globs and URLs into a stream of image files and URLs."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from mimetypes import MimeTypes
from pathlib import Path

from splitattn.files import as_on_disk, is_folder

# Suffixes of the formats that `decode` reads.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".png", ".apng", ".webp"}
    | {".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs", ".heic", ".heif", ".hif"}
    | {".jp2", ".j2k", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".npy"}
)
# Names that systems, archivers and storage leave among a person's files, besides hidden files.
_LITTER = frozenset(
    {"__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "$recycle.bin", "lost+found"}
    | {"system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"}
    | {"@tmp", "@recently-snapshot", "~snapshot", "network trash folder", "temporary items"}
)
_KINDS = MimeTypes()  # Python's own table, not the system's
_SHOWN = 5
_MARK = "\ufeff"  # byte order mark, with which some programs begin UTF-8 text


def is_url(source: str) -> bool:
    """Whether `source` is an http(s) URL rather than a path."""
    return source.lower().startswith(("http://", "https://"))


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden or was created by a system."""
    return name.startswith(".") or name.casefold() in _LITTER


def is_image_name(name: str) -> bool:
    """Whether a file in a folder counts as an image, by its name."""
    return Path(name).suffix.lower() in SUFFIXES and not is_litter(name)


def is_image(name: str, passed_over: Counter[str]) -> bool:
    """Like `is_image_name`, but also count skipped files.

    Args:
        passed_over: receives, by suffix, counts of files that may be pictures but are skipped.
    """
    if is_image_name(name):
        return True
    if not is_litter(name) and _may_be_picture(name):
        passed_over[Path(name).suffix.lower() or "no ending"] += 1
    return False


def expand(
    paths: Iterable[str], stdin: Iterable[str] = (), passed_over: Counter[str] | None = None
) -> Iterator[str]:
    """Yield the images that `paths` stand for, searching folders lazily.

    Args:
        paths: files and URLs, which stand for themselves; folders, for every image file below
            them, sorted, without system files; globs (also `**`), for every file that matches,
            sorted; and `-`, for `stdin`. Links to folders are followed; no folder is read twice.
        stdin: files, URLs or folders, one a line, or each followed by NUL. Glob characters have no
            meaning here, and with NUL a name may contain line ends.
        passed_over: receives, by suffix, counts of files in folders that may be pictures but are
            skipped.

    A path that does not exist is yielded unchanged; `decode` then raises the error.
    """
    passed_over = Counter() if passed_over is None else passed_over
    for path in paths:
        if path == "-":
            for number, line in enumerate(stdin):
                line = line if number else line.removeprefix(_MARK)
                for name in filter(None, line.rstrip("\r\n").split("\0")):  # from find -print0
                    yield from _images(name, passed_over)
        elif is_url(path) or os.path.lexists(path) or not glob.has_magic(path):
            yield from _images(path, passed_over)
        else:
            yield from expand_glob(path) or [path]


def expand_glob(pattern: str) -> list[str]:
    """The files that match, sorted.

    `**` follows links but reads no folder twice; Python's glob may not terminate there.
    """
    head, recursive, tail = pattern.partition("**")
    if not recursive or (head and not head.endswith(os.sep)) or (tail and tail[0] != os.sep):
        # Path.glob does not accept absolute patterns.
        return sorted(filter(os.path.isfile, glob.iglob(pattern)))  # noqa: PTH207
    found: set[str] = set()
    for root in glob.glob(head) if head else [""]:  # noqa: PTH207
        for folder, _ in _folders_below(root or "."):
            below = glob.escape(os.path.normpath(folder) if root else os.path.relpath(folder))
            below = "" if below == "." else f"{below}{os.sep}"
            found.update(expand_glob(f"{below}{tail.lstrip(os.sep) or '*'}"))
    return sorted(found)


def images_below(folder: str | Path, passed_over: Counter[str]) -> Iterator[str]:
    """Every image file below `folder`, sorted, without system files.

    Args:
        passed_over: receives, by suffix, counts of files that may be pictures but are skipped.
    """
    for path, names in _folders_below(str(folder)):
        for name in names:
            if is_image(name, passed_over):
                yield str(Path(path, name))


def passed_over_text(passed_over: Counter[str]) -> str:
    """The counts as text, such as "2 files are skipped, ...: .svg (2)"."""
    shown = [f"{ending} ({count})" for ending, count in passed_over.most_common(_SHOWN)]
    more = ", ..." if len(passed_over) > _SHOWN else ""
    total = passed_over.total()
    one, many = "1 file is skipped, not an image", f"{total} files are skipped, not images"
    return f"{one if total == 1 else many} by name: {', '.join(shown)}{more}"


def _folders_below(folder: str) -> Iterator[tuple[str, list[str]]]:
    """`folder` and all folders below it, each once, with file names, sorted, no system files.

    A link to a parent folder is not followed.
    """
    seen = set(_identities(Path(os.path.realpath(folder)).parents))
    for path, folders, names in os.walk(folder, followlinks=True):
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError:  # removed since it was listed
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
        with suppress(OSError):  # no permission
            status = folder.stat()
            yield status.st_dev, status.st_ino


def _may_be_picture(name: str) -> bool:
    kind, _ = _KINDS.guess_type(name)
    return kind is None or kind.startswith("image/")


def _images(path: str, passed_over: Counter[str]) -> Iterator[str]:
    """`path` itself, or the images below it if it is a folder that has any."""
    # An empty path does not mean the current folder: it may be an unset shell variable.
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
