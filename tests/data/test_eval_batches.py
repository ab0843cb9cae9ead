"""Evaluation batches hold every image once, in order, for any number of processes."""

from pathlib import Path

import numpy as np
import pytest

from splitattn.data.eval_batches import eval_batches
from splitattn.data.labeled import LabeledImages
from splitattn.data.sources import open_data
from splitattn.errors import ImageError
from splitattn.images.decode import decode
from splitattn.images.preprocess import preprocess
from splitattn.preprocessing import Preprocessing
from tests.data.datasets import write_class_folders

PREPROCESSING = Preprocessing(size=32, crop_fraction=1.0)


@pytest.fixture
def data(tmp_path: Path) -> LabeledImages:
    return open_data(str(write_class_folders(tmp_path / "data", 7)), "val")


def spoil(data: LabeledImages, *indices: int) -> list[str]:
    paths = [Path(str(data.images[index])) for index in indices]
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])
    return [str(path) for path in paths]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("workers", [1, None])
def test_every_image_is_there_once_and_in_order(
    data: LabeledImages, batch_size: int, workers: int | None
) -> None:
    batches = list(eval_batches(data, PREPROCESSING, batch_size=batch_size, workers=workers))
    pixels = np.concatenate([batch.images for batch in batches])
    expected = [preprocess(decode(image), PREPROCESSING) for image in data.images]
    np.testing.assert_array_equal(pixels, expected)
    assert np.concatenate([batch.labels for batch in batches]).tolist() == list(data.labels)
    assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(len(data)))
    assert {(b.images.dtype, b.labels.dtype, b.indices.dtype) for b in batches} == {
        (np.dtype(np.uint8), np.dtype(np.int64), np.dtype(np.int64))
    }


@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_several_processes_share_the_batches_of_a_single_one(
    data: LabeledImages, world_size: int
) -> None:
    alone = [b.indices.tolist() for b in eval_batches(data, PREPROCESSING, batch_size=4)]
    shares = [
        list(eval_batches(data, PREPROCESSING, batch_size=4, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert [len(share) for share in shares] == sorted(map(len, shares), reverse=True)
    together = sorted(batch.indices.tolist() for share in shares for batch in share)
    assert together == alone


def test_an_unreadable_image_is_named_and_left_out(data: LabeledImages) -> None:
    [broken] = spoil(data, 2)
    batches = list(eval_batches(data, PREPROCESSING, batch_size=3))
    assert [len(batch.images) for batch in batches] == [2, 3, 3, 3, 3, 3, 3]
    assert batches[0].indices.tolist() == [0, 1]
    assert batches[1].labels.tolist() == list(data.labels[3:6])
    [problem] = batches[0].problems
    assert problem.startswith(f"{broken}: the image is damaged")


def test_an_image_that_its_data_set_cannot_read_is_left_out_too(data: LabeledImages) -> None:
    class Failing(list[object]):
        def __getitem__(self, index: object) -> object:
            if index == 1:
                raise ImageError("image 1 cannot be read")
            return super().__getitem__(index)  # type: ignore[index]

    failing = LabeledImages(
        origin=data.origin,
        classes=data.classes,
        images=Failing(data.images),
        labels=data.labels,
        names=data.names,
    )
    first, *_ = eval_batches(failing, PREPROCESSING, batch_size=3)
    assert first.problems == ("image 1 cannot be read",)
    assert first.indices.tolist() == [0, 2]


def test_a_batch_of_nothing_but_unreadable_images_is_empty(data: LabeledImages) -> None:
    spoil(data, 0, 1, 2)
    first, *_ = eval_batches(data, PREPROCESSING, batch_size=3)
    assert first.images.shape == (0, 3, 32, 32)
    assert len(first.labels) == len(first.indices) == 0
    assert len(first.problems) == 3
