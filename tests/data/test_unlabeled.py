"""Images for a teacher: with labels of its classes, or without labels in any layout."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from splitattn.data import parquet
from splitattn.data.unlabeled import open_for_teacher
from splitattn.errors import DataError
from splitattn.images.decode import decode
from tests.data.datasets import CLASSES, encoded, picture, write_image_folder, write_shard


def write_photographs(root: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, i, i)).save(root / name)


def test_labels_of_the_teachers_classes_are_kept(tmp_path: Path) -> None:
    write_image_folder(tmp_path, train=2, val=1)
    classes = ("red", "black", *CLASSES[:2])
    train, val = open_for_teacher(str(tmp_path), classes, seed=0)
    assert train.classes == val.classes == classes
    assert [classes[label] for label in train.labels] == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2
    assert len(val) == 3
    # Labels of other classes are dropped; the images are used.
    train, val = open_for_teacher(str(tmp_path), ("cat", "dog"), seed=0)
    assert (train.classes, val.classes, len(train), len(val)) == ((), (), 6, 3)
    assert train.labels == [0] * 6


def test_a_folder_of_any_depth_is_divided_by_the_seed(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(30)] + [f"2024/may/{i}.jpg" for i in range(30)]
    write_photographs(tmp_path, [*names, "train/station.png"])
    parts = [open_for_teacher(str(tmp_path), ("cat", "dog"), seed=seed) for seed in (0, 0, 1)]
    for train, val in parts:
        assert (len(train), len(val)) == (57, 4)
        assert sorted([*train.names, *val.names]) == sorted(
            str(tmp_path / name) for name in [*names, "train/station.png"]
        )
        assert train.origin != val.origin
        assert [train.images[i] for i in range(57)] == list(train.names)
    names = [list(val.names) for _, val in parts]
    assert names[0] == names[1] != names[2]


def test_folders_called_like_splits_are_the_splits(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["train/a/1.png", "train/2.png", "Val/3.png"])
    train, val = open_for_teacher(str(tmp_path), ("cat", "dog"), seed=0)
    assert sorted(train.names) == [str(tmp_path / f"train/{n}.png") for n in ("2", "a/1")]
    assert list(val.names) == [str(tmp_path / "Val/3.png")]
    (tmp_path / "__MACOSX").mkdir()
    assert [len(part) for part in open_for_teacher(str(tmp_path), ("cat", "dog"), seed=0)] == [2, 1]
    # Without a validation split, the training images are divided.
    (tmp_path / "Val/3.png").unlink()
    (tmp_path / "Val").rmdir()
    train, val = open_for_teacher(str(tmp_path), ("cat", "dog"), seed=0)
    assert (len(train), len(val)) == (1, 1)


def test_test_images_without_labels_validate_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_photographs(tmp_path, ["train/1.png", "train/2.png", "test/3.png"])
    train, val = open_for_teacher(str(tmp_path), ("cat", "dog"), seed=0)
    assert (len(train), list(val.names)) == (2, [str(tmp_path / "test/3.png")])
    assert caplog.messages == [f"{tmp_path} has no split val: test is used instead"]


def test_parquet_needs_no_labels(tmp_path: Path) -> None:
    column = pa.array([{"bytes": encoded(i % 3, i), "path": None} for i in range(4)])
    pq.write_table(pa.table({"image": column}), tmp_path / "part.parquet")
    train, val = open_for_teacher(str(tmp_path), ("cat", "dog"), seed=0)
    assert (train.classes, len(train), len(val)) == ((), 3, 1)
    whole = {image.tobytes() for image in map(decode, [*train.images, *val.images])}
    assert whole == {picture(i % 3, i).tobytes() for i in range(4)}


@pytest.mark.parametrize("kind", ["csv", "folders", "parquet", "unlabeled"])
def test_without_a_validation_split_one_image_in_twenty_is_kept(kind: str, tmp_path: Path) -> None:
    data = tmp_path
    if kind == "csv":
        data = tmp_path / "images.csv"
        rows = "".join(f"{i}.png,{CLASSES[i % 3]},train\n" for i in range(40))
        data.write_text(f"path,label,split\n{rows}")
    elif kind == "folders":
        for i in range(40):
            write_photographs(tmp_path, [f"train/{CLASSES[i % 3]}/{i}.png"])
    else:
        images = [encoded(i % 3, i) for i in range(40)]
        write_shard(tmp_path / "train-0.parquet", images, [i % 3 for i in range(40)])
    classes = ("cat", "dog") if kind == "unlabeled" else CLASSES
    train, val = open_for_teacher(str(data), classes, seed=0)
    assert train.classes == val.classes == (() if kind == "unlabeled" else CLASSES)
    assert (len(train), len(val)) == (38, 2)
    assert len({*train.names, *val.names}) == 40


def test_parts_of_large_shards_are_still_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_RESIDENT_BYTES", 0)
    column = pa.array([{"bytes": encoded(i % 3, i), "path": f"{i}"} for i in range(24)])
    table = pa.table({"image": column})
    pq.write_table(table, tmp_path / "part.parquet", row_group_size=6)
    train, val = open_for_teacher(str(tmp_path), ("cat", "dog"), seed=0)
    assert (len(train), len(val)) == (22, 2)
    for part in (train, val):
        assert part.blocks is not None
        groups = [int(name) // 6 for name in part.names]
        assert part.blocks.starts == tuple(
            sum(group < number for group in groups) for number in range(4)
        )


def test_parquet_with_labels_of_other_classes_gives_its_images(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.parquet", [encoded(0, 0), encoded(1, 1)], [0, 1])
    write_shard(tmp_path / "val-0.parquet", [encoded(2, 2)], [2])
    train, val = open_for_teacher(str(tmp_path / "*.parquet"), ("cat", "dog"), seed=0)
    assert (train.classes, len(train), len(val)) == ((), 2, 1)
    assert list(train.names) == ["0.png", "1.png"]


@pytest.mark.parametrize("data", ["nothing", "~nobody/photos", "a\0b", "empty"])
def test_data_without_images_are_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as raised:
        open_for_teacher(data, ("cat", "dog"), seed=0)
    assert "\n" not in str(raised.value)


def test_a_shard_of_something_else_is_reported_in_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["a"])}), tmp_path / "part.parquet")
    with pytest.raises(DataError, match=r"must have a column image: "):
        open_for_teacher(str(tmp_path), ("cat", "dog"), seed=0)
