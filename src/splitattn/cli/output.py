"""Where results go: to a file that appears whole, or to stdout."""

import io
import json
import logging
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from splitattn.errors import InputError, one_line, write_failure
from splitattn.files import check_can_write, is_file


def check_output(
    output: Path | None, option: str = "--output", endings: Collection[str] = ()
) -> None:
    """Check that `output`, which `option` names, can be a result file, before any work is done.

    Args:
        endings: of the formats that can be written, if the ending chooses one. A name without an
            ending is accepted.

    Raises:
        InputError: it is a folder or a device, has another ending, or no file can be written there.
    """
    if output == Path("-"):  # stdout, where it is allowed
        raise InputError(f"{option} must be a file here, got -: name one")
    if output is not None and endings and output.suffix.lower() not in ("", *endings):
        known = ", ".join(endings)
        raise InputError(f"{option} must end in {known} or have no ending, got {output}")
    if output is not None and not is_file(output) and os.path.exists(output):  # noqa: PTH110
        raise InputError(f"{option} must be a file, got {output}, a folder or device")
    if output is not None:
        check_can_write(output, f"cannot write {option}")


@contextmanager
def writing(output: Path | None, option: str = "--output") -> Iterator[Callable[[str], None]]:
    """A function that writes text to `output`, which appears when the block ends, or to stdout.

    Args:
        option: what names the file on the command line.

    Raises:
        InputError: the file cannot be written.
    """
    if output is None:
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
        raise InputError(write_failure(output, error, f"cannot write {option}")) from error


def write_output(text: str, output: Path | None, option: str = "--output") -> None:
    """Write `text` to `output`, which `option` names, or to stdout.

    Raises:
        InputError: the file cannot be written.
    """
    with writing(output, option) as write:
        write(text)


def conclude(text: str) -> None:
    """Print lines on stdout. On a terminal those that are too long are broken between words."""
    lines = text.split("\n")
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        wrap = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False).fill
        # Lines that fit stay: wrapping would shorten the spaces between a table's columns.
        lines = [wrap(line) if len(line) > width else line for line in lines]
    _write_to_stdout("".join(f"{line}\n" for line in lines))


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


class _Prefixed(logging.Formatter):
    """A log's message as one line that begins with its level: `warning: ...`."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{record.levelname.lower()}: {one_line(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Unrepeated(logging.Filter):
    """Leaves out a message that equals the one before, such as of the next split of a data set."""

    def __init__(self) -> None:
        super().__init__()
        self._last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        last, self._last = self._last, record.getMessage()
        return self._last != last


def show_warnings() -> None:
    """Show logged warnings once, beginning with `warning:`, unless logging has been set up."""
    if logging.lastResort:
        logging.lastResort.setFormatter(_Prefixed())
        logging.lastResort.filters[:] = [_Unrepeated()]


def replace_streams() -> None:
    """Give a process that began without stdin, stdout or stderr an empty one.

    Reading from it gives nothing. Writing results to it is an `OSError`. Messages and progress on
    stderr are lost if it cannot take them, because it was closed, its reader or its terminal is
    gone, or the disk is full: no result depends on them.
    """
    sys.stdin = sys.stdin or _nothing("r")
    sys.stdout = sys.stdout or _nothing("r")
    sys.stderr = sys.stderr or _nothing("w")
    own = sys.__stderr__
    if own and sys.stderr is own:  # and not what a notebook or a test has put there
        raw: Any = getattr(own.buffer, "raw", own.buffer)  # with `python -u` the buffer is raw
        lossy = _Lossy(raw)
        sys.stderr = io.TextIOWrapper(
            cast("BinaryIO", lossy) if own.write_through else io.BufferedWriter(lossy),
            encoding=own.encoding,
            errors=own.errors,
            line_buffering=True,
            write_through=own.write_through,
        )


class _Lossy(io.RawIOBase):
    """A stream that drops what it cannot write."""

    def __init__(self, stream: io.RawIOBase) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        with suppress(OSError):
            while rest:
                rest = rest[self._stream.write(rest) or len(rest) :]
        return memoryview(data).nbytes

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()


@cache
def _nothing(mode: str) -> TextIO:
    """An empty file for the rest of the process."""
    return cast("TextIO", Path(os.devnull).open(mode, encoding="utf-8"))


def discard_unwritten() -> None:
    """Discard what stdout could not take, or Python would report it again when it exits."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def csv_cell(value: object) -> object:
    """`value` as a cell of a CSV file that no spreadsheet takes for a formula.

    Text is one line of printable characters. What a spreadsheet would take for a formula gets an
    apostrophe in front, as OWASP advises.
    """
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def json_line(value: object) -> str:
    """`value` as one line of JSON, with null for NaN and infinities."""
    return json.dumps(_nullified(value), allow_nan=False) + "\n"


def _nullified(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nullified(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_nullified(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reconfigure(stream: TextIO, *, errors: str) -> None:
    """Set how `stream` treats text that its encoding cannot hold."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=errors)


def _write_to_stdout(text: str) -> None:
    # Flushed, so that whoever reads the pipe has each result as soon as it is known.
    print(text, end="", flush=True)  # noqa: T201
