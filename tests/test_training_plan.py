"""Warnings while a training is planned."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitattn.training_plan import plan_training
from tests.dense.datasets import CLASSES, write_masked_splits, write_splits


def test_classes_without_objects_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_splits(tmp_path / "data")
    plan_training(data, tmp_path / "run")
    assert not caplog.records
    for split in ("train", "val"):
        path = data / f"{split}.json"
        content = json.loads(path.read_text())
        content["categories"].append({"id": 99, "name": "unicorn"})
        path.write_text(json.dumps(content))
    plan_training(data, tmp_path / "run")
    (line,) = (record.message for record in caplog.records)
    assert line == f"no objects in {data / 'train.json'} are of 'unicorn': they will not be found"


def test_classes_without_pixels_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A mask may mark the objects by 255, which is no class."""
    data = write_masked_splits(tmp_path / "data")
    plan_training(data, tmp_path / "run")
    assert not caplog.records
    last = len(CLASSES)
    for path in (data / "train" / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == last, 255, mask).astype(np.uint8)).save(path)
    plan_training(data, tmp_path / "run")
    (line,) = (record.message for record in caplog.records)
    assert line.endswith(f"are of {CLASSES[-1]!r}: they will not be found")
