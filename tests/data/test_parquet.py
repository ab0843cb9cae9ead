"""Parquet shards in the Hugging Face image layout."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from splitattn import libraries
from splitattn.data import parquet
from splitattn.data.labeled import Blocks
from splitattn.data.loading import epoch_batches
from splitattn.data.sources import open_data
from splitattn.data.splits import MissingSplitError
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


def test_shards_with_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    for number, names in enumerate((CLASSES, CLASSES[::-1])):
        path = write_shard(tmp_path / f"val-{number}.parquet", [encoded(0, 0)], [0])
        features = {"label": {"names": names}}
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(pq.read_table(path).replace_schema_metadata(about), path)
    with pytest.raises(DataError, match=r"the same classes .* got others in val-1\.parquet"):
        open_data(str(tmp_path), "val")


def test_shards_are_found_by_the_usual_names_of_splits(tmp_path: Path) -> None:
    write_shard(tmp_path / "Training_0.parquet", [encoded(0, 0)], [0])
    write_shard(tmp_path / "Training_1.parquet", [encoded(0, 1)], [1])
    write_shard(tmp_path / "VALID-0.parquet", [encoded(0, 2)], [2])
    assert list(open_data(str(tmp_path), "train").labels) == [0, 1]
    assert list(open_data(str(tmp_path), "val").labels) == [2]


def test_shards_may_have_other_words_around_their_split(tmp_path: Path) -> None:
    write_shard(tmp_path / "my_train-0.parquet", [encoded(0, 0)], [0])
    write_shard(tmp_path / "my_train-1.parquet", [encoded(0, 1)], [1])
    write_shard(tmp_path / "my_val.parquet", [encoded(0, 2)], [2])
    assert list(open_data(str(tmp_path), "train").labels) == [0, 1]
    assert list(open_data(str(tmp_path), "val").labels) == [2]
    (tmp_path / "my_val.parquet").rename(tmp_path / "cifar10-test.parquet")
    assert list(open_data(str(tmp_path), "val").labels) == [2]


def test_shards_of_one_split_do_not_serve_as_another(tmp_path: Path) -> None:
    for number in range(2):
        write_shard(tmp_path / f"pet_train_{number}.parquet", [encoded(0, 0)], [0])
    assert len(open_data(str(tmp_path), "train")) == 2
    for split in ("val", "test"):
        with pytest.raises(MissingSplitError, match=rf"must have shards called {split}-\*"):
            open_data(str(tmp_path), split)


def test_shards_with_and_without_a_split_are_refused(tmp_path: Path) -> None:
    for name in ("part-0", "part-1-train"):
        write_shard(tmp_path / f"{name}.parquet", [encoded(0, 0)], [0])
    with pytest.raises(DataError, match=r"must have one split in its name, got part-0"):
        open_data(str(tmp_path), "train")


def test_shards_of_two_splits_at_once_are_refused_beside_others(tmp_path: Path) -> None:
    """All would be trained on, the test set too."""
    write_shard(tmp_path / "my_train_val.parquet", [encoded(0, 0)], [0])
    write_shard(tmp_path / "my_test.parquet", [encoded(0, 1)], [1])
    with pytest.raises(DataError, match=r"must have one split in its name, got my_train_val"):
        open_data(str(tmp_path), "train")


@pytest.mark.parametrize("given", ["", "TRAIN.PARQUET", "TRAIN*"])
def test_the_ending_of_shards_is_in_any_case(tmp_path: Path, given: str) -> None:
    write_shard(tmp_path / "TRAIN.PARQUET", [encoded(0, 0)], [1])
    assert list(open_data(str(tmp_path / given), "train").labels) == [1]
    assert len(open_data(str(tmp_path), "train")) == 1


def test_shards_without_a_split_in_their_name_serve_as_train_and_val(tmp_path: Path) -> None:
    write_shard(tmp_path / "flowers.parquet", [encoded(0, 0)], [0])
    assert len(open_data(str(tmp_path), "val")) == len(open_data(str(tmp_path), "train")) == 1


def test_a_shard_of_a_million_nulls_is_not_unpacked(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "val.parquet", [], [])
    empty = pq.read_table(shard)
    rows = 1_000_000
    image = pa.nulls(rows, empty.schema.field("image").type)
    table = pa.table([image, pa.array(np.zeros(rows, np.int64))], schema=empty.schema)
    pq.write_table(table, shard)
    with pytest.raises(DataError, match=r"must hold images, got 1,000,000 rows in [\d,]+ bytes"):
        open_data(str(shard), "val")


def test_a_missing_pyarrow_is_reported_in_one_line_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "val.parquet", [encoded(0, 0)], [0])
    monkeypatch.setattr(libraries, "installed", lambda *names: "pyarrow" not in names)
    with pytest.raises(InputError, match=r"Parquet data needs pyarrow.*: pip install pyarrow$"):
        open_data(str(tmp_path), "val")


def shard_of(path: Path, image: pa.Array, labels: pa.Array, **options: Any) -> str:
    """Write a shard with these columns and the metadata of a valid shard."""
    metadata = pq.read_schema(write_shard(path, [], [])).metadata
    table = pa.table({"image": image, "label": labels}).replace_schema_metadata(metadata)
    pq.write_table(table, path, **options)
    return str(path)


def structs(values: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays([values, pa.array(["a"] * len(values))], ["bytes", "path"])


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (pa.array(["/etc/passwd", "http://127.0.0.1/"]), pa.array([0, 1]), "image.bytes is string"),
        (pa.array([b"a", b"b"]), pa.array([0.5, 1.5]), "label is double"),
        (pa.array([b"a", b"b"]), pa.array([False, True]), "label is bool"),
        (pa.array([b"a", b"b"]), pa.array(["0", "1"]), "label is string"),
        (pa.array([b"a", b"b"]), pa.array([[0], [1]]), "label is list"),
        (pa.array([b"a", b"b"]), pa.array([0, None]), "labels are missing"),
    ],
)
def test_images_are_binary_and_labels_whole_numbers(
    tmp_path: Path, values: pa.Array, labels: pa.Array, message: str
) -> None:
    path = shard_of(tmp_path / "val.parquet", structs(values), labels)
    with pytest.raises(DataError, match=f"Hugging Face image layout .*{message}"):
        open_data(path, "val")


def test_columns_with_other_names_are_listed_in_the_error(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "train.parquet", [encoded(0, 0)], [0])
    pq.write_table(pq.read_table(path).rename_columns(["img", "fine_label"]), path)
    with pytest.raises(DataError, match="it has no image, but img, fine_label: rename the columns"):
        open_data(str(path), "train")


def test_a_folder_above_the_shards_is_refused_with_the_folder_to_name(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_shard(tmp_path / f"hub/data/{split}-00000-of-00001.parquet", [encoded(0, 0)], [0])
        write_shard(tmp_path / f"api/default/{split}/0.parquet", [encoded(0, 0)], [0])
    for root, folder in (("hub", "hub/data"), ("api", "api/default/")):
        with pytest.raises(
            DataError, match=f"must be in one folder, got .* name {tmp_path}/{folder}"
        ):
            open_data(str(tmp_path / root), "train")


def test_missing_shards_are_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split, numbers in (("train", (0, 2)), ("val", (0,))):
        for number in numbers:
            name = f"{split}-{number:05}-of-{max(numbers) + 1:05}.parquet"
            write_shard(tmp_path / name, [encoded(0, number)], [0])
    assert len(open_data(str(tmp_path), "val")) == 1
    assert not caplog.records
    assert len(open_data(str(tmp_path), "train")) == 2
    assert "only 2 of 3 Parquet shards are here" in caplog.text


@pytest.mark.parametrize(
    "features",
    [
        b"[" * 100_000,
        b'{"info": {"features": {"label": {"names": 7}}}}',
        b'{"info": {"features": {"label": {"names": [0, 1, 2]}}}}',
        b'{"info": {"features": {"label": {"names": [null, null, null]}}}}',
        b'{"info": {"features": {"label": {"names": [["a"], ["b"], ["c"]]}}}}',
    ],
)
def test_class_names_are_text(tmp_path: Path, features: bytes) -> None:
    path = write_shard(tmp_path / "val.parquet", [encoded(0, 0)], [0])
    table = pq.read_table(path).replace_schema_metadata({b"huggingface": features})
    pq.write_table(table, path)
    with pytest.raises(DataError, match="class names in the metadata"):
        open_data(str(path), "val")


@pytest.mark.parametrize(
    ("value", "rows", "options"),
    [
        (bytes(2_000_000), 1, {"use_dictionary": False, "compression": "zstd"}),
        (np.random.default_rng(0).bytes(50_000), 500, {"dictionary_pagesize_limit": 1 << 26}),
    ],
    ids=["zeros", "dictionary"],
)
def test_shards_that_unpack_to_far_more_than_their_size_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: bytes,
    rows: int,
    options: dict[str, Any],
) -> None:
    monkeypatch.setattr(parquet, "_SMALL_BYTES", 1_000_000)
    values = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))
    path = shard_of(
        tmp_path / "val.parquet", structs(values.cast(pa.binary())), pa.array([0] * rows), **options
    )
    with pytest.raises(
        DataError, match=r"must unpack to at most [\d,]+ bytes, got more in group 0"
    ):
        open_data(path, "val")


def test_large_shards_are_read_by_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [encoded(index % 3, index) for index in range(24)]
    path = write_shard(tmp_path / "val.parquet", images, [index % 3 for index in range(24)])
    pq.write_table(pq.read_table(path), path, row_group_size=4)
    whole = open_data(str(path), "val")
    assert whole.blocks is None
    monkeypatch.setattr(parquet, "_RESIDENT_BYTES", 1000)
    monkeypatch.setattr(parquet, "_KEPT_BYTES", 2 * len(images[0]) * 4 + 2000)
    read: list[int] = []
    real = parquet._read_group
    monkeypatch.setattr(parquet, "_read_group", lambda g: read.append(g.index) or real(g))
    data = pickle.loads(pickle.dumps(open_data(str(path), "val")))
    assert data.blocks == Blocks(starts=(0, 4, 8, 12, 16, 20), at_once=2)
    assert read == []
    assert [data.images[index] for index in range(24)] == images
    assert list(data.names) == list(whole.names)
    assert read == [0, 1, 2, 3, 4, 5], "reading the names reads no images"
    assert data.fingerprint() == whole.fingerprint()
    order = [
        i
        for batch in epoch_batches(24, batch_size=4, seed=0, epoch=1, blocks=data.blocks)
        for i in batch
    ]
    assert sorted(order) == list(range(24))
    assert order != sorted(order)
    read.clear()
    assert [data.images[index] for index in order] == [images[index] for index in order]
    assert len(read) <= 7, "batches come from two blocks at a time"


@pytest.mark.parametrize(
    "metadata",
    [{}, {b"huggingface": b'{"info": {"features": {"label": {"dtype": "int64"}}}}'}],
    ids=["none", "a plain number"],
)
@pytest.mark.parametrize(
    ("lines", "labels", "classes"),
    [
        (["sea", "meadow", "fire"], [2, 0, 2], ["fire", "sea", "fire"]),
        (["1: sea", "2: meadow", "3: fire"], [2, 1, 3], ["meadow", "sea", "fire"]),
    ],
    ids=["in order", "with numbers"],
)
def test_a_list_names_the_classes_of_shards_that_name_none(
    tmp_path: Path, metadata: Any, lines: list[str], labels: list[int], classes: list[str]
) -> None:
    path = write_shard(tmp_path / "val.parquet", [encoded(0, i) for i in range(3)], labels)
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(DataError, match="names no classes; list them with --class-names"):
        open_data(str(path), "val")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(lines))
    data = open_data(str(path), "val", names)
    assert data.classes == ("sea", "meadow", "fire")
    assert [data.classes[label] for label in data.labels] == classes
    names.write_text("\n".join(lines[:2]))
    with pytest.raises(
        DataError, match=r"numbers of the 2 class names, \d to \d, got \d; lines such as '1 cat'"
    ):
        open_data(str(path), "val", names)
