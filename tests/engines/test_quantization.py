"""Calibration and comparison, without any engine: those are in test_export."""

from pathlib import Path

import pytest
import torch

from splitattn.engines.quantization import (
    Agreement,
    Node,
    calibration_images,
    compare,
    comparison_images,
    find_parts,
    sampled,
)
from splitattn.errors import DataError
from splitattn.images.samples import sample_photographs
from tests.data.datasets import CLASSES, write_image_folder
from tests.engines.networks import METADATA, PREPROCESSING

SAMPLES = sample_photographs()[0].parent


class Oracle:
    """Gives each image the class that its number in the data set, counted from 0, stands for."""

    name = "oracle"

    def __init__(self, answers: list[int]) -> None:
        self.left = list(answers)

    def warm_up(self, batch_size: int) -> None: ...

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        own, self.left = self.left[: len(batch)], self.left[len(batch) :]
        return torch.eye(3)[own]


def test_labels_and_agreement_are_counted_over_every_image(tmp_path: Path) -> None:
    data = write_image_folder(tmp_path, train=1, val=2)
    (tmp_path / "val" / "red" / "0.png").write_bytes(b"broken")
    metadata = METADATA.__class__(model="x", classes=CLASSES, preprocessing=PREPROCESSING)
    images, labelled = comparison_images(str(data), metadata)
    assert labelled
    seen: list[int] = []
    measured = compare(
        Oracle([0, 0, 1, 0, 2]),
        Oracle([0, 1, 1, 0, 0]),
        images,
        PREPROCESSING,
        labelled=labelled,
        batch_size=4,
        on_images=seen.append,
    )
    assert measured == Agreement(n=5, same_labels=60, top1=40, reference_top1=80)
    assert seen == [4, 2]
    assert str(measured) == "top-1 80.00 % -> 40.00 % (-40.00), 60.00 % of 5 images labelled alike"


def test_labels_of_other_classes_do_not_count(tmp_path: Path) -> None:
    data = str(write_image_folder(tmp_path, train=1, val=1))
    images, labelled = comparison_images(data, METADATA)
    assert not labelled
    measured = compare(
        Oracle([0, 1, 2]), Oracle([0, 1, 1]), images, PREPROCESSING, labelled=labelled
    )
    assert (measured.top1, measured.reference_top1) == (None, None)
    assert str(measured) == "66.67 % of 3 images labelled alike"


def test_any_folder_of_images_calibrates(tmp_path: Path) -> None:
    assert len(calibration_images(str(SAMPLES))) == 5
    images, labelled = comparison_images(str(SAMPLES), METADATA)
    assert (len(images), labelled) == (5, False)
    (tmp_path / "notes.txt").touch()
    for data in (tmp_path, tmp_path / "missing", SAMPLES / "rocket.jpg"):
        with pytest.raises(DataError) as raised:
            calibration_images(str(data))
        assert str(raised.value).isprintable()


def test_training_images_calibrate_and_validation_images_compare(tmp_path: Path) -> None:
    data = str(write_image_folder(tmp_path, train=2, val=1))
    assert len(calibration_images(data)) == 6
    assert len(comparison_images(data, METADATA)[0]) == 3


def test_the_sample_is_always_the_same_and_passes_over_broken_images(tmp_path: Path) -> None:
    data = calibration_images(str(write_image_folder(tmp_path, train=3, val=1)))
    first, second = (sampled(data, PREPROCESSING, 4) for _ in range(2))
    assert len(first) == 4
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))
    assert len({one.sum().item() for one in first}) == 4, "images must not be drawn twice"
    for name in data.names[1:]:
        Path(name).write_bytes(b"broken")
    assert len(sampled(data, PREPROCESSING, 4)) == 1
    Path(data.names[0]).unlink()
    with pytest.raises(DataError, match="calibration needs readable images, got none; the first: "):
        sampled(data, PREPROCESSING, 4)


def test_parts_are_found_by_what_depends_on_what() -> None:
    """A stem, one block of radix 2, and a classifier behind a Reshape that looks at the input."""
    graph = [
        ("images", "Parameter", ()),
        ("size", "Shape", ("images",)),
        ("stem", "Conv", ("images",)),
        ("a", "Conv", ("stem",)),
        ("b", "Conv", ("stem",)),
        ("mean a", "ReduceMean", ("a",)),
        ("mean b", "ReduceMean", ("b",)),
        ("sum", "Add", ("mean a", "mean b")),
        ("fc1", "Conv", ("sum",)),
        ("gate", "Sigmoid", ("fc1",)),
        ("difference", "Sub", ("a", "b")),
        ("weighted", "Mul", ("gate", "difference")),
        ("blended", "Add", ("weighted", "b")),
        ("conv3", "Conv", ("blended",)),
        ("residual", "Add", ("conv3", "stem")),
        ("pooled", "ReduceMean", ("residual",)),
        ("flat", "Reshape", ("pooled", "size")),
        ("fc", "Gemm", ("flat",)),
    ]
    nodes = [Node(name=name, kind=kind, inputs=inputs) for name, kind, inputs in graph]
    assert find_parts(nodes) == {
        "pools": {"mean a", "mean b"},
        "attention": {"sum", "fc1", "gate"},
        "blend": {"difference", "weighted", "blended"},
        "first": {"stem"},
        "last": {"fc"},
    }
