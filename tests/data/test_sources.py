"""One string opens a data set, whatever form it has, or one line says why not."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torchvision import datasets

from splitattn.data.sources import LabelledImages, open_data
from splitattn.errors import DataError
from splitattn.images.decode import decode
from tests.data.datasets import (
    CLASSES,
    encoded,
    picture,
    write_class_folders,
    write_image_folder,
    write_shard,
)


def pixels(data: LabelledImages, index: int) -> np.ndarray:
    return np.asarray(decode(data.images[index]))


@pytest.mark.parametrize(("split", "per_class", "offset"), [("train", 4, 0), ("val", 2, 1000)])
def test_an_image_folder_has_its_splits(
    tmp_path: Path, split: str, per_class: int, offset: int
) -> None:
    data = open_data(str(write_image_folder(tmp_path, train=4, val=2)), split)
    assert data.classes == CLASSES
    assert list(data.labels) == [label for label in range(3) for _ in range(per_class)]
    for row, label in enumerate(data.labels):
        expected = picture(label, offset + row % per_class)
        np.testing.assert_array_equal(pixels(data, row), expected)


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_the_validation_folder_may_have_another_usual_name(tmp_path: Path, name: str) -> None:
    root = write_image_folder(tmp_path, train=2, val=3)
    (root / "val").rename(root / name)
    assert len(open_data(str(root), "val")) == 9


def test_class_folders_without_splits_serve_as_either(tmp_path: Path) -> None:
    write_class_folders(tmp_path, 2)
    assert open_data(str(tmp_path), "val") == open_data(str(tmp_path), "train")


def test_files_that_are_no_images_are_passed_over(tmp_path: Path) -> None:
    write_class_folders(tmp_path, 1)
    (tmp_path / "red" / "notes.txt").write_text("not an image")
    assert len(open_data(str(tmp_path), "val")) == 3


@pytest.mark.parametrize("form", ["folder", "file", "glob"])
def test_parquet_shards_are_read_in_order(tmp_path: Path, form: str) -> None:
    write_shard(tmp_path / "train-00000-of-00002.parquet", [encoded(2, 0), encoded(0, 1)], [2, 0])
    write_shard(tmp_path / "train-00001-of-00002.parquet", [encoded(1, 2)], [1])
    write_shard(tmp_path / "val-00000-of-00001.parquet", [encoded(1, 9)], [1])
    names = {"folder": "", "file": "train-00001-of-00002.parquet", "glob": "train-*.parquet"}
    data = open_data(str(tmp_path / names[form]), "train")
    assert data.classes == CLASSES
    assert list(data.labels) == ([1] if form == "file" else [2, 0, 1])
    np.testing.assert_array_equal(pixels(data, len(data) - 1), picture(1, 2))
    assert data.names[0] == "0.png"


def test_shards_without_a_split_in_their_name_serve_as_either(tmp_path: Path) -> None:
    write_shard(tmp_path / "flowers.parquet", [encoded(0, 0)], [0])
    assert len(open_data(str(tmp_path), "val")) == len(open_data(str(tmp_path), "train")) == 1


class _Local(datasets.VisionDataset):
    """A torchvision data set that is already here."""

    classes = (("blue", "azure"), "green", "red")

    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        assert download
        super().__init__(root)
        self._labels = [2, 1] if split == "train" else [0]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[object, int]:
        return picture(self._labels[index], index), self._labels[index]


def test_a_torchvision_data_set_opens_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "Imagenette", _Local)
    data = open_data("torchvision:Imagenette", "train")
    assert data.classes == CLASSES
    assert list(data.labels) == [2, 1]
    np.testing.assert_array_equal(pixels(data, 1), picture(1, 1))
    assert len(open_data("torchvision:Imagenette", "val")) == 1


def test_a_torchvision_data_set_may_call_its_splits_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strict(_Local):
        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            if split not in ("train", "test"):
                raise ValueError(f"Unknown value '{split}' for argument split")
            super().__init__(root, split, download)

    monkeypatch.setenv("SPLITATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "Food101", Strict)
    assert list(open_data("torchvision:Food101", "val").labels) == [0]


def test_an_unknown_torchvision_data_set_names_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'Imagenette'"):
        open_data("torchvision:Imagenete", "val")


def test_a_failed_torchvision_download_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(_Local):
        def __init__(self, *_: object) -> None:
            raise RuntimeError("no\nnetwork")

    monkeypatch.setenv("SPLITATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "Imagenette", Broken)
    with pytest.raises(DataError, match="cannot open Imagenette, split 'val': no network"):
        open_data("torchvision:Imagenette", "val")


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


def test_a_shard_of_a_million_nothings_is_not_unpacked(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "val.parquet", [], [])
    empty = pq.read_table(shard)
    rows = 1_000_000
    image = pa.nulls(rows, empty.schema.field("image").type)
    table = pa.table([image, pa.array(np.zeros(rows, np.int64))], schema=empty.schema)
    pq.write_table(table, shard)
    with pytest.raises(DataError, match=r"must hold images, got 1,000,000 rows in [\d,]+ bytes"):
        open_data(str(shard), "val")


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
        "missing": "must be a folder, Parquet shards or torchvision:NAME",
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
