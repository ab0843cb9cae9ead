"""Writes files atomically, and opens files without ever blocking."""

import codecs
import errno
import io
import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from splitattn.errors import InputError, nearest

# The first bytes of a pointer, in place of a file that Git LFS has not fetched.
LFS_POINTER = b"version https://git-lfs"

# The name is random, so that nobody can create a link of that name first.
_TEMPORARY = re.compile(r"\.splitattn-[0-9a-f]{32}\.tmp")

# The most names that are compared with one that is not there.
_MOST_COMPARED = 1000
# Flags that not all systems have: do not follow links; do not wait for the other end of a pipe.
_NO_LINK, _NO_WAIT = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK"))
_BINARY = getattr(os, "O_BINARY", 0)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that replaces it when the context ends without an error.

    If the process is killed, the old or the new file remains. After an error the old file remains
    and the temporary one is removed. With two writers, the last one wins. If `path` is a link, the
    file that it points to is replaced. Permissions are those of a new file, even if the library
    that writes it would make it private.

    Raises:
        OSError: the file cannot be written, `path` is a pipe, device or socket, or the temporary
            file was replaced by something else.
    """
    try:
        path = path.resolve()
    except RuntimeError as error:  # a loop of links, in Python before 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, _NO_FILE, str(path))
    temporary = path.with_name(f".splitattn-{secrets.token_hex(16)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY
    descriptor = os.open(temporary, flags, 0o666)
    try:
        permissions = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.close(descriptor)
        yield temporary
        # A library may have replaced the file, so open it again.
        with open_file(temporary, write=True) as file:
            temporary.chmod(permissions)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno and not error.filename:  # errors of writing to an open file have no name
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


_NO_FILE = "not a file but a folder, pipe, device or socket"


def as_on_disk(path: Path) -> Path:
    """`path` with accents in the Unicode form of the existing file; otherwise unchanged.

    macOS decomposes accents in file names, while lists that people write have composed ones.
    """
    if str(path).isascii() or os.path.lexists(path):
        return path
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        there = [found / form for form in forms if os.path.lexists(found / form)]
        if not there:
            return path
        found = there[0]
    return found


def is_utf8(path: Path) -> bool:
    """Whether the path is UTF-8. Not every file name is, but some libraries require it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def open_file(path: str | Path, *, write: bool = False) -> BinaryIO:
    """Open a file to read bytes; with `write`, open it for writing too, without following links.

    Raises:
        OSError: the file cannot be opened, or is a pipe, device or socket, which could block or be
            endless.
    """
    # Check before, since opening a device may have effects, and after, since it may be replaced.
    if not write and not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError(errno.EINVAL, _NO_FILE, str(path))
    flags = (os.O_RDWR | _NO_LINK) if write else os.O_RDONLY
    descriptor = os.open(path, flags | _NO_WAIT | _BINARY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, _NO_FILE, str(path))
        return os.fdopen(descriptor, "rb+" if write else "rb")
    except BaseException:
        os.close(descriptor)
        raise


def open_text(file: BinaryIO) -> TextIO:
    """Decode an open text file: UTF-8, or UTF-16 with a byte order mark.

    Spreadsheets write UTF-16 as "Unicode text". Line ends are not changed.

    Raises:
        OSError: the file cannot be read.
        UnicodeError: it has zero bytes at the start, like UTF-16 without the mark and UTF-32.
    """
    start = file.read(4)
    file.seek(0)
    wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0\0" in start or (b"\0" in start and not wide):
        file.close()
        raise UnicodeError(
            "it has zero bytes, as UTF-16 without a byte order mark; save it as UTF-8"
        )
    return io.TextIOWrapper(file, encoding="utf-16" if wide else "utf-8-sig", newline="")


@contextmanager
def writing_native(path: Path) -> Iterator[BinaryIO]:
    """A file at `path` for C++ libraries, which may abort the process when a write fails.

    After a failed write, further writes are ignored, and the error is raised when the context ends.

    Raises:
        OSError: a write failed.
    """
    with path.open("wb") as file:
        patient = _Patient(file)
        try:
            yield cast("BinaryIO", patient)
        finally:
            if patient.error:
                raise patient.error


class _Patient(io.RawIOBase):
    """A file that stores the first error of a write and ignores further writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
                self._file.flush()
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def expanded(path: str | Path) -> Path:
    """`path` with `~` expanded if there is such a home folder; `Path` would raise otherwise."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def is_file(path: str | Path) -> bool:
    """Whether `path` is a file. `Path.is_file` raises for long names and missing permissions."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | Path) -> bool:
    """Whether `path` is a folder. `Path.is_dir` raises for long names and missing permissions."""
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: str | Path) -> bool:
    """Whether `path` is a file or folder; False for devices and pipes, which could block."""
    return is_file(path) or is_folder(path)


def similar_path(path: Path) -> str:
    """A hint `; did you mean 'x'?` for a path that is not there, from the names beside it."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_COMPARED)]
    except OSError:
        return ""
    return nearest(path.name, sorted(name for name in names if not name.startswith(".")))


def check_can_write(path: Path, rule: str = "cannot write") -> None:
    """Check that a file can be written at `path`, before any work is done for it.

    Args:
        rule: the beginning of the message, before `path`.

    Raises:
        InputError: there is no such folder, or no file can be made in it.
    """
    folder = Path(os.path.realpath(path)).parent  # of a loop of links, `Path.resolve` raises
    try:
        is_there = stat.S_ISDIR(folder.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_there = False
    except OSError as error:
        raise InputError(f"{rule} {path}: {error.strerror}") from error
    if not is_there:
        raise InputError(f"{rule} {path}: there is no folder {folder}")
    _check_writable(folder, f"{rule} {path}")


def check_can_make_folder(path: Path, rule: str) -> None:
    """Check that a folder is there or can be made at `path`, and can be written to.

    Args:
        rule: the beginning of the message, before `path`.

    Raises:
        InputError: it cannot.
    """
    folder = Path(os.path.realpath(path))
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not is_folder(folder):
        raise InputError(f"{rule} {path}: {folder} is no folder that can be opened")
    _check_writable(folder, f"{rule} {path}")


def _check_writable(folder: Path, rule: str) -> None:
    own = os.access in os.supports_effective_ids
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=own):
        raise InputError(f"{rule}: no file can be made in the folder {folder}")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of `replacing` that a killed process left in `folder`.

    Call this only if no other process writes there, since its temporary files are removed too.
    Other files are not touched.
    """
    for temporary in folder.iterdir():
        if _TEMPORARY.fullmatch(temporary.name) and stat.S_ISREG(temporary.lstat().st_mode):
            temporary.unlink(missing_ok=True)
