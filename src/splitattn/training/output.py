"""A training's output folder, where the system may refuse to write."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitattn.errors import InputError


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


def unwritable(folder: Path, error: Exception) -> InputError:
    """The error for an output folder that takes no files, or no more of them."""
    reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
    return InputError(f"output must be a folder to write to, got {folder}: {reason or error}")
