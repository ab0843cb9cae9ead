"""Folders of images, one for each class."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from splitattn.data.sources import open_data
from splitattn.data.splits import MissingSplitError
from splitattn.errors import DataError
from splitattn.images.decode import decode
from tests.data.datasets import CLASSES, picture, write_class_folders, write_image_folder


@pytest.mark.parametrize(("split", "per_class", "offset"), [("train", 4, 0), ("val", 2, 1000)])
def test_an_image_folder_has_its_splits(
    tmp_path: Path, split: str, per_class: int, offset: int
) -> None:
    data = open_data(str(write_image_folder(tmp_path, train=4, val=2)), split)
    assert data.classes == CLASSES
    assert list(data.labels) == [label for label in range(3) for _ in range(per_class)]
    for row, label in enumerate(data.labels):
        expected = picture(label, offset + row % per_class)
        np.testing.assert_array_equal(decode(data.images[row]), expected)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Train", "Val"),
        ("training", "valid"),
        ("TRAINING", "Testing"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("01_TrainSet", "02_DevSet"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
        ("train", "validation"),
        ("tRain", "vaL"),
        ("TRAINing", "vALid2"),
    ],
)
def test_splits_are_found_in_any_case_and_spelling(tmp_path: Path, train: str, val: str) -> None:
    root = write_image_folder(tmp_path, train=2, val=3)
    (root / "train").rename(root / train)
    (root / "val").rename(root / val)
    assert open_data(str(root), "train").origin == str(root / train)
    data = open_data(str(root), "val")
    assert (len(data), data.classes) == (9, CLASSES)
    assert open_data(str(root), val) == data


def test_a_test_set_is_not_the_validation_set(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, train=2, val=3)
    write_class_folders(root / "Test", 1)
    assert len(open_data(str(root), "val")) == 9
    assert len(open_data(str(root), "test")) == 3


@pytest.mark.parametrize("name", ["test", "Testing", "TestData"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_test_set_without_labels_does_not_serve_as_validation(
    tmp_path: Path, name: str, wrapped: bool
) -> None:
    root = write_image_folder(tmp_path, train=2, val=3)
    shutil.rmtree(root / "val")
    write_class_folders(root / "photos", 1)
    unlabeled = root / name / name if wrapped else root / name
    unlabeled.parent.mkdir(exist_ok=True)
    (root / "photos" / CLASSES[0]).rename(unlabeled)
    shutil.rmtree(root / "photos")
    assert len(open_data(str(root), "train")) == 6
    with pytest.raises(MissingSplitError, match=r"must have a folder val/, got train/ in"):
        open_data(str(root), "val")
    with pytest.raises(DataError, match=rf"must have one folder per class, got .*{name}"):
        open_data(str(root), "test")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("Train/a", "train/a"), "only one folder may be the split train, got Train, train"),
        (("train", "test"), "must have one folder per class, got none in .*train"),
        (("train/Train", "train/Val"), "got only Train, Val in .*, which are names of splits"),
        (("Val/a", "Val/b"), "must have a folder train/, got Val/ in"),
        (("trial/a", "val/a"), "must have a folder train/, got val/ in"),
        (("images", "labels"), "got only images, labels in .*, which are not classes; to train"),
        (
            ("JPEGImages", "ImageSets"),
            "got only ImageSets, JPEGImages in .*, which are not classes",
        ),
    ],
)
def test_splits_are_no_classes(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        picture(0, 0).save(tmp_path / name / "0.png")
    with pytest.raises(DataError, match=message):
        open_data(str(tmp_path), "train")


def test_extra_folders_of_an_archive_around_the_data_are_skipped(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "data/images/seg_train/seg_train", 2)
    write_class_folders(tmp_path / "data/images/seg_test/seg_test", 1)
    for root in ("data/images", "data"):
        found = [open_data(str(tmp_path / root), split) for split in ("train", "val")]
        assert [(len(data), data.classes) for data in found] == [(6, CLASSES), (3, CLASSES)]


def test_archives_may_wrap_the_data_several_times(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "archive/data/images/Train", 2)
    assert open_data(str(tmp_path), "train").classes == CLASSES  # there is no validation split yet
    write_class_folders(tmp_path / "archive/data/images/Valid", 1)
    assert len(open_data(str(tmp_path), "val")) == 3


def test_splits_within_classes_are_refused(tmp_path: Path) -> None:
    for name in ("cat/Train", "cat/Test", "dog/Train", "dog/Test"):
        picture(0, 0).save(_made(tmp_path / name) / "0.png")
    with pytest.raises(DataError, match=r"as in Test/cat, got cat/Test in .*; move them, or list"):
        open_data(str(tmp_path), "train")
    # A class without splits changes nothing: training must not see the images of the others' Test.
    picture(0, 0).save(_made(tmp_path / "ant") / "0.png")
    with pytest.raises(DataError, match=r"as in Test/cat, got cat/Test in .*; move them, or list"):
        open_data(str(tmp_path), "train")
    shutil.rmtree(tmp_path / "ant")
    # If only one class has such a folder, it is a folder like any other.
    shutil.rmtree(tmp_path / "dog/Test")
    assert open_data(str(tmp_path), "train").classes == ("cat", "dog")


def test_classes_that_mention_splits_stay_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bullet train/2023", "test tube/2024", "cup"):
        picture(0, 0).save(_made(tmp_path / name) / "0.png")
    classes = ("bullet train", "cup", "test tube")
    assert open_data(str(tmp_path), "train").classes == classes
    assert not caplog.records


def test_folders_that_look_like_splits_of_another_name_are_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("apprentissage", "mesure"):
        write_class_folders(tmp_path / name, 1)
    assert open_data(str(tmp_path), "train").classes == ("apprentissage", "mesure")
    assert "each has the folders blue, green, red; if those are the classes" in caplog.text


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path, 1)
    (root / "red").rename(root / "Training")
    assert open_data(str(root), "train").classes == ("Training", "blue", "green")


def test_folders_that_are_numbers_are_classes_by_value(tmp_path: Path) -> None:
    for number in range(1, 13):
        folder = tmp_path / str(number)
        folder.mkdir()
        picture(0, number).save(folder / "0.png")
    data = open_data(str(tmp_path), "val")
    assert data.classes == tuple(map(str, range(1, 13)))
    names = tmp_path / "names.txt"
    names.write_text("".join(f"name{number}\n" for number in range(1, 13)))
    named = open_data(str(tmp_path), "val", names)
    found = {
        Path(n).parent.name: named.classes[label]
        for n, label in zip(named.names, named.labels, strict=True)
    }
    assert found == {str(number): f"name{number}" for number in range(1, 13)}


def test_class_folders_without_splits_serve_as_train_and_val(tmp_path: Path) -> None:
    write_class_folders(tmp_path, 2)
    assert open_data(str(tmp_path), "val") == open_data(str(tmp_path), "train")


def test_files_that_are_no_images_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_class_folders(tmp_path, 1)
    (tmp_path / "red" / "notes.txt").write_text("not an image")
    assert len(open_data(str(tmp_path), "val")) == 3
    assert not caplog.records
    (tmp_path / "red" / "drawing.svg").write_text("<svg/>")
    assert len(open_data(str(tmp_path), "val")) == 3
    assert "1 file is skipped, not an image by name: .svg (1)" in caplog.text


def test_litter_is_no_class_and_no_image(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, train=1, val=1)
    litter = (".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "@Recently-Snapshot")
    for name in (*litter, "@tmp", "~snapshot", "Temporary Items"):
        picture(0, 0).save(_made(root / "train" / name) / "0.png")
        picture(0, 0).save(_made(root / "train" / "red" / name) / "0.png")
        _made(root / name)
    picture(0, 0).save(root / "train" / "red" / "._0.png")
    data = open_data(str(root), "train")
    assert (data.classes, len(data)) == (CLASSES, 3)


def _made(folder: Path, *, exist_ok: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=exist_ok)
    return folder


def test_class_folders_may_be_links(tmp_path: Path) -> None:
    real = write_class_folders(tmp_path / "real", 1)
    (real / "red" / "loop").symlink_to(real / "red")
    (real / "red" / "up").symlink_to(real)  # leads to the other classes too
    (tmp_path / "data").mkdir()
    for name in CLASSES:
        (tmp_path / "data" / name).symlink_to(real / name)
    data = open_data(str(tmp_path / "data"), "val")
    assert (data.classes, list(data.labels)) == (CLASSES, [0, 1, 2])


def test_a_class_folder_that_is_a_link_to_another_is_refused(tmp_path: Path) -> None:
    """Its images would be labeled with both classes."""
    root = write_image_folder(tmp_path, train=1, val=1)
    (root / "val" / "crimson").symlink_to("red")
    with pytest.raises(DataError, match=r"got crimson and red in .*/val, which are one folder; re"):
        open_data(str(root), "val")
    assert open_data(str(root), "train").classes == CLASSES


def test_class_folders_that_differ_only_in_how_accents_are_composed_are_refused(
    tmp_path: Path,
) -> None:
    """Only some file systems can hold both. Their images would silently be one class."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    root = write_image_folder(tmp_path, train=1, val=1)
    (root / "val" / "red").rename(root / "val" / composed)
    assert open_data(str(root), "val").classes == ("blue", composed, "green")
    shutil.copytree(root / "val" / composed, root / "val" / apart)
    if len(list((root / "val").iterdir())) == 3:
        pytest.skip("the file system takes both names for one")
    with pytest.raises(
        DataError, match=r"got 'cafe\\u0301' and 'caf\\xe9' in .*/val, .*; move the"
    ):
        open_data(str(root), "val")


def test_class_folders_that_are_links_to_nothing_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_image_folder(tmp_path, train=1, val=1)
    for name in ("yellow", ".hidden", "lost.png"):
        (root / "train" / name).symlink_to("nowhere")
    assert open_data(str(root), "val").classes == CLASSES
    assert not caplog.records
    assert open_data(str(root), "train").classes == CLASSES
    (record,) = caplog.records
    assert record.message.startswith(f"{root}/train: 1 link leads to nothing, so there is no such")
    assert "class: yellow; mend" in record.message
    for number in range(6):
        (root / "train" / f"{number}").symlink_to("nowhere")
    open_data(str(root), "train")
    assert "7 links lead to nothing, so there is no such class: 0, 1, 2, 3, 4 and 2 more;" in (
        caplog.text
    )


def test_images_beside_the_class_folders_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_image_folder(tmp_path, train=1, val=1)
    (root / "overview.png").write_bytes(b"")
    (root / "train" / "README.txt").write_text("")
    (root / "train" / ".hidden.png").write_bytes(b"")
    assert len(open_data(str(root), "train")) == 3
    assert not caplog.records
    picture(0, 0).save(root / "train" / "0.png")
    for _ in range(2):
        assert len(open_data(str(root), "train")) == 3
        assert len(open_data(str(root), "val")) == 3
    (record,) = caplog.records
    assert record.message == (
        f"{root}/train: 1 image lies beside the class folders, with no class: 0.png; move images "
        "into the folders of their classes"
    )
    for number in range(1, 7):
        picture(0, 0).save(root / "train" / f"{number}.png")
    open_data(str(root), "train")
    assert (
        "7 images lie beside the class folders, with no class: 0.png, 1.png, 2.png, 3.png, 4.png "
        "and 2 more; move images into the folders of their classes" in caplog.text
    )


def test_class_folders_beside_the_splits_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_image_folder(tmp_path, train=1, val=1)
    for name in ("test", "images", "docs/images"):  # no labels, no class, no images
        picture(0, 0).save(_made(root / name) / "0.png")
    assert len(open_data(str(root), "train")) == 3
    assert not caplog.records
    picture(0, 0).save(_made(root / "tulip") / "0.png")
    for split in ("train", "val", "train"):
        assert len(open_data(str(root), split)) == 3
    (record,) = caplog.records
    assert record.message == (
        f"{root}: 1 folder with images is beside the splits and in none of them: tulip/; if a "
        "class is meant, move it there"
    )


def test_folders_of_classes_beside_the_splits_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_image_folder(tmp_path, train=1, val=1)
    # Litter, a link to a split, a link around everything, and images too deep to be a class's.
    for name in (".cache/rose", "@eaDir/rose", "notes/a/b"):
        picture(0, 0).save(_made(root / name) / "0.png")
    (root / "latest").symlink_to("train")
    (root / "here").symlink_to(".")
    assert len(open_data(str(root), "train")) == 3
    assert not caplog.records
    for name in ("extra/rose", "holdout/tulip", "lily"):
        picture(0, 0).save(_made(root / name) / "0.png")
    for split in ("train", "val"):
        assert len(open_data(str(root), split)) == 3
    (record,) = caplog.records
    assert "3 folders with images are beside the splits" in record.message
    assert "in none of them: extra/, holdout/, lily/; if a class is meant" in record.message
