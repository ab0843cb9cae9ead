"""Labels of two networks, compared over every image."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from splitattn.agreement import Agreement, compare
from splitattn.data.calibration import comparison_images
from splitattn.engines.engine import Engine
from splitattn.errors import DataError
from splitattn.preprocessing import Preprocessing
from tests.data.datasets import CLASSES, write_image_folder

PREPROCESSING = Preprocessing(size=40, crop_fraction=0.9)


class Oracle(Engine):
    """An engine that answers with the given classes, one for each image."""

    def __init__(self, answers: list[int]) -> None:
        super().__init__("oracle")
        self.left = list(answers)

    def _infer(self, images_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        own, self.left = self.left[: len(images_BCHW)], self.left[len(images_BCHW) :]
        return np.eye(3, dtype=np.float32)[own]


def test_labels_and_agreement_are_counted_over_every_image(tmp_path: Path) -> None:
    data = write_image_folder(tmp_path, train=1, val=2)
    (tmp_path / "val" / "red" / "0.png").write_bytes(b"broken")
    images, labeled = comparison_images(str(data), CLASSES)
    seen: list[tuple[int, int]] = []
    measured = compare(
        Oracle([0, 0, 1, 0, 2]),
        Oracle([0, 1, 1, 0, 0]),
        images,
        PREPROCESSING,
        labeled=labeled,
        batch_size=4,
        on_images=lambda more, total: seen.append((more, total)),
    )
    assert measured == Agreement(n=5, same_labels=60, top1=40, reference_top1=80)
    assert seen == [(4, 6), (2, 6)]
    assert str(measured) == "top-1 80.00 % -> 40.00 % (-40.00), 60.00 % of 5 images labeled alike"


def test_labels_of_other_classes_do_not_count(tmp_path: Path) -> None:
    data = str(write_image_folder(tmp_path, train=1, val=1))
    images, labeled = comparison_images(data, ("tabby", "mug"))
    measured = compare(Oracle([0, 1, 2]), Oracle([0, 1, 1]), images, PREPROCESSING, labeled=labeled)
    assert (measured.top1, measured.reference_top1) == (None, None)
    assert str(measured) == "66.67 % of 3 images labeled alike"


class Rows(Engine):
    """An engine that returns the given logits."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__("rows")
        self.rows = np.array(rows, np.float32)

    def _infer(self, _: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.rows


def test_several_labels_are_alike_if_all_of_them_are(tmp_path: Path) -> None:
    images, _ = comparison_images(str(write_image_folder(tmp_path, train=1, val=1)), CLASSES)
    measured = compare(
        Rows([[3, 1, -1], [3, 1, -1], [3, 1, -1]]),
        Rows([[1, 3, -2], [3, -1, -1], [3, 1, 1]]),  # only the first has the same labels above 0.5
        images,
        PREPROCESSING,
        labeled=False,
        activation="sigmoid",
    )
    assert measured.same_labels == pytest.approx(100 / 3)


class Broken(Engine):
    """An engine whose logits are all `value`."""

    def __init__(self, value: float) -> None:
        super().__init__("broken")
        self.value = value

    def _infer(self, images_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.full((len(images_BCHW), 3), self.value, np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_agree_with_nothing(tmp_path: Path, value: float) -> None:
    data = str(write_image_folder(tmp_path, train=1, val=1))
    images, labeled = comparison_images(data, CLASSES)
    measured = compare(Broken(value), Broken(value), images, PREPROCESSING, labeled=labeled)
    assert measured == Agreement(n=3, same_labels=0, top1=0, reference_top1=0)


def test_a_comparison_needs_a_readable_image(tmp_path: Path) -> None:
    images, labeled = comparison_images(str(write_image_folder(tmp_path, train=1, val=1)), CLASSES)
    for name in images.names:
        Path(name).write_bytes(b"broken")
    with pytest.raises(DataError, match="a comparison needs readable images, got none"):
        compare(Oracle([]), Oracle([]), images, PREPROCESSING, labeled=labeled)


def test_with_equal_accuracies_the_loss_is_zero() -> None:
    measured = Agreement(n=2, same_labels=100.0, top1=20.0, reference_top1=20.0)
    assert str(measured) == ("top-1 20.00 % -> 20.00 % (+0.00), 100.00 % of 2 images labeled alike")
