"""Labels of a data set become indices of a model's outputs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from splitattn.data.folds import Fold, split_off
from splitattn.data.labeled import (
    LabeledImages,
    check_classes_have_images,
    warn_of_shared_images,
    with_classes_of_model,
)
from splitattn.data.sources import open_data
from splitattn.errors import DataError
from tests.data.datasets import CLASSES, write_class_folders


@pytest.fixture
def data(tmp_path: Path) -> LabeledImages:
    return open_data(str(write_class_folders(tmp_path / "data", 2)), "val")


def test_classes_are_matched_by_name_or_else_by_order(data: LabeledImages) -> None:
    shuffled = with_classes_of_model(data, ("red", "blue", "gray", "green"))
    assert [shuffled.classes[label] for label in shuffled.labels] == [
        CLASSES[label] for label in data.labels
    ]
    renamed = with_classes_of_model(data, ("a", "b", "c"))
    assert renamed.classes == ("a", "b", "c")
    assert renamed.labels == data.labels
    assert with_classes_of_model(data, ("0", "1", "2")) == data, (
        "outputs named by numbers are matched by order"
    )
    with pytest.raises(DataError, match="the model's 4 classes, got 3, such as 'blue'"):
        with_classes_of_model(data, ("a", "b", "c", "d"))


def test_classes_with_numbers_before_their_names_are_matched_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_class_folders(tmp_path / "data", 1)
    for number, name in enumerate(reversed(CLASSES)):
        (root / name).rename(root / f"{number}_{name}")
    found = with_classes_of_model(open_data(str(root), "val"), CLASSES)
    assert [found.classes[label] for label in found.labels] == ["red", "green", "blue"]
    assert not caplog.records


def test_one_unknown_class_among_known_ones_is_refused(data: LabeledImages) -> None:
    """Matched by order, `blue` would silently become `green`."""
    with pytest.raises(DataError, match="such as 'red'"):
        with_classes_of_model(data, ("green", "blue", "pink"))


def test_a_class_without_a_usable_image_is_named(
    data: LabeledImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = sorted((tmp_path / "data" / "red").iterdir())
    first.write_text("not an image")
    check_classes_have_images(data)
    assert not caplog.records
    second.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    with pytest.raises(
        DataError, match=r"can be read, got none of 2 for 'red'; the first: .*0.png"
    ):
        check_classes_have_images(data)
    wider = replace(data, classes=(*CLASSES, "white"), labels=[0, 1, 0, 1, 0, 1][: len(data)])
    check_classes_have_images(wider)
    assert "2 classes have no training image: 'red', 'white'" in caplog.text


def test_a_class_whose_images_are_all_for_validation_gets_its_own_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_class_folders(tmp_path, 2)
    (root / "red/1.png").unlink()
    whole = open_data(str(root), "train")
    parts = [split_off(whole, Fold(number=number, of=5), seed=0) for number in range(1, 6)]
    (train,) = [train for train, val in parts if whole.classes.index("red") in val.labels]
    check_classes_have_images(train)
    assert "1 class has no training image outside of the part for validation: 'red'" in caplog.text


@pytest.mark.parametrize(
    ("one", "other"), [("Red", "red"), ("hot dog", "hot_dog"), ("a", "a "), ("1", "01")]
)
def test_classes_with_nearly_the_same_name_are_warned_of(
    one: str, other: str, data: LabeledImages, caplog: pytest.LogCaptureFixture
) -> None:
    check_classes_have_images(replace(data, classes=("blue", one, "reddish")))
    assert not caplog.records
    check_classes_have_images(replace(data, classes=("blue", one, other)))
    (record,) = caplog.records
    assert f"differ only in case, spaces, _, - or leading zeros: {one!r} and {other!r}; if" in (
        record.message
    )


def test_images_in_both_splits_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = open_data(str(write_class_folders(tmp_path / "train", 2)), "train")
    val = open_data(str(write_class_folders(tmp_path / "val", 2)), "val")
    warn_of_shared_images(train, val)
    assert not caplog.records, "equal file names in different folders are different images"
    (tmp_path / "link").symlink_to("train")
    linked = open_data(str(tmp_path / "link"), "val")
    warn_of_shared_images(train, linked)
    assert "6 of 6 validation images are also training images, such as" in caplog.text
    caplog.clear()
    names = [*val.names[:5], train.names[3]]
    warn_of_shared_images(train, replace(val, images=names, names=names))
    assert f"1 of 6 validation images are also training images, such as {names[5]}: " in caplog.text


def test_the_check_of_classes_reads_images_as_training_does(tmp_path: Path) -> None:
    """A NumPy file of floats needs `white_level`, the value that is white."""
    path = tmp_path / "0.npy"
    np.save(path, np.full((4, 4), 1000, np.float32))
    data = LabeledImages(
        origin="", classes=("a",), images=[str(path)], labels=[0], names=[str(path)]
    )
    with pytest.raises(DataError, match="set white_level"):
        check_classes_have_images(data)
    check_classes_have_images(data, white_level=1000)
