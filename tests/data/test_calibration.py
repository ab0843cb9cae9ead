"""Images for calibrating and comparing, without any engine."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from splitattn.data.calibration import (
    calibration_images,
    comparison_images,
    package_photographs,
    sampled,
)
from splitattn.data.sources import open_data
from splitattn.errors import DataError
from splitattn.images.samples import sample_photographs
from splitattn.preprocessing import Preprocessing, with_channels
from tests.data.datasets import CLASSES, write_image_folder

SAMPLES = sample_photographs()[0].parent
PREPROCESSING = Preprocessing(size=40, crop_fraction=0.9)


def test_labels_of_the_networks_classes_count(tmp_path: Path) -> None:
    data = str(write_image_folder(tmp_path, train=1, val=1))
    assert comparison_images(data, CLASSES)[1]
    assert not comparison_images(data, ("tabby", "mug"))[1]


def test_any_folder_of_images_calibrates(tmp_path: Path) -> None:
    calibration = calibration_images(str(SAMPLES))
    images, labeled = comparison_images(str(SAMPLES), CLASSES)
    assert (len(calibration), len(images), labeled) == (3, 2, False)
    (tmp_path / "notes.txt").touch()
    for data in (tmp_path, tmp_path / "missing", SAMPLES / "rocket.jpg"):
        with pytest.raises(DataError) as raised:
            calibration_images(str(data))
        assert str(raised.value).isprintable()
    with pytest.raises(DataError, match=r"calibration needs images, got none in .*; name a data"):
        calibration_images(str(tmp_path))


def test_a_single_image_calibrates_and_compares_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(SAMPLES / "rocket.jpg", tmp_path)
    assert len(comparison_images(str(tmp_path), CLASSES)[0]) == 1
    assert "compared on the image that int8 was calibrated on" in caplog.text
    caplog.clear()
    shutil.copy(SAMPLES / "rocket.jpg", tmp_path / "again.jpg")
    comparison_images(str(tmp_path), CLASSES)
    assert "calibrated on" not in caplog.text


@pytest.mark.parametrize("count", [49, 50])
def test_few_compared_images_get_a_warning(
    count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2 * count):  # half of them are compared
        (tmp_path / f"{number}.jpg").touch()
    assert len(comparison_images(str(tmp_path), CLASSES)[0]) == count
    assert ("at least 50 images, got 49 in" in caplog.text) == (count < 50)


def test_without_splits_other_images_calibrate_than_compare(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, train=4, val=1)
    names = [sorted(calibration_images(str(root / "train")).names)]
    images, labeled = comparison_images(str(root / "train"), CLASSES)
    names.append(sorted(images.names))
    assert labeled
    assert sorted(images.labels) == [0, 0, 1, 1, 2, 2]
    assert sorted(names[0] + names[1]) == sorted(open_data(str(root), "train").names)
    shutil.rmtree(root / "val")  # without a validation split the result is the same
    assert sorted(comparison_images(str(root), CLASSES)[0].names) == names[1]


def test_training_images_calibrate_and_validation_images_compare(tmp_path: Path) -> None:
    data = str(write_image_folder(tmp_path, train=2, val=1))
    assert len(calibration_images(data)) == 6
    assert len(comparison_images(data, CLASSES)[0]) == 3


def test_the_sample_is_always_the_same_and_passes_over_broken_images(tmp_path: Path) -> None:
    data = calibration_images(str(write_image_folder(tmp_path, train=3, val=1)))
    first, second = (sampled(data, PREPROCESSING, 4) for _ in range(2))
    assert len(first) == 4
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert len({int(one.sum()) for one in first}) == 4, "images must not be drawn twice"
    for name in data.names[1:]:
        Path(name).write_bytes(b"broken")
    assert len(sampled(data, PREPROCESSING, 4)) == 1
    Path(data.names[0]).unlink()
    with pytest.raises(DataError, match="calibration needs readable images, got none; the first: "):
        sampled(data, PREPROCESSING, 4)


def test_the_packages_own_photographs_can_be_sampled() -> None:
    for channels in (1, 3, 4):
        pixels = sampled(package_photographs(channels), with_channels(PREPROCESSING, channels), 10)
        size = PREPROCESSING.size
        assert [image.shape for image in pixels] == [(channels, size, size)] * 5
