"""Downloads a file, resumes broken connections and verifies the file's hash."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from splitattn.errors import WeightsError
from splitattn.web import PATIENCE, SLOWEST, RefusedError, WebError, WebTimeoutError, get

Progress = Callable[[int, int | None], None]
"""Called with the bytes received so far and, if the server says, the bytes in all."""

logger = logging.getLogger(__name__)

_ATTEMPTS = 5
_PAUSE_SECONDS = 0.5
# A server that became too slow before sending this many bytes is not tried again.
_WORTH_WAITING = int(PATIENCE * SLOWEST)


def download(
    urls: Sequence[str],
    path: Path,
    *,
    sha256: str,
    most: int,
    progress: Progress | None = None,
) -> None:
    """Download the first of `urls` whose file has the right hash to `path`.

    An older file at `path` is removed first. After a failure nothing is left in its folder.

    Args:
        urls: sources of the same file, best first.
        path: the new file, in an existing folder.
        sha256: leading hexadecimal digits of the file's hash.
        most: bytes that the file may have; no more are received.
        progress: follows the download.

    Raises:
        WeightsError: no URL sent the right file, with the reason for each, or the folder cannot be
            written.
    """
    part = path.with_name(f"{path.name}.part")
    answers = []
    try:
        with cache_writes(path.parent):
            path.unlink(missing_ok=True)
        for url in urls:
            try:
                _receive(url, part, most=most, progress=progress)
            except (WebError, ConnectionError) as error:
                answers.append(f"{url}: {_in_words(error)}")
                continue
            digest = file_sha256(part)
            if digest.startswith(sha256):
                with cache_writes(path.parent):
                    part.replace(path)
                return
            answers.append(f"{url}: another file, with sha256 {digest[:8]}...")
    finally:
        part.unlink(missing_ok=True)
    raise WeightsError(
        f"cannot download {path.name} ({'; '.join(answers)}): put the file with sha256 "
        f"{sha256}... at {path}, or set SPLITATTN_MIRROR to a server that has it"
    )


def offline() -> bool:
    """Whether SPLITATTN_OFFLINE forbids the network."""
    return os.environ.get("SPLITATTN_OFFLINE", "0") not in ("", "0")


def file_sha256(path: Path) -> str:
    """The file's SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def cache_writes(folder: Path) -> Iterator[None]:
    """Turn errors of writing into a `WeightsError` that names the cache."""
    try:
        yield
    except OSError as error:
        raise WeightsError(
            f"cannot write to the cache {folder} ({error.strerror or error}): set SPLITATTN_CACHE "
            "to a folder that can be written"
        ) from error


def _receive(url: str, part: Path, *, most: int, progress: Progress | None) -> None:
    """Download `url` to `part`; resume after a broken connection.

    Raises:
        WebError, ConnectionError: the server cannot be reached, refuses, sends too much, or the
            connection breaks again and again.
    """
    with cache_writes(part.parent):
        file = part.open("wb")
    with file:
        for attempt in range(1, _ATTEMPTS + 1):
            before = file.tell()
            try:
                _receive_rest(url, file, most=most, progress=progress)
                break
            except (RefusedError, _TooLargeError):
                raise
            except (WebError, ConnectionError) as error:
                # Retry only if the server sent something; otherwise try the next URL.
                slow = isinstance(error, WebTimeoutError)
                if attempt == _ATTEMPTS or file.tell() == 0:
                    raise
                if slow and file.tell() - before < _WORTH_WAITING:
                    raise
                logger.info("%s broke off (%s): resuming", url, _in_words(error))
                time.sleep(attempt * _PAUSE_SECONDS)
        with cache_writes(part.parent):
            file.flush()
            os.fsync(file.fileno())


class _TooLargeError(WebError):
    """The server sends more than the file can have."""


def _receive_rest(url: str, file: BinaryIO, *, most: int, progress: Progress | None) -> None:
    """Append the missing bytes to `file`, or start again if the server cannot send a range."""
    offset = file.tell()
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    with get(url, headers=headers) as reply:
        if offset and reply.status != 206:
            offset = 0
            file.seek(0)
            file.truncate()
        total = None if reply.length is None else offset + reply.length
        if (total or 0) > most:
            raise _TooLargeError(f"more than the {most:,} bytes that the file may have")
        try:
            for chunk in reply.chunks():
                if file.tell() + len(chunk) > most:
                    raise _TooLargeError(f"more than the {most:,} bytes that the file may have")
                with cache_writes(Path(file.name).parent):
                    file.write(chunk)
                if progress:
                    progress(file.tell(), total)
        except WebTimeoutError:
            raise
        except WebError as error:
            if total is not None and file.tell() < total:
                raise ConnectionError(f"broke off after {file.tell()} of {total} bytes") from error
            raise


def _in_words(error: OSError) -> str:
    return " ".join(str(error).split()) or type(error).__name__
