"""A CSV file of paths and labels."""

from pathlib import Path

import numpy as np
import pytest

from splitattn.data.sources import open_data
from splitattn.errors import DataError
from splitattn.images.decode import decode
from tests.data.datasets import picture, write_class_folders


def write(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_class_folders(tmp_path / "data", 2)
    absolute = root / "red" / "1.png"
    data = open_data(
        write(root / "some.csv", "path,label", "blue/0.png,sea", f"{absolute},fire"), "val"
    )
    monkeypatch.chdir(tmp_path)
    assert data.classes == ("fire", "sea")
    assert list(data.labels) == [1, 0]
    np.testing.assert_array_equal(decode(data.images[0]), picture(0, 0))
    np.testing.assert_array_equal(decode(data.images[1]), picture(2, 1))
    assert list(data.names) == [str(root / "blue" / "0.png"), str(absolute)]


def test_columns_may_come_in_any_order_with_others_between_them(tmp_path: Path) -> None:
    path = tmp_path / "odd.CSV"
    path.write_bytes('\ufefflabel,note,path\r\n"a, b",,é.png\r\n\r\nc,x,d.png\r\n'.encode())
    data = open_data(str(path), "train")
    assert [data.classes[label] for label in data.labels] == ["a, b", "c"]
    assert list(data.images) == [str(tmp_path / "é.png"), str(tmp_path / "d.png")]


def test_a_split_column_has_the_splits(tmp_path: Path) -> None:
    path = write(
        tmp_path / "data.csv",
        "path,label,split",
        "a.png,x,train",
        "b.png,y,validation",
        "c.png,z, Training",
        "d.png,x,test",
    )
    train, val = open_data(path, "train"), open_data(path, "val")
    assert [Path(str(image)).name for image in train.images] == ["a.png", "c.png"]
    assert [Path(str(image)).name for image in val.images] == ["b.png"]
    assert train.classes == val.classes == ("x", "y", "z")
    assert list(val.labels) == [1]
    assert train.origin != val.origin


def test_without_splits_a_file_serves_as_either(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", "path,label", "a.png,x", "b.png,y")
    assert open_data(path, "train") == open_data(path, "val")


def test_bad_rows_are_named_in_one_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "data.csv", "path,label", "a.png,x", ",x", "b.png,", "c,d.png,x", "e.png"
    )
    with pytest.raises(DataError, match=r"quote commas\); not so in line 3, 4, 5, 6$") as raised:
        open_data(path, "val")
    assert str(raised.value).isprintable()
    path = write(tmp_path / "data.csv", "path,label", *["a.png"] * 9)
    with pytest.raises(DataError, match=r"in line 2, 3, 4, 5, 6 and 4 more$"):
        open_data(path, "val")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "must have a header with path and label, got ''"),
        (b"a.png,cat\n", "must have a header with path and label, got 'a.png,cat'"),
        (b"path,label\n", "must hold images, got no rows"),
        (b"path,label,split\na.png,x,train\n", "must have rows whose split is val, got 'train'"),
        (b"path,label\nhttp://127.0.0.1/a.png,x\n", "must be files, got the address 'http"),
        (b"path,label\n\xff\xfe.png,x\n", "must be a CSV file in UTF-8"),
        (b"path,label\n" + b"x" * 200_000 + b",a\n", "must be a CSV file in UTF-8"),
    ],
)
def test_a_file_that_is_no_data_set_is_refused(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        open_data(str(path), "val")
