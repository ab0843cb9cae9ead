"""Batches: every image once, the same ones whoever decodes them, errors beside them."""

import pickle
from pathlib import Path

import pytest
import torch

from splitattn.data.loading import Batch, eval_loader, train_loader
from splitattn.data.sources import LabelledImages, open_data
from splitattn.images.decode import decode
from splitattn.images.preprocess import preprocess
from splitattn.weights.catalogue import Preprocessing
from tests.data.datasets import write_class_folders

PREPROCESSING = Preprocessing(size=32, crop_fraction=1.0)


@pytest.fixture
def data(tmp_path: Path) -> LabelledImages:
    return open_data(str(write_class_folders(tmp_path / "data", 7)), "val")


def epoch(data: LabelledImages, *, number: int = 0, workers: int = 0, seed: int = 5) -> list[Batch]:
    loader = train_loader(
        data,
        size=32,
        crop_scale=0.3,
        batch_size=4,
        workers=workers,
        seed=seed,
        epoch=number,
    )
    return list(loader)


def joined(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.images for batch in batches])


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_evaluation_sees_every_image_once_in_order(data: LabelledImages, batch_size: int) -> None:
    batches = list(eval_loader(data, PREPROCESSING, batch_size=batch_size, workers=0))
    expected = torch.stack([preprocess(decode(image), PREPROCESSING) for image in data.images])
    assert torch.equal(joined(batches), expected)
    assert torch.cat([batch.labels for batch in batches]).tolist() == list(data.labels)


def test_training_batches_are_full_bytes_and_shuffled(data: LabelledImages) -> None:
    batches = epoch(data)
    assert [batch.images.shape for batch in batches] == [(4, 3, 32, 32)] * 5
    assert all(batch.images.dtype == torch.uint8 for batch in batches)
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    assert labels != sorted(labels)


def test_the_same_epoch_is_the_same_with_any_number_of_workers(data: LabelledImages) -> None:
    assert torch.equal(joined(epoch(data)), joined(epoch(data, workers=2)))


def test_epochs_and_seeds_differ(data: LabelledImages) -> None:
    first = joined(epoch(data))
    assert not torch.equal(first, joined(epoch(data, number=1)))
    assert not torch.equal(first, joined(epoch(data, seed=6)))


def test_loading_leaves_the_random_state_as_it_was(data: LabelledImages) -> None:
    before = torch.get_rng_state()
    list(epoch(data))
    # The loader itself draws a base seed; the transforms of images must draw nothing.
    torch.set_rng_state(before)
    list(eval_loader(data, PREPROCESSING, batch_size=4, workers=0))
    after_plain = torch.get_rng_state()
    torch.set_rng_state(before)
    iter(eval_loader(data, PREPROCESSING, batch_size=4, workers=0))
    assert torch.equal(torch.get_rng_state(), after_plain)


def test_workers_may_be_spawned(data: LabelledImages) -> None:
    """As on macOS and Windows: what they get must survive pickling."""
    plain = list(eval_loader(data, PREPROCESSING, batch_size=8, workers=0))
    loader = eval_loader(data, PREPROCESSING, batch_size=8, workers=0)
    copied = pickle.loads(pickle.dumps(loader.dataset))
    assert torch.equal(copied[3].image, plain[0].images[3])
    training = train_loader(data, size=32, crop_scale=0.3, batch_size=4, workers=0, seed=5, epoch=0)
    copied = pickle.loads(pickle.dumps(training.dataset))
    assert torch.equal(copied[3].image, training.dataset[3].image)


def test_an_unreadable_image_is_named_and_left_out(data: LabelledImages) -> None:
    broken = Path(str(data.images[2]))
    broken.write_bytes(broken.read_bytes()[:60])
    batches = list(eval_loader(data, PREPROCESSING, batch_size=3, workers=0))
    assert [len(batch.labels) for batch in batches] == [2, 3, 3, 3, 3, 3, 3]
    [problem] = batches[0].problems
    assert problem.startswith(f"{broken}: the image is damaged")


def test_a_batch_of_nothing_but_unreadable_images_is_empty(tmp_path: Path) -> None:
    data = open_data(str(write_class_folders(tmp_path / "data", 1)), "val")
    for image in data.images:
        Path(str(image)).write_bytes(b"nothing")
    [batch] = eval_loader(data, PREPROCESSING, batch_size=3, workers=0)
    assert len(batch.labels) == 0
    assert len(batch.problems) == 3
