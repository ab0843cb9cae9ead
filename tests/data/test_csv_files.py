"""A CSV file of paths and labels."""

from pathlib import Path

import numpy as np
import pytest

from splitattn.data.labeled import with_classes_of_model
from splitattn.data.sources import has_several_labels, open_data
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


def test_paths_may_be_written_as_on_windows_or_with_spaces(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "data", 2)
    (root / "red" / " a\\b.png").write_bytes((root / "red" / "1.png").read_bytes())
    data = open_data(
        write(
            root / "some.csv",
            "path, label",
            r"blue\0.png , sea",
            r"red\1.png,fire",
            r"red/ a\b.png,f",
        ),
        "val",
    )
    expected = [root / "blue" / "0.png", root / "red" / "1.png", root / "red" / " a\\b.png"]
    assert list(data.images) == list(map(str, expected))


def test_columns_may_come_in_any_order_with_others_between_them(tmp_path: Path) -> None:
    path = tmp_path / "odd.CSV"
    path.write_bytes('\ufefflabel,note,path\r\n"a, b",,é.png\r\n\r\nc,x,d.png\r\n'.encode())
    data = open_data(str(path), "train")
    assert [data.classes[label] for label in data.labels] == ["a, b", "c"]
    assert list(data.images) == [str(tmp_path / "é.png"), str(tmp_path / "d.png")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_a_file_may_be_what_a_spreadsheet_writes(
    tmp_path: Path, encoding: str, separator: str
) -> None:
    lines = [["path", "label"], ["a,é.png", "löwe"], ["b.png", "x\ty"]]
    text = "\r\n".join(separator.join(f'"{cell}"' for cell in line) for line in lines)
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path = tmp_path / "list.csv"
    path.write_bytes((mark + text).encode(encoding))
    data = open_data(str(path), "train")
    assert [data.classes[label] for label in data.labels] == ["löwe", "x\ty"]
    assert list(data.images) == [str(tmp_path / "a,é.png"), str(tmp_path / "b.png")]
    assert not has_several_labels(path)


def test_tables_with_tabs_may_end_in_tsv(tmp_path: Path) -> None:
    one = write(tmp_path / "list.tsv", "path\tlabel", "a.png\tsea", "b.png\tfire")
    assert open_data(one, "train").classes == ("fire", "sea")
    several = write(tmp_path / "several.TSV", "path\tlabels", "a.png\tsea|fire", "b.png\tfire")
    assert has_several_labels(several)


def test_one_image_with_two_spellings_of_its_path_has_one_label(tmp_path: Path) -> None:
    same = write(tmp_path / "a.csv", "path,label", "x/0.png,a", "./x/0.png,a", "x/1.png,b")
    assert len(open_data(same, "train")) == 3
    other = write(tmp_path / "b.csv", "path,label", "x/0.png,a", r".\x\0.png,b")
    with pytest.raises(
        DataError, match=r"must have the same labels in all rows of an image, got 'a' and"
    ):
        open_data(other, "train")


def test_a_row_without_a_split_is_not_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "path,label,split", "0.png,a,train", "1.png,b,", "2.png,b,val")
    with pytest.raises(DataError, match=r"all rows or in none, got none for 1 of 3 .* '1\.png'"):
        open_data(path, "train")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_refused_with_the_fix(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes("path,label\na.png,x\n".encode(encoding))
    with pytest.raises(DataError, match=r"in UTF-8: it has zero bytes, .*; save it as UTF-8"):
        open_data(str(path), "train")


def test_whole_numbers_written_as_floats_are_numbers(tmp_path: Path) -> None:
    rows = [f"{i}.png,{i}.0" for i in range(11)]
    data = open_data(write(tmp_path / "a.csv", "path,label", *rows, "x.png,3"), "train")
    assert data.classes == tuple(map(str, range(11)))
    assert list(data.labels) == [*range(11), 3]
    outputs = with_classes_of_model(data, tuple(f"class {i}" for i in range(1000)))
    assert list(outputs.labels) == [*range(11), 3]
    several = write(tmp_path / "b.csv", "path,labels", "a.png,1.0", "b.png,1|10.0", "c.png,")
    assert open_data(several, "train").classes == ("1", "10")
    # If one is not a whole number, all are text.
    mixed = write(tmp_path / "c.csv", "path,label", *rows, "x.png,3.5")
    assert open_data(mixed, "train").classes[:3] == ("0.0", "1.0", "10.0")


def test_columns_are_known_in_any_case_and_with_spaces_around_them(tmp_path: Path) -> None:
    data = write(
        tmp_path / "a.csv", "Path, LABEL,Split", "a.png,x,train", "b.png,y,val", "c.png,y,val"
    )
    train, val = (open_data(data, split) for split in ("train", "val"))
    assert (list(train.images), list(train.labels)) == ([str(tmp_path / "a.png")], [0])
    assert (len(val), list(val.labels), val.classes) == (2, [1, 1], ("x", "y"))
    twice = write(tmp_path / "b.csv", "path,label,Label", "a.png,x,y")
    with pytest.raises(DataError, match="must have one column label, got 'path,label,Label'"):
        open_data(twice, "train")


@pytest.mark.parametrize(
    ("column", "first", "other"), [("label", "x", "y"), ("labels", "x|z", "x")]
)
def test_rows_that_say_different_things_of_an_image_are_refused(
    column: str, first: str, other: str, tmp_path: Path
) -> None:
    rows = (f"path,{column}", f"a.png,{first}", "b.png,x|z")
    for row in (f"a.png,{first}", "a.png,z|x" if "|" in first else "c.png,x"):  # the same again
        open_data(write(tmp_path / "same.csv", *rows, row), "train")
    data = write(tmp_path / "a.csv", *rows, f"a.png,{other}")
    with pytest.raises(DataError) as raised:
        open_data(data, "train")
    assert str(raised.value).startswith(
        f"{data} must have the same labels in all rows of an image, "
        f"got {first!r} and {other!r} for 'a.png'"
    )
    fix = "with all labels of the image" if column == "labels" else "call the column labels and wr"
    assert fix in str(raised.value)
    assert ("call the column labels" in str(raised.value)) == (column == "label")


def test_files_are_found_however_their_accents_are_composed(tmp_path: Path) -> None:
    (tmp_path / "set e\u0301").mkdir()
    picture(1, 0).save(tmp_path / "set e\u0301" / "cafe\u0301.png")
    write(
        tmp_path / "set e\u0301" / "d.csv",
        "path,label",
        "caf\u00e9.png,th\u00e9",
        "b.png,the\u0301",
    )
    data = open_data(str(tmp_path / "set \u00e9" / "d.csv"), "val")
    assert data.classes == ("th\u00e9",)
    np.testing.assert_array_equal(decode(data.images[0]), picture(1, 0))


def test_rows_of_another_split_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"{split}.png,cat,{split}" for split in ("Train", "valid", "foo", "bar", "test")]
    path = write(tmp_path / "some.csv", "path,label,split", *rows)
    for split in ("train", "val"):
        assert len(open_data(path, split)) == 1
    assert caplog.messages == [
        f"{path}: rows skipped, since their split is not train, val or test: 2, such as 'foo'"
    ]


def test_labels_that_are_fractions_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "some.csv", "path,label", "a.png,0.37", "b.png,1", "c.png,-2e-1")
    for split in ("train", "val"):
        assert open_data(path, split).classes == ("-2e-1", "0.37", "1")
    assert caplog.messages == [
        f"{path}: all labels are numbers, such as '-2e-1': each of these 3 counts as a class"
    ]
    caplog.clear()
    open_data(write(tmp_path / "some.csv", "path,label", "a.png,0.37", "b.png,cat"), "train")
    assert caplog.messages == []


def test_a_label_that_looks_like_several_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ["a.png,red|blue", "b.png,red", "c.png,blue|red"]
    path = write(tmp_path / "a.csv", "path,label", *rows)
    for split in ("train", "val"):
        assert open_data(path, split).classes == ("blue|red", "red", "red|blue")
    assert caplog.messages == [
        f"{path}: the label 'blue|red' counts as one class; if an image may have several, call the "
        "column labels"
    ]
    caplog.clear()
    assert open_data(write(tmp_path / "b.csv", "path,labels", *rows), "train").classes == (
        "blue",
        "red",
    )
    assert caplog.messages == []


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


def test_eval_beside_dev_is_the_test_set(tmp_path: Path) -> None:
    rows = ("a.png,x,train", "b.png,y,dev", "c.png,x,eval")
    path = write(tmp_path / "data.csv", "path,label,split", *rows)
    for split, name in (("train", "a.png"), ("val", "b.png"), ("test", "c.png")):
        assert [Path(str(image)).name for image in open_data(path, split).images] == [name]


def test_a_file_without_splits_serves_as_train_and_val(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", "path,label", "a.png,x", "b.png,y")
    assert open_data(path, "train") == open_data(path, "val")


def classes_by_image(path: str, split: str) -> dict[str, list[str]]:
    data = open_data(path, split)
    return {
        Path(name).name: [data.classes[each] for each in data.classes_of(label)]
        for name, label in zip(data.names, data.labels, strict=True)
    }


def test_an_image_may_have_several_labels_or_none(tmp_path: Path) -> None:
    path = write(
        tmp_path / "data.csv",
        "path,labels,split",
        "a.png,sea|boat,train",
        "b.png,,train",
        "c.png, boat | sea | boat,train",
        "d.png,sky,val",
    )
    assert has_several_labels(path)
    assert open_data(path, "val").classes == ("boat", "sea", "sky")
    boat_and_sea = ["boat", "sea"]
    expected = {"a.png": boat_and_sea, "b.png": [], "c.png": boat_and_sea}
    assert classes_by_image(path, "train") == expected
    assert classes_by_image(path, "val") == {"d.png": ["sky"]}
    one_hot = write(
        tmp_path / "one_hot.csv",
        "path,sky,sea,split,boat",
        "a.png,0,1,train,1",
        "b.png,0,0,train,0.0",
        "c.png,0,1.0,train,1",
        "d.png,1,0,val,0",
    )
    assert has_several_labels(one_hot)
    assert open_data(one_hot, "val").classes == ("sky", "sea", "boat")
    expected = {"a.png": ["sea", "boat"], "b.png": [], "c.png": ["sea", "boat"]}
    assert classes_by_image(one_hot, "train") == expected
    model = with_classes_of_model(open_data(one_hot, "train"), ("boat", "car", "sea", "sky"))
    assert [model.classes_of(label) for label in model.labels] == [(0, 2), (), (0, 2)]
    assert not has_several_labels(write(tmp_path / "one.csv", "path,label", "a.png,x|y"))
    assert classes_by_image(str(tmp_path / "one.csv"), "val") == {"a.png": ["x|y"]}


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["path,labels", "a.png,sea boat"], r"with \| between them, got 'sea boat' and the like"),
        (["path,label,labels", "a.png,x,y|z"], "must have a header with path and label, or labels"),
        (["path,sea,sea", "a.png,0,1"], "must have different names, got 'sea,sea'"),
        (["path,sea,boat", "a.png,0,1", "b.png,2,0"], "0 or 1 in each other column .* in line 3"),
        (["path,sea,boat", "a.png,0"], "0 or 1 in each other column .* not so in line 2"),
        (["path,class", "a.png,cat"], "for classes by name, a column label or labels"),
    ],
)
def test_ambiguous_labels_are_refused(tmp_path: Path, lines: list[str], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        open_data(write(tmp_path / "data.csv", *lines), "val")


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
        (b"", "must have a header with path and label, or labels, got ''"),
        (b"a.png,cat\n", "must have a header with path and label, or labels, got 'a.png,cat'"),
        (b"path,label\n", "must hold images, got no rows"),
        (b"path,label,split\na.png,x,train\n", "must have rows whose split is val, got 'train'"),
        (b"path,label\nhttp://127.0.0.1/a.png,x\n", "must be files, got the address 'http"),
        (b"path,label\n\xff\xfe.png,x\n", "must be a CSV file in UTF-8"),
        (b"path,label\n" + b"x" * 200_000 + b",a\n", "must be a CSV file in UTF-8"),
    ],
)
def test_a_csv_file_without_usable_rows_or_header_is_refused(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        open_data(str(path), "val")
