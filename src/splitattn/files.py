"""Files appear whole or not at all, and reading one never blocks."""

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
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

# What stands in place of a file that Git LFS has not fetched.
LFS_POINTER = b"version https://git-lfs"

# The name is random, so nobody can put a link in its place beforehand.
_TEMPORARY = re.compile(r"\.splitattn-[0-9a-f]{32}\.tmp")

# Not on all systems: never follow a link; do not wait for the other end of a pipe.
_NO_LINK, _NO_WAIT = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK"))
_BINARY = getattr(os, "O_BINARY", 0)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well.

    A process that is killed leaves the old file or the new one. After an error the old one stays
    and the temporary one is removed. Of two writers, the last to end wins. A link goes on pointing
    to where it points. Who may read the file is as for any new file, also where a library that
    writes it would make it private.

    Raises:
        OSError: the system refuses to write, `path` is a pipe, device or socket, or something took
            the temporary file's place.
    """
    try:
        path = path.resolve()
    except RuntimeError as error:  # what Python before 3.13 makes of a loop of links
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
        # A library may have made another file of that name, so open it again.
        with open_file(temporary, write=True) as file:
            temporary.chmod(permissions)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno and not error.filename:  # writing to an open file names none
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


_NO_FILE = "not a file but a folder, pipe, device or socket"


def as_on_disk(path: Path) -> Path:
    """`path` as the disk spells it, where accents are composed in another way; else itself.

    macOS decomposes the accents of file names, and lists of files that people write compose them.
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
    """Whether the path is UTF-8. Names of files need not be, and some libraries take no others."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def open_file(path: str | Path, *, write: bool = False) -> BinaryIO:
    """Open a file to read its bytes, or with `write` to write into it too, following no link.

    Raises:
        OSError: the system refuses, or it is a pipe, device or socket, which could block or have
            no end.
    """
    # Looked at before, since opening a device may do something; and after, as it may be another.
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
    """The text of an open file that people write: UTF-8, or UTF-16 with its byte order mark.

    Spreadsheets write UTF-16 as "Unicode text". Line ends stay as they are.

    Raises:
        OSError: the system refuses to read it.
        UnicodeError: it begins with zero bytes, as UTF-16 without the mark and UTF-32 do.
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
    """A file at `path` for libraries in C++, which may abort the process where a write fails.

    After a failed write it takes the rest without writing it, and raises when the block ends.

    Raises:
        OSError: the system refuses to write.
    """
    with path.open("wb") as file:
        patient = _Patient(file)
        try:
            yield cast("BinaryIO", patient)
        finally:
            if patient.error:
                raise patient.error


class _Patient(io.RawIOBase):
    """Writes until a write fails, and keeps the error."""

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
    """`path` with its `~` expanded, unless there is no such home, for which `Path` raises."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def is_file(path: str | Path) -> bool:
    """Whether there is such a file. `Path.is_file` raises for a name too long, or closed to us."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder. `Path.is_dir` raises for a name too long, or closed to us."""
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: str | Path) -> bool:
    """Whether there is such a file or folder. A device or a pipe does not count: it could block."""
    return is_file(path) or is_folder(path)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that `replacing` left in `folder` where a process was killed.

    Only where nobody else writes: those of a living process are removed too. Other files stay,
    whatever they are called.
    """
    for temporary in folder.iterdir():
        if _TEMPORARY.fullmatch(temporary.name) and stat.S_ISREG(temporary.lstat().st_mode):
            temporary.unlink(missing_ok=True)
