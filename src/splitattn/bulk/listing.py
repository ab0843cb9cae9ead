"""Lists the images that are to be labeled, one after another."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from splitattn.bulk.stores import (
    absolute_address,
    is_bucket,
    list_bucket,
    local_path,
    open_address,
)
from splitattn.errors import DataError
from splitattn.files import is_file, is_folder
from splitattn.images.paths import images_below, is_image, is_litter, is_url
from splitattn.libraries import require

_LISTS, _PARQUET = (".csv", ".txt"), ".parquet"
_PATH = "path"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An image that is to be labeled.

    Attributes:
        path: an absolute path, or an address.
        size, etag: bytes and version, where the listing says them.
        row: of the image in a Parquet file at `path`; None if `path` is the image's own file.
    """

    path: str
    size: int | None = None
    etag: str | None = None
    row: int | None = None

    @property
    def name(self) -> str:
        """What results call it."""
        return self.path if self.row is None else f"{self.path}#{self.row}"


def list_images(source: str, passed_over: Counter[str]) -> Iterator[Entry]:
    """Every image that `source` stands for. Memory does not grow with their number.

    Args:
        source: a path, or an `s3://`, `gs://` or `file://` address, of a folder; of a CSV file with
            a column `path`, or a text file with a path on each line; or of Parquet, a file or a
            folder of them, with a column `path`, or with images in the Hugging Face layout.
        passed_over: counts, by ending, files in folders that may be pictures and are not read.

    Raises:
        DataError: there is nothing, or a list cannot be read.
        InputError: a library is missing, or there is no such kind of address.
    """
    suffix = Path(source).suffix.lower()
    source = absolute_address(source)
    if is_folder(source):
        return _in_folder(Path(source), passed_over)
    if suffix == _PARQUET:
        return _in_parquet(source)
    if suffix in _LISTS:
        return _in_list(source)
    if is_bucket(source):
        return _in_bucket(source, passed_over)
    if not is_file(source):
        raise _nothing(source)
    raise DataError(
        f"a source is a folder, an address, or a .csv, .txt or .parquet file, got {source}"
    )


def _in_bucket(address: str, passed_over: Counter[str]) -> Iterator[Entry]:
    shard = image = ""
    for path, size, etag in list_bucket(address):
        *folders, name = path.removeprefix(f"{address}/").split("/")
        folder = not size and "." not in name  # as web consoles of stores make folders
        if folder or any(map(is_litter, folders)):
            continue
        if not folders and name.lower().endswith(_PARQUET):
            shard = path
            yield from _in_parquet(path)
        elif is_image(name, passed_over):
            image = path
            yield Entry(path=path, size=size, etag=etag)
        if shard and image:
            raise _both(shard, image)


def _in_folder(folder: Path, passed_over: Counter[str]) -> Iterator[Entry]:
    images = images_below(folder, passed_over)
    with os.scandir(folder) as found:  # `Path.glob` would keep all of them
        shards = sorted(each.path for each in found if each.name.lower().endswith(_PARQUET))
    if shards:
        if image := next(images, None):
            raise _both(shards[0], image)
        passed_over -= Counter({_PARQUET: len(shards)})  # these are read
        for shard in shards:
            yield from _in_parquet(shard)
    for path in images:
        yield Entry(path=path, **version_of(path))


def version_of(path: str) -> dict[str, Any]:
    """Size and etag of a file as it is now; empty if there is none, which labeling reports."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):  # the latter of names that no file can have
        return {}
    return {"size": status.st_size, "etag": f"{status.st_mtime_ns:x}-{status.st_size:x}"}


def _both(shard: str, image: str) -> DataError:
    return DataError(
        f"a source has images or Parquet, got both, {image} and {shard}: name a folder with one "
        "kind, or the file"
    )


def _nothing(source: str) -> DataError:
    return DataError(f"{source} is neither a folder nor a file: check the path")


def _opened(source: str) -> BinaryIO:
    file = open_address(source)
    if file is None:
        raise _nothing(source)
    return file


def _in_list(source: str) -> Iterator[Entry]:
    try:
        with io.TextIOWrapper(_opened(source), encoding="utf-8-sig", newline="") as file:
            if source.lower().endswith(".csv"):
                rows = csv.DictReader(file)
                if _PATH not in (rows.fieldnames or ()):
                    got = ", ".join(rows.fieldnames or ()) or "an empty file"
                    raise DataError(f"{source} must have a column {_PATH}, got {got:.100}")
                names: Iterator[str] = (row[_PATH] or "" for row in rows)
            else:
                names = (line.rstrip("\r\n") for line in file)
            for name in names:
                if name:
                    yield _listed(name, source)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source} must be text in UTF-8, of paths: {error}") from error


def _listed(name: str, source: str) -> Entry:
    """The image that a list calls `name`, which may be relative to the list."""
    if is_bucket(name) or is_url(name):
        return Entry(path=name)
    if "://" in name:
        return Entry(path=str(local_path(name)))
    folder = source.rpartition("/")[0]
    return Entry(path=f"{folder}/{name}" if is_bucket(source) else str(Path(folder, name)))


def _in_parquet(source: str) -> Iterator[Entry]:
    require("Parquet data", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _opened(source) as opened, pq.ParquetFile(opened) as file:
            columns = file.schema_arrow.names
            if "image" in columns:
                for row in range(file.metadata.num_rows):
                    yield Entry(path=source, row=row)
                return
            if _PATH not in columns:
                raise DataError(
                    f"{source} must have a column image or {_PATH}, got {', '.join(columns):.100}"
                )
            for batch in file.iter_batches(columns=[_PATH]):
                for name in batch.column(0).to_pylist():
                    if not isinstance(name, str):
                        raise DataError(f"paths in {source} must be text, got {name!r:.60}")
                    yield _listed(name, source)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source} cannot be read as Parquet: {error!s:.200}") from error
