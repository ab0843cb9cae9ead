"""A training's output folder: its lock, and errors of writing to it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from splitattn.errors import InputError, write_failure

# Seconds to wait for the lock: workers of a killed training may still hold it.
_PATIENCE = 5.0
# Errors of file systems without locks; the folder is then used without a lock.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def checkpoint_in(folder: Path) -> Path:
    """The checkpoint in an output folder, from which a training resumes."""
    return folder / "last.pt"


def in_use(folder: Path) -> InputError:
    """The error for an output folder that already has a training in it."""
    return InputError(
        f"output must be a new folder, got {folder} with a training in it; "
        "add --resume to continue it, or name another --output"
    )


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn an `OSError` of writing into `folder` into an `InputError`.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(folder, error) from error


def claim(folder: Path) -> FileLock:
    """Lock `folder`; the system releases the lock when this process ends.

    Raises:
        InputError: another training writes there.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise InputError(
            f"output must be used by one training only, got {folder}, which another one uses: wait "
            f"for its end, or use a new --output (if none is running, remove {folder}/.lock)"
        ) from None
    except NotImplementedError:
        pass  # as below
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return lock


def release(lock: FileLock) -> None:
    """Release the lock of a folder and remove the lock's file."""
    if lock.is_locked:
        with suppress(OSError):  # Windows does not remove open files
            Path(lock.lock_file).unlink()
    lock.release()


def unwritable(folder: Path, error: Exception) -> InputError:
    """The error for an output folder that cannot be written or is full."""
    return InputError(write_failure(folder, error, "output must be a folder to write to, got"))
