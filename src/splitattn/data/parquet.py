"""Data sets in Parquet shards, in the layout of Hugging Face's image data sets.

Shards are not trusted: images are binary values and never paths, and the unpacked size is limited
before anything is unpacked.
"""

import json
import logging
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from splitattn.data.class_lists import ClassList
from splitattn.data.class_names import normal
from splitattn.data.labeled import Blocks, LabeledImages
from splitattn.data.splits import (
    MissingSplitError,
    called,
    check_is_split,
    split_mentioned_in,
    split_of,
    warn_of_stand_in,
)
from splitattn.errors import DataError, ImageError
from splitattn.libraries import require

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

# Shards that are smaller, unpacked, are read once and kept.
_RESIDENT_BYTES = 2 << 30
# Of larger ones, a process keeps the row groups that it read last, up to so many bytes.
_KEPT_BYTES = 512 << 20
# The largest row group, unpacked.
_MOST_BYTES = 1 << 30
# Images are compressed already, so a group that unpacks to more than this many times its size is a
# decompression bomb, unless the whole shard stays small.
_MOST_RATIO = 100
_SMALL_BYTES = 64 << 20
# The end of the name of one of several shards.
_NUMBERED = re.compile(r"-\d+-of-(\d+)(?!\d)")
# Every row takes more than this many bytes of a file.
_LEAST_ROW = 16
# Encodings that cannot repeat a value, and those for which Arrow keeps repeated values once.
_PLAIN = {"PLAIN", "RLE", "BIT_PACKED", "DELTA_LENGTH_BYTE_ARRAY", "BYTE_STREAM_SPLIT"}
_DICTIONARY = {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}
_LEAVES = ("image.bytes", "image.path")
# Shards that an error lists.
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class _Group:
    """A row group.

    Attributes:
        shard, index: its file, and its index there.
        rows: number of rows.
        size: bytes of its images, unpacked, as the shard states.
        limit: largest allowed size of its images in bytes, counting repeated images each time.
        dictionaries: columns that are stored as dictionaries.
    """

    shard: Path
    index: int
    rows: int
    size: int
    limit: int
    dictionaries: list[str]


class _Rows:
    """The rows of Parquet shards; row groups are read on demand, from any thread."""

    def __init__(self, groups: list[_Group]) -> None:
        self._groups = groups
        self.starts = tuple(accumulate((group.rows for group in groups), initial=0))[:-1]
        size = sum(group.size for group in groups)
        self.resident = size <= _RESIDENT_BYTES
        self._kept: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._lock = Lock()
        if self.resident:
            for group in range(len(groups)):
                self._read(group)

    def __getstate__(self) -> dict[str, Any]:
        kept = self._kept if self.resident else OrderedDict()
        return {**vars(self), "_kept": kept, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "_lock": Lock()})

    @property
    def blocks(self) -> Blocks | None:
        """Row groups, if not all rows are in memory."""
        largest = max(group.size for group in self._groups)
        at_once = max(1, _KEPT_BYTES // max(1, largest))
        return None if self.resident else Blocks(starts=self.starts, at_once=at_once)

    def value(self, row: int, field: str) -> bytes | str | None:
        """The encoded image (`bytes`) or the name (`path`) of a row.

        Raises:
            DataError: the row group cannot be read or unpacks to too much.
        """
        group = bisect_right(self.starts, row) - 1
        image = self._read(group)[row - self.starts[group]]
        found: bytes | str | None = image[field].as_py() if image.is_valid else None
        return found

    def paths(self) -> Iterator[str | None]:
        """The paths of all rows, or None where there is none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for group in self._groups:
            try:
                with pq.ParquetFile(group.shard) as file:
                    table = file.read_row_group(group.index, ["image.path"], use_threads=False)
                paths = table.column("image").combine_chunks().field("path").to_pylist()
            except (pa.ArrowException, OSError, KeyError):
                paths = []
            yield from paths if len(paths) == group.rows else [None] * group.rows

    def _read(self, group: int) -> "pa.ChunkedArray":
        with self._lock:
            if group not in self._kept:
                self._kept[group] = _read_group(self._groups[group])
            self._kept.move_to_end(group)
            while not self.resident and self._size() > _KEPT_BYTES and len(self._kept) > 1:
                self._kept.popitem(last=False)
            return self._kept[group]

    def _size(self) -> int:
        return sum(self._groups[group].size for group in self._kept)


class _Images(Sequence[bytes]):
    """The encoded images; each is copied when it is indexed."""

    def __init__(self, rows: _Rows, count: int) -> None:
        self._rows, self._count = rows, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
        try:
            value = self._rows.value(index, "bytes")
        except DataError as error:  # affects only rows of this group
            raise ImageError(str(error)) from error
        return value if isinstance(value, bytes) else b""


class _Names(Sequence[str]):
    """Names of the images in reports: their paths in the shards, or numbers."""

    def __init__(self, rows: _Rows, count: int, split: str) -> None:
        self._rows, self._count, self._split = rows, count, split

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        """Iterate without reading the images, which may be many gigabytes."""
        for index, path in enumerate(self._rows.paths()):
            yield path or f"{self._split}[{index}]"

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        try:
            value = self._rows.value(index, "path")
        except (DataError, KeyError):
            value = None
        return value if isinstance(value, str) and value else f"{self._split}[{index}]"


def open_parquet(shards: list[Path], split: str, listed: ClassList | None = None) -> LabeledImages:
    """Open `split` of Parquet shards in the Hugging Face image layout.

    If they unpack to more than 2 GiB, row groups are read when an image is needed.

    Args:
        listed: class names for shards without any. Labels are then indices into the list, or the
            numbers in it.

    Raises:
        DataError: no shard is named after the split, or shards are damaged, empty, in another
            layout or too large when unpacked.
        InputError: pyarrow is not installed.
    """
    named_in: dict[tuple[str, ...], str] = {}
    labels: list[int] = []

    def read_labels(file: "pq.ParquetFile", name: str) -> None:
        _check_label(file.schema_arrow)
        named_in.setdefault(_class_names(file.schema_arrow, listed), name)
        if len(named_in) > 1:
            raise DataError(
                "all shards must name the same classes in the same order, got others in "
                f"{name} than in {next(iter(named_in.values()))}"
            )
        labels.extend(_labels(file))

    layout = (
        "be in the Hugging Face image layout (image: {bytes: binary, path: string}, label: int, "
        "class names in the metadata)"
    )
    images = _open_images(shards, split, layout, read_labels)
    (classes,) = named_in
    if not classes and listed:
        return replace(images, classes=listed.names, labels=_indices(labels, listed))
    low, high = min(labels), max(labels)
    if not 0 <= low <= high < len(classes):
        raise DataError(
            f"labels must be 0 to {len(classes) - 1}, of the {len(classes)} classes in the "
            f"metadata, got {low} to {high} in {images.origin:.100}; leave out images without one"
        )
    return replace(images, classes=classes, labels=labels)


def _indices(labels: list[int], listed: ClassList) -> list[int]:
    """Labels as indices into a list of classes."""
    numbers = listed.numbers or range(len(listed.names))
    index = {number: i for i, number in enumerate(numbers)}
    if odd := {*labels} - index.keys():
        raise DataError(
            f"labels must be numbers of the {len(numbers)} class names, {min(numbers)} to "
            f"{max(numbers)}, got {min(odd)}; lines such as '1 cat' number the names otherwise"
        )
    return [index[label] for label in labels]


def open_unlabeled_parquet(shards: list[Path], split: str) -> LabeledImages:
    """Open only the images of Parquet shards, without classes; labels mean nothing.

    Raises:
        DataError: see `open_parquet`.
        InputError: pyarrow is not installed.
    """
    layout = "have a column image: {bytes: binary, path: string}"
    return _open_images(shards, split, layout, lambda _, __: None)


def _open_images(
    shards: list[Path],
    split: str,
    layout: str,
    read_others: Callable[["pq.ParquetFile", str], None],
) -> LabeledImages:
    """The images of `split`, without classes.

    Args:
        layout: the rule for shards, for errors.
        read_others: reads other columns; called with an open shard and its name.

    Raises:
        DataError, InputError: see `open_parquet`.
    """
    require("Parquet data", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    chosen = _chosen(shards, split)
    _warn_of_missing(chosen)
    groups: list[_Group] = []
    name = chosen[0].name
    try:
        _check_rows(chosen)
        for shard in chosen:
            name = shard.name
            with pq.ParquetFile(shard) as file:
                _check_image(file.schema_arrow)
                groups += _groups(shard, file.metadata)
                read_others(file, name)
        if not groups:
            raise DataError(f"the data set must hold images, got no rows in {chosen[0]}")
        rows = _Rows(groups)
    except DataError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        text = repr(error) if isinstance(error, KeyError) else str(error)
        reason = " ".join(text.split())
        raise DataError(f"Parquet shards must {layout}, got {name}: {reason:.300}") from error
    count = sum(group.rows for group in groups)
    return LabeledImages(
        origin=", ".join(map(str, chosen)),
        classes=(),
        images=_Images(rows, count),
        labels=[0] * count,
        names=_Names(rows, count, split),
        blocks=rows.blocks,
    )


def _chosen(shards: list[Path], split: str) -> list[Path]:
    """The shards whose names begin with the split, or have it as a word if none begins with one.

    All shards if their names do not tell them apart.
    """
    words = {shard: re.split(r"[^A-Za-z]", shard.name)[0] for shard in shards}
    found = called({*words.values()}, split)
    if not found and not any(map(split_of, words.values())):
        words = {shard: split_mentioned_in(shard.stem) or "" for shard in shards}
        if not any(words.values()):
            check_is_split(split)
            return shards
        if without := [shard.name for shard, word in words.items() if not word]:
            raise DataError(
                f"each shard or none must have one split in its name, got {without[0]} in "
                f"{shards[0].parent}"
            )
        found = called({*words.values()}, split)
    if found:
        warn_of_stand_in(shards[0].parent, split, found[0])
        return [shard for shard, word in words.items() if word in found]
    shown = [shard.name for shard in shards[:_SHOWN]] + ["..."] * (len(shards) > _SHOWN)
    raise MissingSplitError(
        f"the data set must have shards called {split}-*.parquet, got {', '.join(shown)} in "
        f"{shards[0].parent}"
    )


def _warn_of_missing(shards: list[Path]) -> None:
    """Warn if shards are numbered, as in `train-00000-of-00002`, and some are missing."""
    numbered = [found for shard in shards if (found := _NUMBERED.search(shard.name))]
    wholes = {int(found[1]) for found in numbered}
    if len(numbered) == len(shards) < sum(wholes):
        logger.warning(
            "%s: only %d of %d Parquet shards are here",
            shards[0].parent,
            len(shards),
            sum(wholes),
        )


def _check_rows(shards: list[Path]) -> None:
    """Raise if shards have too many rows for their size; repeated rows could use all memory."""
    import pyarrow.parquet as pq

    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    size = sum(shard.stat().st_size for shard in shards)
    if rows * _LEAST_ROW > size:
        raise DataError(f"Parquet shards must hold images, got {rows:,} rows in {size:,} bytes")


def _class_names(schema: "pa.Schema", listed: ClassList | None) -> tuple[str, ...]:
    """The class names in the schema's metadata; empty if it has none and `listed` is given.

    Raises:
        KeyError, TypeError, ValueError, RecursionError: there are no names, or they are malformed.
    """
    metadata = schema.metadata or {}
    label = {}
    if b"huggingface" in metadata:
        label = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]
    if "names" not in label:
        if listed:
            return ()
        raise ValueError("its metadata names no classes; list them with --class-names")
    names = label["names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"class names must be a list of text, got {names!r:.60}")
    return tuple(map(normal, names))


def _check_label(schema: "pa.Schema") -> None:
    """Raise unless labels are integers.

    Raises:
        KeyError, TypeError: they are not; the message names their type.
    """
    from pyarrow import types

    label = _type(schema, "label")
    if not types.is_integer(label):
        raise TypeError(
            f"label is {label}: number the classes, and name them in that order with --class-names"
        )


def _type(schema: "pa.Schema", column: str) -> "pa.DataType":
    """The type of a column.

    Raises:
        TypeError: there is no such column; the message lists the columns.
    """
    if column not in schema.names:
        raise TypeError(f"it has no {column}, but {', '.join(schema.names)}: rename the columns")
    return schema.field(column).type


def _labels(file: "pq.ParquetFile") -> list[int]:
    """The labels of an open shard.

    Raises:
        TypeError: one is missing.
    """
    column = file.read(columns=["label"], use_threads=False).column(0)
    if column.null_count or len(column) != file.metadata.num_rows:
        raise TypeError("labels are missing")
    labels: list[int] = column.to_pylist()
    return labels


def _check_image(schema: "pa.Schema") -> None:
    """Raise unless images are binary.

    Raises:
        KeyError, TypeError: they are not; the message names their type.
    """
    from pyarrow import types

    image = _type(schema, "image")
    if not types.is_struct(image):
        raise TypeError(f"image is {image}: keep its bytes in a struct, as datasets.Image does")
    fields = {image.field(i).name: image.field(i).type for i in range(image.num_fields)}
    if not (types.is_binary(fields["bytes"]) or types.is_large_binary(fields["bytes"])):
        raise TypeError(f"image.bytes is {fields['bytes']}")  # a string would be a path


def _groups(shard: Path, metadata: "pq.FileMetaData") -> list[_Group]:
    """The row groups of a shard.

    Raises:
        DataError: a row group is too large when unpacked, by its own statement.
    """
    found = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        columns = [group.column(i) for i in range(group.num_columns)]
        leaves = {column.path_in_schema: column for column in columns}
        chosen = [leaves[name] for name in _LEAVES if name in leaves]
        packed = sum(column.total_compressed_size for column in chosen)
        size = sum(column.total_uncompressed_size for column in chosen)
        small = _SMALL_BYTES // metadata.num_row_groups
        limit = min(_MOST_BYTES, max(small, _MOST_RATIO * packed))
        encodings = {name for column in chosen for name in column.encodings}
        if not encodings <= _PLAIN | _DICTIONARY:
            raise TypeError(f"images are encoded as {', '.join(sorted(encodings - _PLAIN))}")
        if size > limit:
            raise _too_large(shard, index, limit)
        if not group.num_rows:
            continue
        found.append(
            _Group(
                shard=shard,
                index=index,
                rows=group.num_rows,
                size=size,
                limit=limit,
                dictionaries=[
                    column.path_in_schema
                    for column in chosen
                    if not _DICTIONARY.isdisjoint(column.encodings)
                ],
            )
        )
    return found


def _read_group(group: _Group) -> "pa.ChunkedArray":
    """The column `image` of a row group.

    Raises:
        DataError: it is damaged, or too large when unpacked.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Read as dictionaries, which store repeated values once.
        with pq.ParquetFile(group.shard, read_dictionary=group.dictionaries) as file:
            table = file.read_row_group(group.index, columns=["image"], use_threads=False)
        image = table.column("image")
        size = sum(_unpacked(chunk) for chunk in image.chunks)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(f"row group {group.index} of {group.shard} is damaged: {error}") from error
    if size > group.limit:
        raise _too_large(group.shard, group.index, group.limit)
    if len(image) != group.rows:
        raise DataError(
            f"row group {group.index} of {group.shard} is damaged: it must have {group.rows} "
            f"images, got {len(image)}"
        )
    return image


def _unpacked(image: "pa.StructArray") -> int:
    """Total bytes of an array's values (bytes, path), counting repetitions."""
    import pyarrow as pa
    import pyarrow.compute as pc

    total = 0
    for values in image.flatten():
        if isinstance(values, pa.DictionaryArray):
            lengths = pc.binary_length(values.dictionary).take(values.indices)
        elif pa.types.is_null(values.type):
            continue
        else:
            lengths = pc.binary_length(values)
        total += pc.sum(lengths).as_py() or 0
    return total


def _too_large(shard: Path, group: int, limit: int) -> DataError:
    return DataError(
        f"a row group of images must unpack to at most {limit:,} bytes, got more in group {group} "
        f"of {shard}; write compressed images, in groups of 1,000 rows"
    )
