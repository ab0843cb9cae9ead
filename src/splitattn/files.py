"""Files appear whole or not at all, and may be asked for by any name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well.

    A process that is killed leaves the old file or the new one. After an error the old one stays
    and the temporary one is removed. A link goes on pointing to where it points. Who may read the
    file is as for any new file, also where a library that writes it would make it private.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        permissions = temporary.stat().st_mode
        yield temporary
        temporary.chmod(permissions)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
    """Remove the temporary files that killed processes left in `folder`.

    Only where nobody else writes: those of a living process are removed too.
    """
    for temporary in folder.glob(".*.*.tmp"):
        temporary.unlink(missing_ok=True)
