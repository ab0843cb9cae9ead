"""A training's output folder, where the system may refuse to write."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from splitattn.errors import InputError, write_failure

# Seconds: the workers of a training that was killed may hold its lock a little longer.
_PATIENCE = 5.0
# Of file systems without locks, on which nobody is kept apart.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def checkpoint_in(folder: Path) -> Path:
    """The file in an output folder that a resumed training continues from."""
    return folder / "last.pt"


def in_use(folder: Path) -> InputError:
    """The error for an output folder that already has a training in it."""
    return InputError(
        f"output must be a new folder, got {folder} with a training in it; "
        "add --resume to continue it"
    )


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn an `OSError` of writing into `folder` into an `InputError`.

    Raises:
        InputError: the system refuses to write there.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(folder, error) from error


def claim(folder: Path) -> FileLock:
    """A lock on `folder`, which the system releases if this process ends.

    Raises:
        InputError: another training writes there.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise InputError(
            f"output must be a folder of one training, got {folder}, to which another one writes: "
            f"wait for its end, or use a new --output (if none writes there, remove {folder}/.lock)"
        ) from None
    except NotImplementedError:
        pass  # as below
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return lock


def release(lock: FileLock) -> None:
    """Let go of a folder that was claimed, and remove the file of the lock."""
    if lock.is_locked:
        with suppress(OSError):  # Windows removes no open file
            Path(lock.lock_file).unlink()
    lock.release()


def unwritable(folder: Path, error: Exception) -> InputError:
    """The error for an output folder that takes no files, or no more of them."""
    return InputError(write_failure(folder, error, "output must be a folder to write to, got"))
