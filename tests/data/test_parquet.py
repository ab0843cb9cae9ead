"""Parquet shards in the Hugging Face image layout."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from splitattn import libraries
from splitattn.data.sources import open_data
from splitattn.errors import DataError, InputError
from splitattn.images.decode import decode
from tests.data.datasets import CLASSES, encoded, picture, write_shard


@pytest.mark.parametrize("form", ["folder", "file", "glob"])
def test_parquet_shards_are_read_in_order(tmp_path: Path, form: str) -> None:
    write_shard(tmp_path / "train-00000-of-00002.parquet", [encoded(2, 0), encoded(0, 1)], [2, 0])
    write_shard(tmp_path / "train-00001-of-00002.parquet", [encoded(1, 2)], [1])
    write_shard(tmp_path / "val-00000-of-00001.parquet", [encoded(1, 9)], [1])
    names = {"folder": "", "file": "train-00001-of-00002.parquet", "glob": "train-*.parquet"}
    data = open_data(str(tmp_path / names[form]), "train")
    assert data.classes == CLASSES
    assert list(data.labels) == ([1] if form == "file" else [2, 0, 1])
    np.testing.assert_array_equal(decode(data.images[len(data) - 1]), picture(1, 2))
    assert data.names[0] == "0.png"


def test_shards_are_found_by_the_usual_names_of_splits(tmp_path: Path) -> None:
    write_shard(tmp_path / "Training_0.parquet", [encoded(0, 0)], [0])
    write_shard(tmp_path / "Training_1.parquet", [encoded(0, 1)], [1])
    write_shard(tmp_path / "VALID-0.parquet", [encoded(0, 2)], [2])
    assert list(open_data(str(tmp_path), "train").labels) == [0, 1]
    assert list(open_data(str(tmp_path), "val").labels) == [2]


def test_shards_without_a_split_in_their_name_serve_as_either(tmp_path: Path) -> None:
    write_shard(tmp_path / "flowers.parquet", [encoded(0, 0)], [0])
    assert len(open_data(str(tmp_path), "val")) == len(open_data(str(tmp_path), "train")) == 1


def test_a_shard_of_a_million_nothings_is_not_unpacked(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "val.parquet", [], [])
    empty = pq.read_table(shard)
    rows = 1_000_000
    image = pa.nulls(rows, empty.schema.field("image").type)
    table = pa.table([image, pa.array(np.zeros(rows, np.int64))], schema=empty.schema)
    pq.write_table(table, shard)
    with pytest.raises(DataError, match=r"must hold images, got 1,000,000 rows in [\d,]+ bytes"):
        open_data(str(shard), "val")


def test_a_missing_pyarrow_is_one_line_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "val.parquet", [encoded(0, 0)], [0])
    monkeypatch.setattr(libraries, "installed", lambda *names: "pyarrow" not in names)
    with pytest.raises(InputError, match=r"Parquet data needs pyarrow.*: pip install pyarrow$"):
        open_data(str(tmp_path), "val")
