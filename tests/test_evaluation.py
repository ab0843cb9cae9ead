"""Evaluation is exact: every image counts once, whatever the batch size."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from splitattn.data.sources import LabelledImages, open_data
from splitattn.errors import DataError
from splitattn.evaluation import Evaluation, evaluate, with_classes_of_model
from splitattn.images.decode import decode
from splitattn.images.preprocess import normalise, preprocess
from splitattn.weights.catalogue import Preprocessing
from tests.data.datasets import CLASSES, write_class_folders

PREPROCESSING = Preprocessing(size=32, crop_fraction=1.0)
CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> LabelledImages:
    return open_data(str(write_class_folders(tmp_path / "data", 7)), "val")


@pytest.fixture
def model() -> nn.Module:
    """Sees little, so that it is right sometimes; batch norm and dropout tell the modes apart."""
    return nn.Sequential(
        nn.AvgPool2d(32),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(3, 8),
    )


@pytest.fixture
def wide(data: LabelledImages) -> LabelledImages:
    """The data set among eight classes, of which three have images."""
    classes = ("black", "blue", "brown", "green", "grey", "pink", "red", "white")
    return with_classes_of_model(data, classes, num_classes=8)


def run(model: nn.Module, data: LabelledImages, batch_size: int) -> Evaluation:
    return evaluate(model, data, PREPROCESSING, device=CPU, batch_size=batch_size, workers=0)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 21, 64])
def test_the_figures_are_those_of_one_plain_pass(
    model: nn.Module, wide: LabelledImages, batch_size: int
) -> None:
    measured = run(model, wide, batch_size)
    images = torch.stack([preprocess(decode(image), PREPROCESSING) for image in wide.images])
    labels = torch.tensor(wide.labels)
    with torch.no_grad():
        logits = model.eval()(normalise(images, PREPROCESSING))
    order = logits.argsort(1, descending=True)
    assert measured.n == 21
    assert measured.top1 == pytest.approx(100 * (order[:, 0] == labels).float().mean().item())
    in_five = (order[:, :5] == labels[:, None]).any(1)
    assert 0 < in_five.sum() < 21
    assert measured.top5 == pytest.approx(100 * in_five.float().mean().item())
    assert measured.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    for label in range(8):
        for guess in range(8):
            count = ((labels == label) & (order[:, 0] == guess)).sum()
            assert measured.confusion[label, guess] == count


def test_the_batch_size_changes_nothing(model: nn.Module, wide: LabelledImages) -> None:
    one, all_at_once = run(model, wide, 1), run(model, wide, 64)
    assert torch.equal(one.confusion, all_at_once.confusion)
    assert torch.equal(one.top5_by_class, all_at_once.top5_by_class)
    assert one.loss == pytest.approx(all_at_once.loss, rel=1e-6)


def test_classes_add_up_to_the_whole(model: nn.Module, wide: LabelledImages) -> None:
    measured = run(model, wide, 4)
    rows = measured.by_class()
    assert [name for name, *_ in rows] == ["blue", "green", "red"]
    assert sum(n for _, n, _, _ in rows) == measured.n
    assert sum(n * top1 for _, n, top1, _ in rows) / measured.n == pytest.approx(measured.top1)
    assert sum(n * top5 for _, n, _, top5 in rows) / measured.n == pytest.approx(measured.top5)
    wrong = measured.confusions()
    assert sum(n for *_, n in wrong) == measured.n - measured.confusion.trace()
    assert [n for *_, n in wrong] == sorted((n for *_, n in wrong), reverse=True)


def test_the_mode_of_the_model_is_restored(model: nn.Module, wide: LabelledImages) -> None:
    model.train()
    run(model, wide, 8)
    assert model.training
    assert torch.equal(model[1].running_mean, torch.zeros(3))


def test_unreadable_images_are_named_and_the_rest_is_measured(
    model: nn.Module, wide: LabelledImages
) -> None:
    whole = run(model, wide, 4)
    Path(str(wide.images[0])).write_bytes(b"nothing")
    measured = run(model, wide, 4)
    assert measured.n == whole.n - 1
    assert len(measured.problems) == 1
    for image in wide.images:
        Path(str(image)).write_bytes(b"nothing")
    with pytest.raises(DataError, match="readable images, got none"):
        run(model, wide, 4)


def test_classes_are_matched_by_name_or_else_by_order(data: LabelledImages) -> None:
    shuffled = with_classes_of_model(data, ("red", "blue", "grey", "green"), num_classes=4)
    assert [shuffled.classes[label] for label in shuffled.labels] == [
        CLASSES[label] for label in data.labels
    ]
    renamed = with_classes_of_model(data, ("a", "b", "c"), num_classes=3)
    assert renamed.classes == ("a", "b", "c")
    assert renamed.labels == data.labels
    assert with_classes_of_model(data, None, num_classes=3) == data
    with pytest.raises(DataError, match="the model's 4 classes, got 3, such as 'blue'"):
        with_classes_of_model(data, ("a", "b", "c", "d"), num_classes=4)


def test_one_strange_name_among_known_ones_is_refused(data: LabelledImages) -> None:
    """By order, `green` would silently become `blue`."""
    with pytest.raises(DataError, match="such as 'red'"):
        with_classes_of_model(data, ("green", "blue", "pink"), num_classes=3)
