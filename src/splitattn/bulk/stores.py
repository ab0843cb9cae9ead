"""Files in a folder or a bucket, written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from splitattn.errors import ImageError, InputError
from splitattn.files import open_file, replacing
from splitattn.images.limits import DEFAULT_LIMITS
from splitattn.libraries import installed, require

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs")
# A request that is throttled or fails is tried again, after 0.1 s and then ever longer.
_RETRIES: Any = {"max_retries": 10}


class StoreError(InputError):
    """A folder or bucket cannot be read or written."""


class Store(Protocol):
    """A folder, or the objects of a bucket below a prefix."""

    address: str

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, or None if there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole; whoever reads sees the old one or the new one."""

    def names(self) -> set[str]:
        """The files at the top, without folders."""


def is_bucket(address: str) -> bool:
    """Whether `address` is an object store's rather than a path."""
    return urlsplit(address).scheme in SCHEMES


def local_path(address: str) -> Path:
    """The absolute path that a path or a `file://` address means."""
    parts = urlsplit(address)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise InputError(f"file:// addresses name this machine, got {address}: use file:///...")
        return Path(unquote(parts.path)).absolute()
    if "://" in address:
        raise InputError(f"addresses are paths, file://, s3:// or gs://, got {address}")
    return Path(address).absolute()


def open_store(address: str) -> Store:
    """The store at a path, or at a `file://`, `s3://` or `gs://` address.

    Raises:
        InputError: there is no such kind of address, or a library is missing.
    """
    if is_bucket(address):
        return _Bucket(address.rstrip("/"))
    return _Folder(local_path(address))


class _Folder:
    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._path = path

    def read(self, name: str) -> bytes | None:
        try:
            with open_file(self._path / name) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    def names(self) -> set[str]:
        if not self._path.exists():
            return set()
        return {entry.name for entry in os.scandir(self._path) if not entry.is_dir()}


class _Bucket:
    def __init__(self, address: str) -> None:
        self.address = address
        self._store = _opened(address)

    def read(self, name: str) -> bytes | None:
        import obstore

        with _in_words(f"{self.address}/{name}"):
            try:
                return bytes(obstore.get(self._store, name).bytes())
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        import obstore

        with _in_words(f"{self.address}/{name}"):
            obstore.put(self._store, name, content)

    def names(self) -> set[str]:
        import obstore

        with _in_words(self.address):
            found = obstore.list_with_delimiter(self._store)["objects"]
            return {PurePosixPath(entry["path"]).name for entry in found}


def list_bucket(address: str) -> Iterator[tuple[str, int, str | None]]:
    """Address, size in bytes and etag of every object below `address`, as the store sorts them.

    Memory does not grow with their number.

    Raises:
        StoreError: they cannot be listed.
    """
    import obstore

    root = _root(address)
    prefix = urlsplit(address).path.strip("/")
    with _in_words(address):
        for chunk in obstore.list(_opened(root), prefix or None, chunk_size=1000):
            for entry in chunk:
                yield f"{root}/{entry['path']}", entry["size"], entry["e_tag"]


def read_object(address: str) -> bytes:
    """The bytes of an object that may be an image. May be called from any thread.

    Raises:
        ImageError: there is none, it is larger than an image may be, or it cannot be read.
    """
    import obstore

    root = _root(address)
    most = DEFAULT_LIMITS.max_bytes
    try:
        with _in_words(address):
            found = obstore.get(_opened(root), address.removeprefix(f"{root}/"))
            if found.meta["size"] > most:
                raise ImageError(
                    f"{address}: an image has at most {most:,} bytes, got {found.meta['size']:,}"
                )
            return bytes(found.bytes())
    except FileNotFoundError:
        raise ImageError(f"{address}: no such object") from None
    except StoreError as error:
        raise ImageError(str(error)) from error


def _root(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


@cache
def _opened(address: str) -> "ObjectStore":
    require(f"{urlsplit(address).scheme}:// addresses", "obstore")
    from obstore.store import from_url

    options: dict[str, Any] = {}
    if address.startswith("s3://"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        if endpoint:
            options["config"] = {"aws_endpoint": endpoint}
        if endpoint.startswith("http://"):
            options["client_options"] = {"allow_http": True}
        if "AWS_ACCESS_KEY_ID" not in os.environ and installed("boto3"):
            # Profiles, single sign-on and whatever else people have configured.
            from obstore.auth.boto3 import Boto3CredentialProvider

            options["credential_provider"] = Boto3CredentialProvider()
    try:
        return from_url(address, retry_config=_RETRIES, **options)
    except Exception as error:  # many kinds, of which the library makes none public
        raise StoreError(f"{address} cannot be opened: {_first_line(error)}") from error


@contextmanager
def _in_words(address: str) -> Iterator[None]:
    """What the library raises becomes a line that says what was being read or written."""
    try:
        yield
    except (FileNotFoundError, InputError):
        raise
    except Exception as error:  # as above
        raise StoreError(f"{address}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """The reason, without the library's own state, which it prints on further lines."""
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
