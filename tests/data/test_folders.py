"""Folders of images, one for each class."""

from pathlib import Path

import numpy as np
import pytest

from splitattn.data.open import open_data
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
