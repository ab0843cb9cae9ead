"""Finds, verifies and downloads the catalogue's files on this machine.

Environment:
    SPLITATTN_CACHE: folder for downloads; by default `splitattn` in XDG_CACHE_HOME or ~/.cache.
    SPLITATTN_MIRROR: base URL that replaces scheme and host of every download; paths stay.
    SPLITATTN_OFFLINE: 1 forbids the network.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from splitattn.errors import WeightsError
from splitattn.files import exists, is_file, replacing
from splitattn.weights.catalogue import WeightsEntry, entries
from splitattn.weights.download import Progress, cache_writes, download, file_sha256, offline
from splitattn.weights.metadata import unreadable

logger = logging.getLogger(__name__)

_SHA256_DIGITS = 64


def cache_folder() -> Path:
    """The folder for downloads. It may not exist yet.

    Raises:
        WeightsError: no variable names a folder, and this user has no home folder.
    """
    if folder := os.environ.get("SPLITATTN_CACHE"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "splitattn"
    try:
        return Path.home() / ".cache" / "splitattn"
    except RuntimeError as error:
        raise WeightsError(
            "this user has no home folder to keep weights in: set SPLITATTN_CACHE to a folder"
        ) from error


def local_path(entry: WeightsEntry) -> Path:
    """The path of the entry's file, which may not have been downloaded yet."""
    if entry.embedded:
        return Path(__file__).parent / "embedded" / entry.filename
    return cache_folder() / entry.filename


def expected_sha256(entry: WeightsEntry) -> str:
    """The hash that the entry's file must have, or its first digits.

    If the publisher states only the first digits, the whole hash is recorded on the first use.

    Raises:
        WeightsError: this user has no home folder, or the record is malformed.
    """
    if entry.pinned or not is_file(record := _record(entry)):
        return entry.sha256
    try:
        digest = record.read_text("ascii").split()[0]
    except (OSError, ValueError, IndexError) as error:
        raise WeightsError(f"{record} must begin with a sha256: delete it") from error
    # A record with other digits belongs to an older catalogue.
    return digest if digest.startswith(entry.sha256) else entry.sha256


def _record(entry: WeightsEntry) -> Path:
    """The file that records the hash of an entry's file, in the format of sha256sum."""
    return cache_folder() / f"{entry.filename}.sha256"


def _first_use(entry: WeightsEntry) -> None:
    """Check a file of which only a part of the hash is known, and record its hash.

    Raises:
        WeightsError: the file does not hold a network of the entry's model whose outputs are
            plausible, or the cache cannot be written.
    """
    if entry.pinned or len(expected_sha256(entry)) == _SHA256_DIGITS:
        return
    path = local_path(entry)
    _check_plausible(entry, path)
    _note(entry, path, _digest(path))


def _note(entry: WeightsEntry, path: Path, digest: str) -> None:
    """Record the hash of a file whose network is plausible; log a warning if that fails."""
    record = _record(entry)
    try:
        with replacing(record) as temporary:
            temporary.write_text(f"{digest}  {path.name}\n", encoding="ascii")
    except OSError as error:  # a shared cache may be read-only
        logger.warning(
            "cannot record the hash of %s, so its network is checked at every start: %s; run "
            "'splitattn weights verify %s' where %s can be written",
            path,
            error,
            entry.name,
            record.parent,
        )


def _check_plausible(entry: WeightsEntry, path: Path) -> None:
    """Run the network of a file of which only a part of the hash is known.

    Raises:
        WeightsError: see `check_plausible`.
    """
    if not entry.pinned:
        from splitattn.weights.plausible import check_plausible  # slow to import, seldom needed

        check_plausible(path, entry.model, len(entry.classes))


def verify(entry: WeightsEntry) -> str:
    """Verify the entry's file on this machine and return its SHA-256.

    If the publisher states only a part of the hash, the network is run too.

    Raises:
        WeightsError: the file is missing, cannot be read, has another hash, or does not hold a
            network whose outputs are plausible.
    """
    path = local_path(entry)
    if not exists(path):
        raise WeightsError(
            f"{entry.name} is not on this machine: expected it at {path}; get it with splitattn "
            f"weights fetch {entry.name}"
        )
    digest = _digest(path)
    expected = expected_sha256(entry)
    if not digest.startswith(expected):
        raise WeightsError(
            f"{entry.name} must have a sha256 that begins {expected}, but {path} has {digest}: "
            "delete the file and get it again"
        )
    _check_plausible(entry, path)
    if not entry.pinned and len(expected) < _SHA256_DIGITS:
        _note(entry, path, digest)
    return digest


def identify(path: Path) -> WeightsEntry:
    """The catalogue entry of the file at `path`, found by its hash and checked as by `verify`.

    Raises:
        WeightsError: no entry has this hash, the file cannot be read, or its network's outputs are
            not plausible.
    """
    digest = _digest(path)
    if entry := _recognized(digest):
        _check_plausible(entry, path)
        return entry
    raise WeightsError(f"{path} matches no file of the catalogue: its sha256 is {digest}")


def published(path: Path) -> WeightsEntry | None:
    """The catalogue entry with the hash of the file at `path`, or None.

    Raises:
        WeightsError: the file cannot be read.
    """
    return _recognized(_digest(path))


def _recognized(digest: str) -> WeightsEntry | None:
    found = (entry for entry in entries() if digest.startswith(entry.sha256))
    # Skip records of other entries: a damaged one must not refuse this file.
    return next((entry for entry in found if digest.startswith(expected_sha256(entry))), None)


def _digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise unreadable(path, error) from error


def is_intact(entry: WeightsEntry) -> bool:
    """Whether the entry's file is on this machine and has the entry's hash.

    Raises:
        WeightsError: the file is there and cannot be read.
    """
    path = local_path(entry)
    return exists(path) and _digest(path).startswith(expected_sha256(entry))


def fetch(entry: WeightsEntry, *, progress: Progress | None = None) -> Path:
    """Download the entry's file if it is not on this machine yet, and verify its hash.

    A cached file with another hash is downloaded again. If several processes need the same file,
    it is downloaded once.

    Args:
        entry: what to fetch.
        progress: follows the download.

    Raises:
        WeightsError: the file cannot be downloaded; the cache then has no part of it.
    """
    path = local_path(entry)
    if is_intact(entry):
        _first_use(entry)
        return path
    if entry.embedded:
        raise WeightsError(f"the embedded weights {path} are missing or damaged: install again")
    if offline():
        state = "damaged" if exists(path) else "not"
        raise WeightsError(
            f"{entry.name} is {state} in the cache and SPLITATTN_OFFLINE forbids downloading it: "
            f"put {entry.filename} (sha256 {entry.sha256}...) at {path}, or give --weights PATH"
        )
    urls = [_mirrored(url) for url in entry.urls]
    with _locked(path):
        # Another process may have downloaded the file while this one waited for the lock.
        if not is_intact(entry):
            if exists(path):
                logger.warning("%s has a wrong hash: downloading it again", path)
            download(
                urls,
                path,
                sha256=expected_sha256(entry),
                most=entry.most_bytes,
                progress=progress,
            )
        _first_use(entry)
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock_folder = path.parent / ".locks"
    with cache_writes(path.parent):
        lock_folder.mkdir(parents=True, exist_ok=True)
        from filelock import FileLock  # needed only for a download

        lock = FileLock(lock_folder / f"{path.name}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _mirrored(url: str) -> str:
    mirror = os.environ.get("SPLITATTN_MIRROR")
    if not mirror:
        return url
    try:
        scheme = urlsplit(mirror).scheme
    except ValueError:
        scheme = ""
    if scheme not in ("http", "https"):
        raise WeightsError(f"SPLITATTN_MIRROR must begin with http:// or https://, got {mirror!r}")
    return mirror.rstrip("/") + urlsplit(url).path
