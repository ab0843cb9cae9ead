"""Write photographs to label, and check their labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import splitattn

# A valid file name whose characters have a special meaning in URLs, globs and shells.
ODD = "trip/3#a?b%20 c.jpg"


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((80, 60))


def write_photographs(folder: Path) -> None:
    """Write ten pictures and one file that is not a picture, into a folder and a subfolder."""
    (folder / "trip").mkdir()
    for number in range(10):
        where = folder / "trip" if number % 2 else folder
        picture(number).save(where / f"{number}.jpg")
    (folder / "trip" / "3.jpg").rename(folder / ODD)
    (folder / "broken.jpg").write_bytes(b"no picture")


def rows_at(target: Path) -> list[dict[str, Any]]:
    return [
        row for part in sorted(target.glob("part-*")) for row in pq.read_table(part).to_pylist()
    ]


def assert_labeled_as_by_predict(rows: list[dict[str, Any]], folder: str, photos: Path) -> None:
    """Check that each image has one row, with the labels that `predict` gives."""
    names = [row["path"].removeprefix(f"{folder}/") for row in rows]
    assert sorted(names) == sorted(str(p.relative_to(photos)) for p in photos.rglob("*.jpg"))
    good = [(name, row) for name, row in zip(names, rows, strict=True) if row["error"] is None]
    assert len(good) == 10
    predicted = splitattn.Classifier().predict([photos / name for name, _ in good])
    for (_, row), labels in zip(good, predicted, strict=True):
        assert row["labels"] == [label.label for label in labels]
        assert row["indices"] == [label.index for label in labels]
        expected = [label.probability for label in labels]
        assert row["probabilities"] == pytest.approx(expected, rel=1e-5)
    (bad,) = (row for row in rows if row["error"] is not None)
    assert bad["labels"] is None
    assert bad["error"].startswith(f"{bad['path']}: ")
