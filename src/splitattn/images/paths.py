"""What a person types becomes a stream of image files and URLs."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from splitattn.files import is_folder

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2"}
    | {".ppm", ".pgm", ".pbm", ".ico"}
)


def is_url(source: str) -> bool:
    """Whether `source` is an http(s) URL rather than a path."""
    return source.lower().startswith(("http://", "https://"))


def expand(paths: Iterable[str], stdin: Iterable[str] = ()) -> Iterator[str]:
    """The images that `paths` stand for, found as they are asked for.

    Args:
        paths: files and URLs, which stand for themselves; folders, for every image file below
            them, sorted, without hidden ones; globs (`**` too), for every file that matches,
            sorted; and `-`, for `stdin`.
        stdin: lines, each with a file, a URL or a folder. Names may hold glob characters.

    A path that leads to nothing is passed on as it is, for `decode` to say what is wrong with it
    when its turn comes.
    """
    for path in paths:
        if path == "-":
            for line in stdin:
                if name := line.rstrip("\r\n"):
                    yield from _images(name)
        elif is_url(path) or os.path.lexists(path) or not glob.has_magic(path):
            yield from _images(path)
        else:
            # Not Path.glob, which knows no absolute patterns.
            found = glob.iglob(path, recursive=True)  # noqa: PTH207
            matches = sorted(filter(os.path.isfile, found))
            yield from matches or [path]


def _images(path: str) -> Iterator[str]:
    """`path` itself, or the images below it if it is a folder that has any."""
    if is_url(path) or not is_folder(path):
        yield path
        return
    empty = True
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                empty = False
                yield str(Path(folder, name))
    if empty:
        yield path
