"""Names of folders and repositories; a repository becomes a local folder, and a folder a commit.

Only files that this module names are fetched and only as data: nothing that a repository holds is
ever run. What huggingface_hub keeps, and where it asks, it takes from its own environment:

    HF_HOME, HF_HUB_CACHE: where downloads are kept, together with those of timm and others.
    HF_ENDPOINT: another server than huggingface.co.
    HF_TOKEN: who asks, where a repository is private; or what `hf auth login` left.
    SPLITATTN_OFFLINE: 1 forbids the network here too.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from splitattn.errors import WeightsError, one_line
from splitattn.libraries import require
from splitattn.weights.download import Progress, file_sha256, offline
from splitattn.weights.timm_config import CONFIG_NAME, read_config

# What weights are called in a folder or a repository, best first.
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
CARD_NAME = "README.md"
# A line of the cards that are made here.
CARD_MARK = (
    "<!-- Made from the weights by splitattn, which replaces this page when it writes them again. "
    "Delete this line to write here yourself. -->"
)

logger = logging.getLogger(__name__)

_LOCAL = "local-dir:"
_PREFIXES = ("hf-hub:", "hf_hub:")
_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"[\w.-][\w./-]*", re.ASCII)


def is_reference(name: str) -> bool:
    """Whether `name` is that of a folder or repository, `local-dir:PATH` or `hf-hub:OWNER/NAME`.

    timm knows them by the same prefixes.
    """
    return name.startswith((_LOCAL, *_PREFIXES))


def folder_of(reference: str, *, progress: Progress | None = None) -> Path:
    """The local folder that a reference stands for; that of a repository is downloaded or cached.

    Raises:
        InputError: huggingface_hub is missing.
        WeightsError: the repository cannot be had, or is not of this package's networks.
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
        revision: branch, tag or commit; None is the main branch.

    Raises:
        WeightsError: they could not be that.
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
        """The repository that `owner/name` or `owner/name@revision` names.

        Raises:
            WeightsError: the text is neither.
        """
        name, at, revision = text.partition("@")
        return cls(id=name, revision=revision if at else None)

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def fetch_repository(repository: Repository, *, progress: Progress | None = None) -> Path:
    """The folder of a repository's weights and `config.json`, both of the same commit, both intact.

    Each time, files are compared with the hash that the server gave for them. huggingface_hub's
    cache keeps it as the name that a link leads to. Where there are no links (some file systems,
    HF_HUB_DISABLE_SYMLINKS), the server is asked again; without one the files are used unverified,
    with a warning. A server that cannot be reached is no error where the cache has both files.

    Raises:
        InputError: huggingface_hub is missing.
        WeightsError: the repository cannot be had or holds no weights, or its `config.json` is not
            of one of this package's networks.
    """
    require("a name that begins with hf-hub:", "huggingface_hub")
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _refusals(repository):
        if offline():
            folder = _folder(repository, _cached)
        else:
            try:
                folder = _folder(repository, partial(_downloaded, progress=progress))
            except LocalEntryNotFoundError:
                # A file that the repository does not have is in no cache, and may not be needed.
                if (folder := _folder(repository, _cached)) is None:
                    raise
    if folder:
        return folder
    if offline():
        raise WeightsError(
            f"{repository} is not in the cache and SPLITATTN_OFFLINE forbids downloading it: "
            "fetch it where there is a network, or name a local folder"
        )
    raise WeightsError(f"{repository} must hold {' or '.join(WEIGHTS_NAMES)}, it holds neither")


def _folder(repository: Repository, get: Callable[[Repository, str], Path | None]) -> Path | None:
    """Where `get` brings weights to, and what says what they are; None if it has no weights."""
    config, pinned = get(repository, CONFIG_NAME), repository
    if config:
        read_config(config)  # before hundreds of megabytes of something else
        pinned = replace(repository, revision=config.parent.name)
    weights = next(filter(None, (get(pinned, name) for name in WEIGHTS_NAMES)), None)
    return weights and weights.parent


def is_generated(card: Path) -> bool:
    """Whether the model card was made here and nobody took it over.

    Raises:
        OSError: it cannot be read.
    """
    return CARD_MARK in card.read_text(encoding="utf-8", errors="replace").splitlines()


def push(
    folder: Path,
    repository: Repository,
    *,
    message: str,
    private: bool,
    create_pr: bool,
    token: str | None,
) -> str:
    """One commit with the files in `folder`, to a repository that is created if need be.

    A model card that the repository has already stays unless it was made here: people write in
    them.

    Returns:
        The commit's URL.

    Raises:
        InputError: huggingface_hub is missing.
        WeightsError: the server refuses, or SPLITATTN_OFFLINE forbids to ask it.
    """
    require("push_to_hub", "huggingface_hub")
    if offline():
        raise WeightsError(f"SPLITATTN_OFFLINE forbids to push to {repository}: unset it")
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token, **_who())
    with _refusals(repository):
        api.create_repo(repository.id, private=private, exist_ok=True)
        card = None
        if api.file_exists(repository.id, CARD_NAME, revision=repository.revision):
            card = _downloaded(repository, CARD_NAME, token=token)
        stays = {CARD_NAME} if card and not is_generated(card) else set()
        # Not upload_folder, which may make several commits of it: nobody should find half of them.
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
    # Not hf_hub_download with local_files_only, which asks the server about other things.
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
) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    options = {"tqdm_class": _bar(progress)} if progress else {}
    download = partial(
        hf_hub_download,
        repository.id,
        name,
        revision=repository.revision,
        token=token,
        **_who(),
        **options,
    )
    try:
        for again in (False, True):
            path = Path(download(force_download=again))
            told = _linked_hash(path) or _served_hash(repository, path, token=token)
            if _intact(path, told):
                return path
            path.unlink()  # what is no link, huggingface_hub does not replace
    except LocalEntryNotFoundError:  # there is no server, which says nothing about the file
        raise
    except EntryNotFoundError:
        return None
    raise WeightsError(f"{repository} sent another {name} than it said: try again")


def _linked_hash(path: Path) -> str | None:
    """What a file of the cache is kept under, which is its hash; None where no link shows it."""
    return path.readlink().name if path.is_symlink() else None


def _served_hash(repository: Repository, path: Path, *, token: str | None) -> str | None:
    """The hash that the server has for a file of the cache; None where there is no server."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    url = hf_hub_url(repository.id, path.name, revision=path.parent.name)
    try:
        etag: str | None = get_hf_file_metadata(url, token=token, **_who()).etag
    except (OSError, *HfHubHTTPError.__bases__):
        return None
    return etag


def _intact(path: Path, told: str | None) -> bool:
    """Whether a file has the hash that was told; where none was, it is used with a warning.

    Of large files it is their SHA-256, of small ones the SHA-1 that git gives them.
    """
    if re.fullmatch("[0-9a-f]{64}", told or ""):
        return file_sha256(path) == told
    if re.fullmatch("[0-9a-f]{40}", told or ""):
        content = path.read_bytes()
        header = b"blob %d\0" % len(content)
        return hashlib.sha1(header + content, usedforsecurity=False).hexdigest() == told
    logger.warning("%s is not verified: the cache does not tell its hash, nor a server", path)
    return True


def _who() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {"library_name": "splitattn", "library_version": version("splitattn")}
    except PackageNotFoundError:  # a clone that is not installed
        return {"library_name": "splitattn"}


def _bar(progress: Progress) -> type[Any]:
    """What huggingface_hub takes for a tqdm, and tells `progress`."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": True})
            self.received, self.expected = options.get("initial", 0), options.get("total")

        def update(self, n: float | None = 1) -> None:
            self.received += n or 0
            progress(int(self.received), self.expected)

    return Bar


@contextmanager
def _refusals(repository: Repository) -> Iterator[None]:
    """What huggingface_hub says, in several lines and exceptions of several libraries, in one."""
    from huggingface_hub import errors

    try:
        yield
    except WeightsError:
        raise
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{repository.id} is open to those alone who accepted its terms: accept them on its "
            "page, and say who you are with HF_TOKEN or `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{repository.id} is no repository, or a private one: check the name, or say who you "
            "are with HF_TOKEN or `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{repository.id} has no revision {repository.revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise WeightsError(
            f"{repository} is not in the cache, and its server cannot be reached: check the "
            "network, or set HF_ENDPOINT to a server that has it"
        ) from error
    # One of those bases is what every error of its HTTP library is, whichever that is.
    except (OSError, ValueError, *errors.HfHubHTTPError.__bases__) as error:
        reason = one_line(" ".join(str(error).split()))[:300] or type(error).__name__
        raise WeightsError(f"{repository}: {reason}") from error
