"""One string opens a data set of any kind, or one line says why not."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from splitattn.data.sources import open_data
from splitattn.errors import DataError
from tests.data.datasets import encoded, write_class_folders, write_shard


def test_class_names_come_from_a_file(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "data", 1)
    names = tmp_path / "names.txt"
    names.write_text("sea\ngrass\nfire\n")
    assert open_data(str(tmp_path / "data"), "val", names).classes == ("sea", "grass", "fire")
    names.write_text("sea\nsea\nfire\n")
    with pytest.raises(DataError, match="3 different ones, got 2 different of 3"):
        open_data(str(tmp_path / "data"), "val", names)
    with pytest.raises(DataError, match="text file"):
        open_data(str(tmp_path / "data"), "val", tmp_path / "missing.txt")


def test_class_names_in_a_file_are_an_order_or_a_longer_list(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "data", 1)
    names = tmp_path / "names.txt"
    names.write_bytes("\ufeffred\r\ngray\r\ngreen \r\nblue\r\n\r\n".encode())
    data = open_data(str(tmp_path / "data"), "val", names)
    assert data.classes == ("red", "gray", "green", "blue")
    assert [data.classes[label] for label in data.labels] == ["blue", "green", "red"]


def test_what_cannot_be_opened_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "red").mkdir(parents=True)
    write_class_folders(tmp_path / "half" / "train", 1)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "val.parquet").write_text("not parquet")
    (tmp_path / "plain").mkdir()
    pq.write_table(pa.table({"image": ["a"], "label": [0]}), tmp_path / "plain" / "val.parquet")
    write_shard(tmp_path / "labels" / "val.parquet", [encoded(0, 0)], [7])
    pq.write_table(
        pq.read_table(tmp_path / "labels" / "val.parquet").set_column(1, "label", [["red"]]),
        write_shard(tmp_path / "words" / "val.parquet", [], []),
    )
    write_shard(tmp_path / "none" / "val.parquet", [], [])
    write_shard(tmp_path / "only" / "train.parquet", [encoded(0, 0)], [0])
    for name, message in {
        "missing": "must be a folder, Parquet shards, a CSV file or torchvision:NAME",
        "empty": "one folder per class",
        "hollow": "must hold images",
        "half": "must have a folder val/",
        "text": "Hugging Face image layout",
        "plain": "Hugging Face image layout",
        "labels": "labels must be 0 to 2",
        "words": "Hugging Face image layout",
        "x" * 5000: "no such thing|too long",
        "none": "must hold images",
        "only": r"must have shards called val-\*.parquet",
    }.items():
        with pytest.raises(DataError, match=message) as raised:
            open_data(str(tmp_path / name), "val")
        assert "\n" not in str(raised.value)
