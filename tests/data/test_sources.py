"""One string opens a data set of any kind, or is refused in one line."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from splitattn.data.sources import open_data
from splitattn.errors import DataError
from splitattn.images.decode import decode
from tests.data.datasets import encoded, picture, write_class_folders, write_shard


def test_class_names_come_from_a_file(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "data", 1)
    names = tmp_path / "names.txt"
    names.write_text("sea\ngrass\nfire\n")
    for given in (names, str(names)):
        found = open_data(str(tmp_path / "data"), "val", given)
        assert found.classes == ("sea", "grass", "fire")
    names.write_text("sea\nsea\nfire\n")
    with pytest.raises(DataError, match="must be different, got 'sea' twice"):
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", ["lines", "JSON"])
def test_class_names_are_read_in_any_unicode_however_accents_are_composed(
    tmp_path: Path, encoding: str, form: str
) -> None:
    names = ["cafe\u0301", "th\u00e9"]
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
        picture(0, 0).save(tmp_path / "data" / name / "0.png")
    text = "th\u0065\u0301\r\ncaf\u00e9\r\n"
    path = tmp_path / "names"
    path.write_bytes((text if form == "lines" else json.dumps(text.split())).encode(encoding))
    data = open_data(str(tmp_path / "data"), "val", path)
    assert data.classes == ("th\u00e9", "caf\u00e9")
    assert [data.classes[label] for label in data.labels] == ["caf\u00e9", "th\u00e9"]
    assert [decode(image).size for image in data.images] == [picture(0, 0).size] * 2


def test_class_names_in_utf_16_without_a_mark_are_refused_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_bytes("cat\ndog\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"must be a text file in UTF-8, got .*; save it as UTF-8"):
        open_data(str(tmp_path), "val", path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["a", "b", "c"]', ("a", "b", "c")),
        ('{\n "2": "c",\n "0": "a",\n "1": ["n1", "b"]\n}', ("a", "b", "c")),
        ('{"b": 1, "a": 0, "c": 2}', ("a", "b", "c")),
        ("2 c\n0 a\n1 b\n", ("a", "b", "c")),
        ("0,a\n1: b\n2\tc d", ("a", "b", "c d")),
        # Numbers in the file are indices from 0, even if the data set counts from 1.
        ("1 z\n2 a\n3 b\n4 c", None),
        ('{"1": "z", "5": "a"}', None),
        # Here the numbers are part of the names.
        ("1 euro\n2 euros\n10 cents", ("1 euro", "2 euros", "10 cents")),
    ],
)
def test_a_file_of_class_names_may_have_numbers_or_be_json(
    tmp_path: Path, text: str, expected: tuple[str, ...] | None
) -> None:
    for number in range(3):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
        picture(0, number).save(tmp_path / "data" / str(number) / "0.png")
    names = tmp_path / "names.json"
    names.write_text(text)
    if expected is None:
        with pytest.raises(DataError, match=r"one class name for each of the 3 classes|got '0'"):
            open_data(str(tmp_path / "data"), "val", names)
        return
    data = open_data(str(tmp_path / "data"), "val", names)
    assert [data.classes[label] for label in data.labels] == list(expected)


def test_numbered_names_fit_folders_with_gaps_between_their_numbers(tmp_path: Path) -> None:
    for number in ("7", "12", "100"):
        (tmp_path / "data" / number).mkdir(parents=True)
        picture(0, 0).save(tmp_path / "data" / number / "0.png")
    names = tmp_path / "cat_to_name.json"
    names.write_text('{"100": "c", "12": "b", "7": "a", "8": "x"}')
    data = open_data(str(tmp_path / "data"), "val", names)
    assert data.classes == ("a", "x", "b", "c")
    assert list(data.labels) == [0, 2, 3]


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def class_folders(root: Path, *names: str) -> str:
    for name in names:
        (root / name).mkdir(parents=True)
        picture(0, 0).save(root / name / "0.png")
    return str(root)


@pytest.mark.parametrize(
    "text",
    [
        '{"0": ["n02119789", "kit_fox"], "1": ["n02100735", "setter"], "2": ["n01440764", "fish"]}',
        '{"2": ["n01440764", "fish"], "0": ["n02119789", "kit_fox"], "1": ["n02100735", "setter"]}',
        '[["n02119789", "kit_fox"], ["n02100735", "setter"], ["n01440764", "fish"]]',
    ],
)
def test_ids_beside_class_names_are_those_of_the_folders(tmp_path: Path, text: str) -> None:
    """Keras's `imagenet_class_index.json` names each class by its WordNet id and a name."""
    root = class_folders(tmp_path / "data", "n01440764", "n02100735", "n02119789")
    data = open_data(root, "val", written(tmp_path, "names.json", text))
    assert data.classes == ("kit_fox", "setter", "fish")
    assert [data.classes[label] for label in data.labels] == ["fish", "setter", "kit_fox"]


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ('{"0": ["dog", "a"], "1": ["bird", "b"], "2": ["cat", "c"]}', ["c", "a"]),
        ('{"0": ["a", "dog"], "1": ["c", "cat"]}', ["cat", "dog"]),
        ('[["dog", "a"], ["cat", "c"]]', ["c", "a"]),
    ],
)
def test_either_half_of_a_pair_may_be_the_folders_name(
    tmp_path: Path, text: str, classes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = class_folders(tmp_path / "data", "cat", "dog")
    data = open_data(root, "val", written(tmp_path, "names.json", text))
    assert [data.classes[label] for label in data.labels] == classes
    assert not caplog.records


@pytest.mark.parametrize("separator", [" ", "\t", ",", ": ", "_"])
def test_ids_before_class_names_are_those_of_the_folders(tmp_path: Path, separator: str) -> None:
    root = class_folders(tmp_path / "data", "c7", "c8")
    lines = [f"c8{separator}sea", f"c7{separator}fire"]
    data = open_data(root, "val", written(tmp_path, "names.txt", "\n".join(lines)))
    assert data.classes == tuple(lines)
    assert list(data.labels) == [1, 0]


@pytest.mark.parametrize(
    "form",
    [
        *("{key}: {name}", "{key} {name}", "{key}\t{name}", "{key} - {name}", "{key}={name}"),
        *("{key} -> {name}", "{key}|{name}", "{name}, {key}", "{name}\t{key}", "{name} ({key})"),
        "0 {key} {name}",
    ],
)
def test_folders_named_in_the_lines_are_matched(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The order of the folders must not give them the names of others."""
    root = class_folders(tmp_path / "data", "akiec", "mel", "nv")
    named = {"nv": "nevus", "mel": "melanoma of skin", "akiec": "keratosis"}
    lines = [form.format(key=key, name=name) for key, name in named.items()]
    numbered = [line.replace("0 ", f"{n} ", 1) for n, line in enumerate(lines)]
    data = open_data(root, "val", written(tmp_path, "names.txt", "\n".join(numbered)))
    found = [data.classes[label] for label in data.labels]
    assert [next(key for key in named if named[key] in each) for each in found] == [
        *("akiec", "mel", "nv")
    ]
    assert not caplog.records


def test_class_names_that_are_matched_by_order_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = class_folders(tmp_path / "data", "chat", "chien")
    data = open_data(root, "val", written(tmp_path, "names.txt", "cat\ndog"))
    assert data.classes == ("cat", "dog")
    (record,) = caplog.records
    assert "matched by their order, 'chat' is 'cat'; to be sure, begin " in record.message


def test_numbers_without_0_are_refused_if_some_names_have_no_folder(tmp_path: Path) -> None:
    """The folders 1 and 2 may be the second and third class, or the first and second."""
    root = class_folders(tmp_path / "data", "1", "2")
    with pytest.raises(
        DataError,
        match=r"got classes 1 to 2 and 3 names in .*: begin the first line with '0 red' or '1 red'",
    ):
        open_data(root, "val", written(tmp_path, "names.txt", "red\ngreen\nblue"))
    for first, classes in ((0, ["green", "blue"]), (1, ["red", "green"])):
        lines = [f"{first + n} {name}" for n, name in enumerate(("red", "green", "blue"))]
        data = open_data(root, "val", written(tmp_path, "names.txt", "\n".join(lines)))
        assert [data.classes[label] for label in data.labels] == classes
    class_folders(tmp_path / "data", "0")
    data = open_data(root, "val", written(tmp_path, "names.txt", "red\ngreen\nblue\ngray"))
    assert [data.classes[label] for label in data.labels] == ["red", "green", "blue"]


def test_folders_that_are_numbers_are_those_of_the_pairs(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data", "0", "1")
    text = '{"1": ["n01440764", "tench"], "0": ["n02119789", "kit_fox"]}'
    data = open_data(root, "val", written(tmp_path, "names.json", text))
    assert [data.classes[label] for label in data.labels] == ["kit_fox", "tench"]


def test_pairs_of_which_neither_half_names_the_folders_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = class_folders(tmp_path / "data", "cat", "dog")
    text = '{"0": ["n02119789", "kit_fox"], "1": ["n02100735", "setter"]}'
    data = open_data(root, "val", written(tmp_path, "names.json", text))
    assert [data.classes[label] for label in data.labels] == ["kit_fox", "setter"]
    (record,) = caplog.records
    assert record.message.startswith("the class names in ")
    assert "matched by their order, 'cat' is 'kit_fox'; to be sure, begin " in record.message
    names = written(tmp_path, "names.json", '{"0": ["cat", "a"], "1": ["lynx", "b"]}')
    with pytest.raises(DataError, match="got 2, such as 'dog'"):
        open_data(root, "val", names)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("names.txt", "red\n\ngreen\n", "got an empty line 2 .*; remove it"),
        ("names.csv", "index,name\n0,red\n1,green\n2,blue", "got 'index,name' .*write the names"),
        ("data.yaml", "nc: 3\nnames: [red, green, blue]\n", "one a line, or JSON, got 'nc: 3'"),
        ("names.txt", "['red', 'green', 'blue']", "must be JSON or one a line, got Expecting"),
        ("names.json", '{"names": "red"}', "list of different names, or an object of numbers"),
        ("names.json", '{"0": "red", "1": "red"}', "list of different names"),
        ("names.json", '{"red": 0, "green": 0, "blue": 1}', "must be different, got '0' twice"),
        ("names.json", '{"0": "red", "0": "green", "1": "blue"}', "got '0' twice"),
        ("names.txt", "0 red\n2 green\n5 blue", "without gaps, got '0 red' .*; write JSON"),
        ("names.txt", "0 red\n1 green\n1 blue", "must be different and without gaps"),
        ("names.txt", "green,1\nred,0\nblue,2", "write the names alone, in the order"),
    ],
)
def test_a_file_that_is_no_list_of_class_names_is_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    write_class_folders(tmp_path / "data", 1)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        open_data(str(tmp_path / "data"), "val", tmp_path / name)
    assert "\n" not in str(raised.value)


def test_data_that_cannot_be_opened_is_refused_in_one_line(tmp_path: Path) -> None:
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
        "x" * 5000: "no such file or folder|too long",
        "none": "must hold images",
        "only": r"must have shards called val-\*.parquet, got train.parquet in",
    }.items():
        with pytest.raises(DataError, match=message) as raised:
            open_data(str(tmp_path / name), "val")
        assert "\n" not in str(raised.value)


def test_an_address_is_refused_with_advice_to_copy_the_data() -> None:
    with pytest.raises(DataError, match=r"got 's3://bucket/data': an address; copy the data set"):
        open_data("s3://bucket/data", "val")


def test_an_empty_name_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_class_folders(tmp_path, 1))
    assert open_data(".", "val").classes == ("blue", "green", "red")
    with pytest.raises(DataError, match="got an empty name"):
        open_data("", "val")


def _write(kind: str, root: Path, *splits: str) -> str:
    """Write a data set of one image in each split, or without splits; return its name."""
    if kind == "folders":
        for split in splits or ("",):
            write_class_folders(root / split, 1)
        return str(root)
    if kind == "parquet":
        for split in splits or ("pets",):
            write_shard(root / f"{split}.parquet", [encoded(0, 0)] * 3, [0, 1, 2])
        return str(root)
    rows = [f"{split}{i}.png,cat,{split}" for split in splits or ("",) for i in range(3)]
    (root / "data.csv").write_text("\n".join(["path,label,split", *rows]))
    return str(root / "data.csv")


KINDS = pytest.mark.parametrize("kind", ["folders", "csv", "parquet"])


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        ("folders", "test"),
        ("folders", "my_test"),
        ("csv", "test"),
        ("parquet", "test"),
        ("parquet", "my_test"),
    ],
)
def test_a_test_set_is_used_as_validation_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, test: str
) -> None:
    data = _write(kind, tmp_path, test.replace("test", "train"), test)
    for split in ("train", "test"):
        assert len(open_data(data, split)) == 3
    assert not caplog.messages
    assert open_data(data, "validation").origin == open_data(data, "test").origin
    assert caplog.messages == [f"{data} has no split val: test is used instead"]


@KINDS
def test_a_validation_set_is_used_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    data = _write(kind, tmp_path, "train", "dev", "test")
    assert open_data(data, "val").origin != open_data(data, "test").origin
    assert not caplog.messages


@KINDS
def test_data_without_splits_is_every_split_but_no_other_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    data = _write(kind, tmp_path)
    for split in ("train", "val", "test", "Validation"):
        assert len(open_data(data, split)) == 3
    assert not caplog.messages
    rule = "the split of data without splits must be one of train, val, test, got 'tset'; did you"
    with pytest.raises(DataError, match=rf"{rule} mean 'test'\?"):
        open_data(data, "tset")
