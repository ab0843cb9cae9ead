"""Files in a folder or a bucket, written whole or not at all."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast
from urllib.parse import unquote

from splitattn.errors import ImageError, InputError
from splitattn.files import open_file, replacing
from splitattn.images.limits import DEFAULT_LIMITS
from splitattn.libraries import installed, require

if TYPE_CHECKING:
    from obstore import ReadableFile
    from obstore.store import ObjectStore

_BUCKETS = ("s3://", "gs://")
_MISTYPED = re.compile(r"(s3|gs|file):", re.IGNORECASE)
_BUCKET_NAME = re.compile("[A-Za-z0-9._-]+")
# Variables whose values go into HTTP headers. With other characters, the library would panic.
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_BEARER_TOKEN",
}
_ONE_WORD = re.compile("[!-~]*")
# Addresses at which a machine in the cloud has its credentials. The library asks there last.
_OF_MACHINE = re.compile("/computeMetadata/|/latest/(api/token|meta-data)")
# What the library says if a request gets no answer at all, as without network.
_UNSENT = "error sending request"
_CODE = re.compile("<Code>([A-Za-z]+)</Code>")
_WAYS_OUT = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, install boto3 for profiles and single "
    "sign-on, or set AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "set GOOGLE_SERVICE_ACCOUNT to the path of a key file, run gcloud auth "
    "application-default login, or set GOOGLE_SKIP_SIGNATURE=true for a public bucket",
}
_ADDRESSES = {"s3": "AWS_ENDPOINT_URL and AWS_REGION", "gs": "GOOGLE_BASE_URL"}
# Limits of one request. The rest of a body that ends too soon is requested again, too.
_CLIENT: dict[str, Any] = {
    "connect_timeout": timedelta(seconds=5),
    "timeout": timedelta(seconds=30),
}
# A request that is throttled, fails or takes too long is repeated, after ever longer pauses.
_RETRIES: dict[str, Any] = {
    "max_retries": 10,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=15),
        "base": 2,
    },
}


class StoreError(InputError):
    """A folder or bucket cannot be read or written."""


class Store(Protocol):
    """A folder, or the objects of a bucket below a prefix."""

    address: str

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole; whoever reads sees the old one or the new one."""

    def names(self) -> set[str]:
        """The files at the top, without folders."""


def is_bucket(address: str) -> bool:
    """Whether `address` is an object store's rather than a path."""
    return address.startswith(_BUCKETS)


def absolute_address(address: str) -> str:
    """A bucket's address without `/` at its end, or the absolute path of a file or folder.

    Raises:
        InputError: there is no such kind of address, or what it names can be no bucket.
    """
    if not is_bucket(address):
        return str(local_path(address))
    root, _ = split_address(address)
    scheme, _, bucket = root.partition("://")
    if not _BUCKET_NAME.fullmatch(bucket):  # it may be empty, as a variable is
        got = "one with credentials, which go into the environment" if "@" in bucket else address
        raise InputError(f"an address must be {scheme}://bucket/key, got {got}")
    return address.rstrip("/")


def split_address(address: str) -> tuple[str, str]:
    """A bucket's address, and the key. Keys may hold `#`, `?` and `%`, which mean nothing."""
    scheme, _, rest = address.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


def local_path(address: str) -> Path:
    """The absolute path that a path or a `file://` address means."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        if _MISTYPED.match(address):
            raise InputError(
                f"addresses begin with s3://, gs:// or file://, got {address}: write two slashes, "
                f"or ./{address} for a folder of that name"
            )
        return Path(address).absolute()
    if scheme != "file":
        raise InputError(f"addresses are paths, file://, s3:// or gs://, got {address}")
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise InputError(f"file:// addresses name this machine, got {address}: use file:///...")
    return Path(f"/{unquote(path)}").absolute()


def open_store(address: str) -> Store:
    """The store at a path, or at a `file://`, `s3://` or `gs://` address.

    Raises:
        InputError: there is no such kind of address, or a library is missing.
    """
    return _Bucket(address.rstrip("/")) if is_bucket(address) else _Folder(local_path(address))


class _Folder:
    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._path = path

    def write(self, name: str, content: bytes) -> None:
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    def names(self) -> set[str]:
        if not self._path.exists():
            return set()
        with os.scandir(self._path) as found:
            return {entry.name for entry in found if not entry.is_dir()}


class _Bucket:
    def __init__(self, address: str) -> None:
        self.address = address
        root, key = split_address(address)
        self._store, self._prefix = _opened(root), f"{key}/" if key else ""

    def write(self, name: str, content: bytes) -> None:
        import obstore

        with _in_words(f"{self.address}/{name}"):
            obstore.put(self._store, f"{self._prefix}{name}", content)

    def names(self) -> set[str]:
        import obstore

        with _in_words(self.address):
            found = obstore.list_with_delimiter(self._store, self._prefix or None)["objects"]
            return {entry["path"].removeprefix(self._prefix) for entry in found}


def open_address(address: str) -> BinaryIO | None:
    """A file or an object, to read any part of it, or None if there is none.

    Raises:
        StoreError: the bucket cannot be read; reading may raise it, too.
    """
    if not is_bucket(address):
        try:
            return open_file(address)
        except FileNotFoundError:
            return None
    import obstore

    root, key = split_address(address)
    store = _opened(root)
    with _in_words(address):
        try:
            file = _Object(obstore.open_reader(store, key), address)
            return cast("BinaryIO", io.BufferedReader(file))
        except FileNotFoundError:
            return None


class _Object(io.RawIOBase):
    """An object as a raw, readable file of Python's `io`."""

    def __init__(self, file: "ReadableFile", address: str) -> None:
        self._file = file
        self._address = address

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        with _in_words(self._address):
            content = memoryview(self._file.read(len(buffer)))
        buffer[: len(content)] = content
        return len(content)


def list_bucket(address: str) -> Iterator[tuple[str, int, str | None]]:
    """Address, size in bytes and etag of every object below `address`, as the store sorts them.

    Memory does not grow with their number.

    Raises:
        StoreError: they cannot be listed.
    """
    import obstore
    from obstore.exceptions import InvalidPathError

    root, prefix = split_address(address)
    store = _opened(root)
    with _in_words(address):
        try:
            for chunk in obstore.list(store, prefix or None, chunk_size=1000):
                for entry in chunk:
                    yield f"{root}/{entry['path']}", entry["size"], entry["e_tag"]
        except InvalidPathError as error:
            raise StoreError(
                f"{address}: no part of a key may be empty, . or .., or hold control characters: "
                f"{_reason(error)}; rename it, or name a list of the others"
            ) from error


def read_object(address: str) -> tuple[bytes, str | None]:
    """The bytes and the etag of an object that may be an image. May be called from any thread.

    Raises:
        ImageError: there is none, or it is larger than an image may be.
        StoreError: the store does not answer, or refuses: another attempt may have it.
    """
    import obstore

    root, key = split_address(address)
    store, most = _opened(root), DEFAULT_LIMITS.max_bytes
    with _in_words(address):
        try:
            found = obstore.get(store, key)
        except FileNotFoundError:
            raise ImageError("no such object", address) from None
        except ValueError as error:  # keys that the library cannot read, see `list_bucket`
            raise ImageError(_reason(error), address) from error
        if found.meta["size"] > most:
            raise ImageError(
                f"an image has at most {most:,} bytes, got {found.meta['size']:,}", address
            )
        return bytes(found.bytes()), found.meta["e_tag"]


@cache
def _opened(root: str) -> "ObjectStore":
    """The library's store for a bucket."""
    require(f"using {root.partition('://')[0]}://", "obstore")
    from obstore.store import from_url

    for name in _CREDENTIALS.intersection(os.environ):
        if not _ONE_WORD.fullmatch(value := os.environ[name]):
            raise InputError(
                f"{name} must be one line of ASCII without spaces, got others among its "
                f"{len(value)} characters: remove them"
            )
    options: dict[str, Any] = {"retry_config": _RETRIES}
    try:
        options |= _s3_options() if root.startswith("s3://") else _gs_options()
        return from_url(root, **options)
    except Exception as error:  # many kinds, of which the library makes none public
        raise StoreError(f"{root} cannot be opened: {_reason(error)}") from error


def _gs_options() -> dict[str, Any]:
    return {"client_options": {**_CLIENT, "allow_http": True}}  # which is the library's own default


def _s3_options() -> dict[str, Any]:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes", "on")
    options: dict[str, Any] = {
        "client_options": {**_CLIENT, "allow_http": allowed or endpoint.startswith("http://")}
    }
    if endpoint:
        options["config"] = {"aws_endpoint": endpoint}
    if {"AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"}.isdisjoint(os.environ) and installed("boto3"):
        from obstore.auth.boto3 import Boto3CredentialProvider

        # Profiles, single sign-on and whatever else people have configured; if nothing is, the
        # library looks for itself.
        with suppress(ValueError):
            options["credential_provider"] = Boto3CredentialProvider()
    return options


@contextmanager
def _in_words(address: str) -> Iterator[None]:
    """Turn what the library raises into a `StoreError` of one line, with the address."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # as above
        reason, scheme = _reason(error), address.partition("://")[0]
        if _OF_MACHINE.search(reason):
            way_out = _WAYS_OUT[scheme]
            reason = f"no credentials in the environment, and the machine has none: {way_out}"
        elif _UNSENT in str(error):
            reason += f"; check the network and, if set, {_ADDRESSES[scheme]}"
        raise StoreError(f"{address}: {reason}") from error


def _reason(error: Exception) -> str:
    """The reason in one line, with the store's own code, such as `NoSuchBucket`, if it gave one.

    Further lines hold the store's answer, of which the code is enough, and the library's state.
    """
    text = str(error).strip()
    first = text.partition("\n")[0].partition(": <")[0][:300] or type(error).__name__
    code = _CODE.search(text)
    return f"{first}: {code[1]}" if code else first
