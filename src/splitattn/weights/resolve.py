"""A name or a path becomes a verified local file: embedded, cached, downloaded, or one's own.

Environment:
    SPLITATTN_CACHE: folder for downloads; by default `splitattn` in XDG_CACHE_HOME or ~/.cache.
    SPLITATTN_MIRROR: base URL that replaces scheme and host of every download; paths stay.
    SPLITATTN_OFFLINE: 1 forbids the network.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from splitattn.architectures import architecture, split_name
from splitattn.errors import WeightsError, nearest
from splitattn.files import is_file, is_folder
from splitattn.preprocessing import Preprocessing
from splitattn.weights.catalogue import (
    WeightsEntry,
    default_preprocessing,
    embedded_entry,
    entries,
    find_entry,
    named,
)
from splitattn.weights.download import Progress, cache_writes, download, file_sha256, offline
from splitattn.weights.hub import WEIGHTS_NAMES, folder_of, is_reference
from splitattn.weights.metadata import ModelMetadata, read_metadata, unreadable
from splitattn.weights.timm_config import CONFIG_NAME, Config, read_config

logger = logging.getLogger(__name__)

# Endings of what `splitattn export` writes.
EXPORTED_SUFFIXES = (".onnx", ".xml", ".pt2")


@dataclass(frozen=True, kw_only=True)
class ResolvedWeights:
    """A verified local file and what is needed to use it.

    Attributes:
        path: the file.
        model: name of the architecture it belongs to.
        tag: its tag in the catalogue, the `hf-hub:` or `local-dir:` name that it was called by, or
            None for a file of the person's own.
        classes: class names by output index, or None if the file does not say.
        preprocessing: how images become the model's input.
    """

    path: Path
    model: str
    tag: str | None
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing


def resolve(
    model: str | None = None,
    weights: str | Path | None = None,
    *,
    progress: Progress | None = None,
) -> ResolvedWeights:
    """Find the weights that a person means, on the disk or, if need be, on the network.

    Args:
        model: name of an architecture, ours or another project's, or an `hf-hub:` or `local-dir:`
            name, which names weights too; None takes the architecture from the weights.
        weights: a tag of the catalogue, an `hf-hub:` or `local-dir:` name, or else the path of a
            file or of a folder of weights; None takes the tag in the model's name
            (`timm/resnest50d.in1k`) or the model's default entry, or without a model
            the embedded one.
        progress: follows the download, if there is one.

    Raises:
        InputError: there is no model of that name, or huggingface_hub is missing.
        WeightsError: there are no such weights, they cannot be had, or they are another model's.
    """
    if model is not None and is_reference(model):
        if weights is not None:
            raise WeightsError(
                f"{model} names weights already, got {str(weights)!r} too: leave one of them out"
            )
        model, weights = None, model
    tag = None
    if model is not None:
        model, tag = named(model)
    if isinstance(weights, str) and is_reference(weights):
        found = _resolved_folder(folder_of(weights, progress=progress), model)
        return replace(found, tag=weights)
    if weights is None:
        entry = embedded_entry() if model is None else find_entry(model, tag)
        return _resolved(entry, fetch(entry, progress=progress))
    if isinstance(weights, str):
        tagged = [entry for entry in entries(model) if entry.tag == weights]
        if len(tagged) == 1:
            return _resolved(tagged[0], fetch(tagged[0], progress=progress))
        if tagged:
            raise WeightsError(
                f"{len(tagged)} models have weights called {weights!r}: name the model, "
                f"for example {tagged[0].model}"
            )
    path = Path(weights)
    if not _exists(path):
        tags = sorted({entry.tag for entry in entries(model)})
        hint = nearest(str(weights), tags) or f"; the tags are {', '.join(tags) or 'none'}"
        whose = f"of {model}" if model else "of any model"
        raise WeightsError(f"{str(weights)!r} is neither a tag {whose} nor a file{hint}")
    if is_folder(path):
        return _resolved_folder(path, model)
    return _resolved_file(path, model)


def _resolved_folder(folder: Path, model: str | None) -> ResolvedWeights:
    path = next((folder / name for name in WEIGHTS_NAMES if _exists(folder / name)), None)
    if path is None:
        raise WeightsError(
            f"{folder} must be a folder with {' or '.join(WEIGHTS_NAMES)}, and holds neither"
        )
    # What the weights say of themselves is all there is to say, and what they were measured with.
    if read_metadata(path) or not _exists(folder / CONFIG_NAME):
        return _resolved_file(path, model)
    config = read_config(folder / CONFIG_NAME)
    check_owner(folder, config.model, model)
    return _resolved(config, path)


def _resolved(said: WeightsEntry | ModelMetadata | Config, path: Path) -> ResolvedWeights:
    return ResolvedWeights(
        path=path,
        model=said.model,
        tag=said.tag if isinstance(said, WeightsEntry) else None,
        classes=said.classes,
        preprocessing=said.preprocessing,
    )


def _resolved_file(path: Path, model: str | None) -> ResolvedWeights:
    if path.suffix in EXPORTED_SUFFIXES:
        raise WeightsError(
            f"{path} must hold weights, it is a network exported for an engine, which predict and "
            "evaluate take: name the weights that it was exported from"
        )
    if metadata := read_metadata(path):
        architecture(metadata.model)
        check_owner(path, metadata.model, model)
        return _resolved(metadata, path)
    # A published file that somebody brought by hand, under whatever name.
    if entry := published(path):
        check_owner(path, entry.model, model)
        return _resolved(entry, path)
    if model is None:
        raise WeightsError(f"{path} does not say which model it belongs to: name the model")
    return ResolvedWeights(
        path=path,
        model=model,
        tag=None,
        classes=None,
        preprocessing=default_preprocessing(model),
    )


def check_owner(path: Path, owner: str, model: str | None) -> None:
    """Raise if the file belongs to another model than the one that was named, if any was.

    Raises:
        WeightsError: it does.
    """
    if model is not None and split_name(model)[0] != split_name(owner)[0]:
        raise WeightsError(f"{path} belongs to {owner}, not to {model}: name that model")


def _exists(path: Path) -> bool:
    return is_file(path) or is_folder(path)


def cache_folder() -> Path:
    """Where downloads are kept; the folder need not exist.

    Raises:
        WeightsError: no variable names a folder, and this user has no home either.
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
    """Where the entry's file is, or would be after a download."""
    if entry.embedded:
        return Path(__file__).parent / "embedded" / entry.filename
    return cache_folder() / entry.filename


def verify(entry: WeightsEntry) -> str:
    """The SHA-256 of the entry's file on this machine, once it proved to be the entry's.

    Raises:
        WeightsError: the file is not there, cannot be read, or is another one.
    """
    path = local_path(entry)
    if not _exists(path):
        raise WeightsError(f"{entry.name} is not on this machine: it would be {path}")
    digest = _digest(path)
    if not digest.startswith(entry.sha256):
        raise WeightsError(
            f"{entry.name} must have a sha256 that begins {entry.sha256}, but {path} has {digest}: "
            "delete the file and get it again"
        )
    return digest


def identify(path: Path) -> WeightsEntry:
    """The catalogue entry that the file at `path` is, judged by its hash.

    Raises:
        WeightsError: it is none of the catalogue's, or cannot be read.
    """
    digest = _digest(path)
    if entry := _recognized(digest):
        return entry
    raise WeightsError(f"{path} is none of the catalogue's files: its sha256 is {digest}")


def published(path: Path) -> WeightsEntry | None:
    """The catalogue entry that the file at `path` is, judged by its hash, or None.

    Raises:
        WeightsError: the file cannot be read.
    """
    return _recognized(_digest(path))


def _recognized(digest: str) -> WeightsEntry | None:
    return next((entry for entry in entries() if digest.startswith(entry.sha256)), None)


def _digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise unreadable(path, error) from error


def is_intact(entry: WeightsEntry) -> bool:
    """Whether the entry's file is on this machine and has the entry's hash.

    Raises:
        WeightsError: the file is there, but cannot be read.
    """
    path = local_path(entry)
    return _exists(path) and _digest(path).startswith(entry.sha256)


def fetch(entry: WeightsEntry, *, progress: Progress | None = None, timeout: float = 30.0) -> Path:
    """The entry's file, verified against its hash; downloaded if it is not on this machine yet.

    A cached file of another hash is discarded and downloaded again. Processes that want the same
    file at the same time download it once.

    Args:
        entry: what to fetch.
        progress: follows the download.
        timeout: seconds to wait for a connection, or for more data on one.

    Raises:
        WeightsError: the file cannot be had; the cache then holds nothing of it.
    """
    path = local_path(entry)
    if is_intact(entry):
        return path
    if entry.embedded:
        raise WeightsError(f"the embedded weights {path} are missing or damaged: install again")
    if offline():
        state = "damaged" if _exists(path) else "not"
        raise WeightsError(
            f"{entry.name} is {state} in the cache and SPLITATTN_OFFLINE forbids to download it: "
            f"put {entry.filename} (sha256 {entry.sha256}...) at {path}, or give --weights PATH"
        )
    urls = [_mirrored(url) for url in entry.urls]
    with _locked(path):
        # Another process may have brought the file while this one waited for the lock.
        if not is_intact(entry):
            if _exists(path):
                logger.warning("%s does not have its hash: downloading it again", path)
            download(urls, path, sha256=entry.sha256, progress=progress, timeout=timeout)
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock_folder = path.parent / ".locks"
    with cache_writes(path.parent):
        lock_folder.mkdir(parents=True, exist_ok=True)
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
