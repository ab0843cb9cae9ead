"""Evaluation is exact: every image counts once, whatever the batch size."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from splitattn.data.labeled import LabeledImages, with_classes_of_model
from splitattn.data.normalization import normalize
from splitattn.data.sources import open_data
from splitattn.engines.pytorch import TorchEngine
from splitattn.errors import DataError
from splitattn.evaluation import Answer, Evaluation, measure
from splitattn.images.decode import decode
from splitattn.images.preprocess import preprocess
from splitattn.preprocessing import Preprocessing
from tests.data.datasets import write_class_folders

PREPROCESSING = Preprocessing(size=32, crop_fraction=1.0)


@pytest.fixture
def data(tmp_path: Path) -> LabeledImages:
    return open_data(str(write_class_folders(tmp_path / "data", 7)), "val")


@pytest.fixture
def model() -> nn.Module:
    """A network that is sometimes right; batch norm and dropout make its mode matter."""
    return nn.Sequential(
        nn.AvgPool2d(32),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(3, 8),
    )


@pytest.fixture
def wide(data: LabeledImages) -> LabeledImages:
    """The data set with the eight classes of a model, of which three have images."""
    classes = ("black", "blue", "brown", "green", "gray", "pink", "red", "white")
    return with_classes_of_model(data, classes)


def run(model: nn.Module, data: LabeledImages, batch_size: int) -> Evaluation:
    engine = TorchEngine(model.eval(), torch.device("cpu"))
    return measure(engine, data, PREPROCESSING, batch_size=batch_size, workers=1)


class SentError(Exception):
    """Raised where a process would wait for the others."""


def run_in_processes(
    count: int, model: nn.Module, data: LabeledImages, batch_size: int
) -> list[Evaluation]:
    """Simulate `count` processes, one after the other; returns what each returns."""
    sent: list[bytes] = []

    def send(share: object) -> list[object]:
        sent.append(pickle.dumps(share))
        raise SentError

    def receive(_: object) -> list[object]:
        return [pickle.loads(share) for share in sent]

    def process(rank: int, gathered: object) -> Evaluation:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("splitattn.distributed.rank", lambda: rank)
            patch.setattr("splitattn.distributed.world_size", lambda: count)
            patch.setattr("splitattn.distributed.gathered", gathered)
            return run(model, data, batch_size)

    for rank in range(count):
        with pytest.raises(SentError):
            process(rank, send)
    return [process(rank, receive) for rank in range(count)]


def assert_same(ours: Evaluation, theirs: Evaluation) -> None:
    assert np.array_equal(ours.confusion, theirs.confusion)
    assert np.array_equal(ours.top5_by_class, theirs.top5_by_class)
    assert ours.loss == theirs.loss
    assert ours.mistakes == theirs.mistakes
    assert ours.problems == theirs.problems


@pytest.mark.parametrize("batch_size", [1, 2, 5, 21, 64])
def test_the_figures_are_those_of_one_plain_pass(
    model: nn.Module, wide: LabeledImages, batch_size: int
) -> None:
    measured = run(model, wide, batch_size)
    images = torch.from_numpy(
        np.stack([preprocess(decode(image), PREPROCESSING) for image in wide.images])
    )
    labels = torch.tensor(wide.labels)
    with torch.no_grad():
        logits = model.eval()(normalize(images, PREPROCESSING))
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


def test_the_batch_size_changes_nothing(model: nn.Module, wide: LabeledImages) -> None:
    one, all_at_once = run(model, wide, 1), run(model, wide, 64)
    assert np.array_equal(one.confusion, all_at_once.confusion)
    assert np.array_equal(one.top5_by_class, all_at_once.top5_by_class)
    assert one.loss == pytest.approx(all_at_once.loss, rel=1e-6)


def test_classes_add_up_to_the_whole(model: nn.Module, wide: LabeledImages) -> None:
    measured = run(model, wide, 4)
    rows = measured.by_class()
    assert [name for name, *_ in rows] == ["blue", "green", "red"]
    assert sum(n for _, n, _, _ in rows) == measured.n
    assert sum(n * top1 for _, n, top1, _ in rows) / measured.n == pytest.approx(measured.top1)
    assert sum(n * top5 for _, n, _, top5 in rows) / measured.n == pytest.approx(measured.top5)
    wrong = measured.confusions()
    assert sum(n for *_, n in wrong) == measured.n - measured.confusion.trace()
    assert [n for *_, n in wrong] == sorted((n for *_, n in wrong), reverse=True)


def test_precision_and_f1_are_those_of_the_confusions() -> None:
    measured = Evaluation(
        classes=("a", "b", "c", "nowhere"),
        confusion=np.array([[6, 2, 0, 0], [1, 3, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0]]),
        top5_by_class=np.array([8, 4, 4, 0]),
        loss=1.0,
        mistakes=(),
        problems=(),
        guesses=np.zeros(16, np.int64),
    )
    # Precision: 6 of 8 for a, 3 of 8 for b. Recall: 6/8, 3/4 and 0.
    expected = [(75.0, 75.0), (37.5, 50.0), (0.0, 0.0), (0.0, 0.0)]
    assert measured.precision_and_f1() == expected
    assert measured.macro_f1 == pytest.approx((75 + 50 + 0) / 3)


def test_every_answer_is_reported_in_order(model: nn.Module, wide: LabeledImages) -> None:
    answers: list[Answer] = []
    engine = TorchEngine(model.eval(), torch.device("cpu"))
    found = measure(engine, wide, PREPROCESSING, batch_size=4, on_answer=answers.append)
    assert [answer.index for answer in answers] == list(range(len(wide)))
    assert [answer.label for answer in answers] == [wide.classes[label] for label in wide.labels]
    right = sum(answer.label == answer.guess for answer in answers)
    assert 100 * right / len(answers) == found.top1
    assert set(found.mistakes) <= set(answers)


def test_unreadable_images_are_named_and_the_rest_is_measured(
    model: nn.Module, wide: LabeledImages
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


@pytest.fixture
def many(tmp_path: Path) -> LabeledImages:
    """More images than mistakes are kept; four images cannot be read."""
    data = open_data(str(write_class_folders(tmp_path / "many", 16)), "val")
    for index in (30, 4, 17, 18):
        Path(str(data.images[index])).write_bytes(b"nothing")
    classes = ("black", "blue", "brown", "green", "gray", "pink", "red", "white")
    return with_classes_of_model(data, classes)


@pytest.mark.parametrize(("count", "batch_size"), [(2, 3), (3, 1), (3, 64)])
def test_many_processes_give_exactly_what_one_gives(
    model: nn.Module, many: LabeledImages, count: int, batch_size: int
) -> None:
    one = run(model, many, batch_size)
    assert one.n == 44
    assert [problem.split(":")[0] for problem in one.problems] == [
        many.names[index] for index in (4, 17, 18, 30)
    ]
    for evaluation in run_in_processes(count, model, many, batch_size):
        assert_same(evaluation, one)


def test_no_readable_image_is_an_error_in_every_process(
    model: nn.Module, wide: LabeledImages
) -> None:
    for image in wide.images:
        Path(str(image)).write_bytes(b"nothing")
    with pytest.raises(DataError, match="readable images, got none"):
        run_in_processes(2, model, wide, 4)


def test_the_most_confident_mistakes_are_kept(model: nn.Module, many: LabeledImages) -> None:
    nn.init.normal_(model[4].weight, std=5)
    measured = run(model, many, 5)
    expected = []
    for index in set(range(48)) - {4, 17, 18, 30}:
        pixels = torch.from_numpy(preprocess(decode(many.images[index]), PREPROCESSING))[None]
        with torch.no_grad():
            row = model.eval()(normalize(pixels, PREPROCESSING)).softmax(1)[0]
        guess, label = int(row.argmax()), many.labels[index]
        if guess != label:
            expected.append((float(row[guess]), index, many.classes[label], many.classes[guess]))
    expected.sort(key=lambda mistake: -mistake[0])
    assert len(expected) > 24
    assert [(m.index, m.label, m.guess) for m in measured.mistakes] == [
        mistake[1:] for mistake in expected[:24]
    ]
    assert [m.probability for m in measured.mistakes] == pytest.approx(
        [probability for probability, *_ in expected[:24]], rel=1e-4
    )
    assert all(m.name == many.names[m.index] for m in measured.mistakes)


class Constant(nn.Module):
    """A network that gives the same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


def test_of_equally_confident_mistakes_the_first_are_kept(many: LabeledImages) -> None:
    model = Constant(9.0, *[0.0] * 7)
    readable = [index for index in range(48) if index not in (4, 17, 18, 30)]
    for evaluation in (run(model, many, 5), *run_in_processes(2, model, many, 5)):
        assert [mistake.index for mistake in evaluation.mistakes] == readable[:24]
        assert {mistake.guess for mistake in evaluation.mistakes} == {"black"}


def test_right_guesses_and_broken_logits_are_no_mistakes(data: LabeledImages) -> None:
    always_green = run(Constant(0.0, 5.0, 0.0), data, 4)
    assert len(always_green.mistakes) == 14
    assert always_green.mistakes[0] == Answer(
        index=0,
        name=data.names[0],
        label="blue",
        guess="green",
        probability=pytest.approx(math.exp(5) / (math.exp(5) + 2)),
    )
    broken = run(Constant(math.nan, math.nan, math.nan), data, 4)
    assert broken.mistakes == ()
    assert math.isnan(broken.loss)
    assert math.isnan(broken.top1)
    assert broken.n == 0, "NaN must not count as a guess of the first class"
    assert len(broken.problems) == len(data)
    assert broken.problems[0].startswith(f"{data.names[0]}: the network gives NaN or infinite")


def test_an_exception_of_the_listener_ends_the_measurement(
    model: nn.Module, wide: LabeledImages
) -> None:
    done = []

    def stop_after_two(images: int, _: int) -> None:
        done.append(images)
        if len(done) == 2:
            raise KeyboardInterrupt

    engine = TorchEngine(model.eval(), torch.device("cpu"))
    with pytest.raises(KeyboardInterrupt):
        measure(engine, wide, PREPROCESSING, batch_size=4, workers=1, on_images=stop_after_two)
    assert done == [4, 4]
