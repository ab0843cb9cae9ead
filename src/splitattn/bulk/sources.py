"""Lists the images that are to be labeled, one after another."""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from splitattn.bulk.stores import is_bucket, list_bucket, local_path
from splitattn.errors import DataError
from splitattn.images.paths import images_below, is_image_name, is_litter, is_url
from splitattn.libraries import require

_LISTS = (".csv", ".txt")
_PATH = "path"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An image that is to be labeled.

    Attributes:
        path: an absolute path, or an address.
        size, etag: bytes and version, where the listing says them.
        row: of a Parquet file at `path` that holds images; None is a file of its own.
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
        source: a folder, an `s3://`, `gs://` or `file://` address of one; a CSV file with a column
            `path`, or a text file with a path on each line; or Parquet, a file or a folder of
            them, with a column `path`, or with images in the Hugging Face layout.
        passed_over: counts, by ending, files in folders that may be pictures and are not read.

    Raises:
        DataError: there is nothing, or a list cannot be read.
        InputError: a library is missing, or there is no such kind of address.
    """
    if is_bucket(source):
        return _in_bucket(source)
    path = local_path(source)
    if path.is_dir():
        shards = sorted(path.glob("*.parquet"))
        return _in_parquet(shards) if shards else _in_folder(path, passed_over)
    if not path.is_file():
        raise DataError(f"{source} is neither a folder nor a file: check the path")
    if path.suffix.lower() == ".parquet":
        return _in_parquet([path])
    if path.suffix.lower() in _LISTS:
        return _in_list(path)
    raise DataError(
        f"a source is a folder, an address, or a .csv, .txt or .parquet file, got {source}"
    )


def _in_bucket(address: str) -> Iterator[Entry]:
    start = len(PurePosixPath(urlsplit(address).path).parts)
    for path, size, etag in list_bucket(address):
        parts = PurePosixPath(urlsplit(path).path).parts
        if is_image_name(parts[-1]) and not any(map(is_litter, parts[start:-1])):
            yield Entry(path=path, size=size, etag=etag)


def _in_folder(folder: Path, passed_over: Counter[str]) -> Iterator[Entry]:
    for path in images_below(folder, passed_over):
        try:
            status = Path(path).stat()
        except OSError:  # a link to nothing; labeling says so
            yield Entry(path=path)
            continue
        etag = f"{status.st_mtime_ns:x}-{status.st_size:x}"
        yield Entry(path=path, size=status.st_size, etag=etag)


def _in_list(path: Path) -> Iterator[Entry]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                rows = csv.DictReader(file)
                if _PATH not in (rows.fieldnames or ()):
                    got = ", ".join(rows.fieldnames or ()) or "an empty file"
                    raise DataError(f"{path} must have a column {_PATH}, got {got:.100}")
                names: Iterator[str] = (row[_PATH] or "" for row in rows)
            else:
                names = (line.rstrip("\r\n") for line in file)
            for name in names:
                if name:
                    yield _listed(name, path.parent)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} must be text in UTF-8, of paths: {error}") from error


def _listed(name: str, folder: Path) -> Entry:
    if is_bucket(name) or is_url(name):
        return Entry(path=name)
    return Entry(path=str(folder / (local_path(name) if "://" in name else name)))


def _in_parquet(shards: list[Path]) -> Iterator[Entry]:
    require("Parquet data", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in shards:
        try:
            with pq.ParquetFile(shard) as file:
                columns = file.schema_arrow.names
                if "image" in columns:
                    yield from (
                        Entry(path=str(shard), row=row) for row in range(file.metadata.num_rows)
                    )
                    continue
                if _PATH not in columns:
                    raise DataError(
                        f"{shard} must have a column image or {_PATH}, "
                        f"got {', '.join(columns):.100}"
                    )
                for batch in file.iter_batches(columns=[_PATH]):
                    for name in batch.column(0).to_pylist():
                        if not isinstance(name, str):
                            raise DataError(f"paths in {shard} must be text, got {name!r:.60}")
                        yield _listed(name, shard.parent)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{shard} cannot be read as Parquet: {error!s:.200}") from error
