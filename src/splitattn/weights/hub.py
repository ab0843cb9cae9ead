"""Downloads repositories of the Hugging Face hub and pushes folders to them.

Only the files named here are downloaded, and they are only read as data: no code of a repository is
run. Environment variables, those of huggingface_hub and ours:

    HF_HOME, HF_HUB_CACHE: the folder for downloads, shared with timm and others.
    HF_ENDPOINT: a server to use instead of huggingface.co.
    HF_HUB_ETAG_TIMEOUT: seconds for an answer about a file; by default `web.PATIENCE`.
    HF_TOKEN: the access token for private repositories; by default that of `hf auth login`.
    SPLITATTN_OFFLINE: 1 forbids the network.
"""

import hashlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from splitattn.errors import WeightsError, one_line
from splitattn.files import open_file
from splitattn.libraries import require
from splitattn.web import PATIENCE, SLOWEST, Deadline, within
from splitattn.weights.download import Progress, file_sha256, offline
from splitattn.weights.in_folder import WEIGHTS_NAMES
from splitattn.weights.timm_config import CONFIG_NAME, read_config

CARD_NAME = "README.md"
# This line marks generated model cards.
CARD_MARK = (
    "<!-- Made from the weights by splitattn, which replaces this page when it writes them again. "
    "Delete this line to write here yourself. -->"
)

logger = logging.getLogger(__name__)

# Largest files in bytes. The largest network takes half a gigabyte in float32.
_MOST_BYTES = {CONFIG_NAME: 1 << 25, CARD_NAME: 1 << 25}
_MOST_WEIGHTS_BYTES = 1 << 31

_LOCAL = "local-dir:"
_PREFIXES = ("hf-hub:", "hf_hub:")
_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"[\w.-][\w./-]*", re.ASCII)


def is_reference(name: str) -> bool:
    """Whether `name` is `local-dir:PATH` or `hf-hub:OWNER/NAME`. The prefixes are timm's."""
    return isinstance(name, str) and name.startswith((_LOCAL, *_PREFIXES))


def folder_of(reference: str, *, progress: Progress | None = None) -> Path:
    """The local folder of a reference. A repository is downloaded unless it is in the cache.

    Raises:
        InputError: huggingface_hub is missing.
        WeightsError: the repository cannot be downloaded, or holds another kind of network.
    """
    kind, _, place = reference.partition(":")
    if f"{kind}:" == _LOCAL:
        return Path(place)
    return fetch_repository(Repository.parse(place), progress=progress)


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository of the Hugging Face hub.

    Attributes:
        id: owner/name.
        revision: branch, tag or commit; None means the main branch.

    Raises:
        WeightsError: `id` or `revision` is malformed.
    """

    id: str
    revision: str | None = None

    def __post_init__(self) -> None:
        wrong = not _ID.fullmatch(self.id) or ".." in self.id
        if self.revision is not None:
            wrong |= not _REVISION.fullmatch(self.revision) or ".." in self.revision
        if wrong:
            raise WeightsError(
                f"a repository must be owner/name or owner/name@revision, got {str(self)!r:.120}"
            )

    @classmethod
    def parse(cls, text: str) -> "Repository":
        """Parse `owner/name` or `owner/name@revision`.

        Raises:
            WeightsError: the text is neither.
        """
        name, at, revision = text.partition("@")
        return cls(id=name, revision=revision if at else None)

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def fetch_repository(
    repository: Repository,
    *,
    progress: Progress | None = None,
    check: Callable[[Path], object] = read_config,
    most: int | None = None,
) -> Path:
    """Download a repository's weights and `config.json`, of one commit, and return their folder.

    Files are verified each time against the server's hash. In huggingface_hub's cache, this hash is
    the name of the file that a link points to. A cache without links (HF_HUB_DISABLE_SYMLINKS, some
    file systems) has no hash, so the server is asked again; if it cannot be reached, the files are
    used unverified, with a warning. If the server cannot be reached and the cache has both files,
    the cached ones are used.

    Args:
        check: called with the path of `config.json`; raises if the weights must not be downloaded.
        most: largest size of the weights in bytes; None for a limit that no network here exceeds.

    Raises:
        InputError: huggingface_hub is missing.
        WeightsError: the repository cannot be downloaded or holds no weights; or by default, its
            `config.json` describes another kind of network.
    """
    require("a name that begins with hf-hub:", "huggingface_hub")
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _refusals(repository):
        if offline():
            folder = _folder(repository, _cached, check)
        else:
            try:
                download = partial(_downloaded, progress=progress, most_weights=most)
                folder = _folder(repository, download, check)
            except LocalEntryNotFoundError:
                # The repository may have no config.json, and all its files may be cached.
                if (folder := _folder(repository, _cached, check)) is None:
                    raise
    if folder:
        return folder
    if offline():
        raise WeightsError(
            f"{repository} is not in the cache and SPLITATTN_OFFLINE forbids downloading it: "
            "download it where there is a network, or name a local folder"
        )
    raise WeightsError(f"{repository} must hold {' or '.join(WEIGHTS_NAMES)}, it has neither")


def _folder(
    repository: Repository,
    get: Callable[[Repository, str], Path | None],
    check: Callable[[Path], object],
) -> Path | None:
    """Get config and weights with `get`; their folder, or None if there are no weights."""
    config, pinned = get(repository, CONFIG_NAME), repository
    if config:
        check(config)  # before hundreds of megabytes are downloaded
        pinned = replace(repository, revision=config.parent.name)
    weights = next(filter(None, (get(pinned, name) for name in WEIGHTS_NAMES)), None)
    return weights and weights.parent


def is_generated(card: Path) -> bool:
    """Whether the model card still has the line that marks generated cards.

    Raises:
        OSError: the card cannot be read.
    """
    with open_file(card) as file:
        text = file.read(_MOST_BYTES[CARD_NAME]).decode(errors="replace")
    return CARD_MARK in text.splitlines()


def push(
    folder: Path,
    repository: Repository,
    *,
    message: str,
    private: bool,
    create_pr: bool,
    token: str | None,
) -> str:
    """Push the files in `folder` as one commit. A missing repository is created.

    An existing model card is replaced only if it is a generated one.

    Returns:
        The commit's URL.

    Raises:
        InputError: huggingface_hub is missing.
        WeightsError: the server refuses, or SPLITATTN_OFFLINE is set.
    """
    require("push_to_hub", "huggingface_hub")
    if offline():
        raise WeightsError(f"SPLITATTN_OFFLINE forbids pushing to {repository}: unset it")
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token, **_who())
    with _refusals(repository):
        api.create_repo(repository.id, private=private, exist_ok=True)
        card = None
        if api.file_exists(repository.id, CARD_NAME, revision=repository.revision):
            card = _downloaded(repository, CARD_NAME, token=token)
        stays = {CARD_NAME} if card and not is_generated(card) else set()
        # upload_folder may split the files over several commits, so a reader could get half.
        commit = api.create_commit(
            repository.id,
            [
                CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file)
                for file in sorted(folder.iterdir())
                if file.name not in stays
            ],
            commit_message=message,
            revision=repository.revision,
            create_pr=create_pr,
        )
    return str(commit.commit_url)


def _cached(repository: Repository, name: str) -> Path | None:
    # hf_hub_download sends requests even with local_files_only.
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository.id, name, revision=repository.revision)
    if not isinstance(found, str):
        return None
    path = Path(found)
    if not _intact(path, _linked_hash(path)):
        raise WeightsError(f"{path} is damaged: delete it and download it again")
    return path


def _downloaded(
    repository: Repository,
    name: str,
    *,
    progress: Progress | None = None,
    token: str | None = None,
    most_weights: int | None = None,
) -> Path | None:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    most = _MOST_BYTES.get(name, most_weights or _MOST_WEIGHTS_BYTES)
    try:
        size = _metadata(repository, name, token=token).size
        if (size or 0) > most:
            raise _too_large(repository, name, most)
        for again in (False, True):
            # huggingface_hub reports progress once per chunk.
            chunk = min(size or most, constants.DOWNLOAD_CHUNK_SIZE)
            deadline = Deadline(_seconds_to_answer() + PATIENCE + chunk / SLOWEST)
            download = partial(
                hf_hub_download,
                repository.id,
                name,
                revision=repository.revision,
                token=token,
                etag_timeout=_seconds_to_answer(),
                tqdm_class=_bar(repository, name, most, deadline, progress),
                force_download=again,
                **_who(),
            )
            path = Path(within(deadline, download))
            told = _linked_hash(path) or _served_hash(repository, path, token=token)
            if _intact(path, told):
                return path
            path.unlink()  # huggingface_hub would not replace a file that is not a link
    except LocalEntryNotFoundError:  # no server, so unknown whether the repository has the file
        raise
    except EntryNotFoundError:
        return None
    raise WeightsError(f"{repository} sent a {name} that does not have its hash: try again")


def _linked_hash(path: Path) -> str | None:
    """The hash of a cached file, from the name of its link's target; None without a link."""
    return path.readlink().name if path.is_symlink() else None


def _served_hash(repository: Repository, path: Path, *, token: str | None) -> str | None:
    """The server's hash of a cached file; None if the server cannot be reached."""
    from huggingface_hub.errors import HfHubHTTPError

    pinned = replace(repository, revision=path.parent.name)
    try:
        etag: str | None = _metadata(pinned, path.name, token=token).etag
    except (OSError, *HfHubHTTPError.__bases__):
        return None
    return etag


def _metadata(repository: Repository, name: str, *, token: str | None) -> Any:
    """The server's metadata of a file, within seconds; huggingface_hub would retry for a minute.

    Raises:
        HfHubHTTPError: the server refuses.
        LocalEntryNotFoundError: it cannot be reached, or fails.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    url = hf_hub_url(repository.id, name, revision=repository.revision)
    seconds = _seconds_to_answer()
    ask = partial(get_hf_file_metadata, url, token=token, timeout=seconds, **_who())
    try:
        return within(Deadline(seconds), ask)
    except (OSError, *HfHubHTTPError.__bases__) as error:
        answered = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
        if answered:
            raise
        raise LocalEntryNotFoundError(f"{url} cannot be reached: {error}") from error


def _seconds_to_answer() -> float:
    """The time limit in seconds for the server's metadata of a file.

    Raises:
        WeightsError: HF_HUB_ETAG_TIMEOUT is not a number of seconds.
    """
    text = os.environ.get("HF_HUB_ETAG_TIMEOUT") or str(PATIENCE)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise WeightsError(f"HF_HUB_ETAG_TIMEOUT must be a number of seconds, got {text!r:.40}")
    return seconds


def _intact(path: Path, told: str | None) -> bool:
    """Whether a file has the expected hash. If there is none, warn and accept the file.

    The hub hashes large files with SHA-256 and small ones with git's SHA-1.
    """
    if re.fullmatch("[0-9a-f]{64}", told or ""):
        return file_sha256(path) == told
    if re.fullmatch("[0-9a-f]{40}", told or ""):
        header = b"blob %d\0" % path.stat().st_size
        sha1 = partial(hashlib.sha1, header, usedforsecurity=False)
        with open_file(path) as file:
            git = hashlib.file_digest(cast(BufferedReader, file), sha1)
        return git.hexdigest() == told
    logger.warning("%s is not verified: neither the cache nor a server has its hash", path)
    return True


def _who() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {"library_name": "splitattn", "library_version": version("splitattn")}
    except PackageNotFoundError:  # run from a clone
        return {"library_name": "splitattn"}


def _too_large(repository: Repository, name: str, most: int) -> WeightsError:
    return WeightsError(f"{name} of {repository} must have at most {most:,} bytes, it has more")


def _bar(
    repository: Repository, name: str, most: int, deadline: Deadline, progress: Progress | None
) -> type[Any]:
    """A tqdm class for huggingface_hub: shows nothing, calls `progress`, limits bytes and time."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": True})
            self.received, self.expected = options.get("initial", 0), options.get("total")

        def update(self, n: float | None = 1) -> None:
            self.received += n or 0
            deadline.receive(int(n or 0))
            if self.received > most:
                raise _too_large(repository, name, most)
            if progress:
                progress(int(self.received), self.expected)

    return Bar


@contextmanager
def _refusals(repository: Repository) -> Iterator[None]:
    """Turn errors of huggingface_hub and its HTTP library into a WeightsError of one line."""
    from huggingface_hub import errors

    try:
        yield
    except WeightsError:
        raise
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{repository.id} is gated: accept its terms on its page, then set HF_TOKEN or run "
            "`hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{repository.id} does not exist or is private: check the name, or set HF_TOKEN or run "
            "`hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(
            f"{repository.id} has no revision {repository.revision!r}; name a branch, a tag or a "
            "commit of it"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise WeightsError(
            f"{repository} is not in the cache and its server cannot be reached: check the "
            "network, or set HF_ENDPOINT to a server that has it"
        ) from error
    # HfHubHTTPError inherits from the base class of its HTTP library's errors.
    except (OSError, ValueError, *errors.HfHubHTTPError.__bases__) as error:
        reason = one_line(" ".join(str(error).split()))[:300] or type(error).__name__
        of_http = isinstance(error, errors.HfHubHTTPError.__bases__[0])
        if of_http and not isinstance(error, errors.HfHubHTTPError):  # there was no answer
            reason = f"its server cannot be reached ({reason}): check the network, or HF_ENDPOINT"
        raise WeightsError(f"{repository}: {reason}") from error
