"""Data sets that are Parquet shards in the layout of Hugging Face's image data sets."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splitattn.data.labelled import LabelledImages
from splitattn.data.splits import called, split_of
from splitattn.errors import DataError
from splitattn.libraries import require

if TYPE_CHECKING:
    import pyarrow as pa


class _EncodedColumn(Sequence[bytes]):
    """The encoded images of Parquet shards, each copied out of the column when it is asked for."""

    def __init__(self, column: "pa.ChunkedArray") -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
        encoded: bytes = self._column[index].as_py()
        return encoded


def open_parquet(shards: list[Path], split: str) -> LabelledImages:
    """Open `split` of Parquet shards in the Hugging Face image layout.

    Raises:
        DataError: no shard is called by the split, or shards are damaged, empty or in another
            layout.
        InputError: pyarrow is not installed.
    """
    require("Parquet data", "pyarrow")
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    chosen = _chosen(shards, split)
    try:
        _check_rows(chosen)
        table = pa.concat_tables([pq.read_table(s, columns=["image", "label"]) for s in chosen])
        image = table.column("image")
        encoded = pc.struct_field(image, "bytes")
        paths = pc.struct_field(image, "path").to_pylist()
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        classes = tuple(features["label"]["names"])
        labels = table.column("label").to_pylist()
        within = not labels or 0 <= min(labels) <= max(labels) < len(classes)
    except DataError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            "Parquet shards must be in the Hugging Face image layout (image: {bytes, path}, "
            f"label: int, class names in the metadata), got {chosen[0].name}: {error!r}"
        ) from error
    if not labels:
        raise DataError(f"the data set must hold images, got no rows in {chosen[0]}")
    if not within:
        raise DataError(f"labels must be 0 to {len(classes) - 1}, got {min(labels)}..{max(labels)}")
    return LabelledImages(
        origin=", ".join(map(str, chosen)),
        classes=classes,
        images=_EncodedColumn(encoded),
        labels=labels,
        names=[path or f"{split}[{row}]" for row, path in enumerate(paths)],
    )


def _chosen(shards: list[Path], split: str) -> list[Path]:
    """The shards whose names begin with the split, or all if no name begins with any."""
    by_prefix = {shard: re.split(r"[^A-Za-z]", shard.name)[0] for shard in shards}
    found = called(set(by_prefix.values()), split)
    if found:
        return [shard for shard, prefix in by_prefix.items() if prefix in found]
    if not any(map(split_of, by_prefix.values())):
        return shards
    raise DataError(
        f"the data set must have shards called {split}-*.parquet, "
        f"got {', '.join(shard.name for shard in shards[:3])}, ... in {shards[0].parent}"
    )


def _check_rows(shards: list[Path]) -> None:
    """Raise if shards hold more rows than bytes: repeated empty rows would take all memory."""
    import pyarrow.parquet as pq

    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    size = sum(shard.stat().st_size for shard in shards)
    if rows > size:
        raise DataError(f"Parquet shards must hold images, got {rows:,} rows in {size:,} bytes")
