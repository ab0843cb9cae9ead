"""Where results go: to a file that appears whole, or to stdout."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from splitattn.errors import InputError
from splitattn.files import is_file


def check_output(output: Path | None) -> None:
    """Refuse what cannot be a result file, before any work is done.

    Raises:
        InputError: it is a folder or a device.
    """
    if output is not None and not is_file(output) and os.path.exists(output):  # noqa: PTH110
        raise InputError(f"--output must be a file, got {output}, a folder or device")


@contextmanager
def writing(output: Path | None) -> Iterator[Callable[[str], None]]:
    """A function that writes text to `output`, which appears when the block ends, or to stdout.

    Raises:
        InputError: the file cannot be written.
    """
    if output is None:
        reconfigure(sys.stdout, errors="backslashreplace")
        yield _write_to_stdout
        return
    from splitattn.files import replacing

    try:
        with (
            replacing(output) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            yield lambda text: print(text, end="", file=file)
    except OSError as error:
        raise InputError(f"cannot write --output {output}: {error.strerror or error}") from error


def write_output(text: str, output: Path | None) -> None:
    """Write `text` to `output`, or to stdout.

    Raises:
        InputError: the file cannot be written.
    """
    with writing(output) as write:
        write(text)


def reconfigure(stream: TextIO, *, errors: str) -> None:
    """Set how `stream` treats text that its encoding cannot hold."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=errors)


def _write_to_stdout(text: str) -> None:
    # Flushed, so that whoever reads the pipe has each result as soon as it is known.
    print(text, end="", flush=True)  # noqa: T201
