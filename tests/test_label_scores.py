"""Multi-label figures equal their definitions, in one process or several."""

import math
import pickle
from typing import Any

import numpy as np
import pytest

from splitattn.data.labeled import LabeledImages
from splitattn.engines.engine import Engine, Images, Logits, sigmoid, softmax
from splitattn.errors import DataError
from splitattn.label_scores import LabelAnswer, LabelScores, average_precision, measure_labels
from splitattn.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=32, crop_fraction=1.0)
CLASSES = ("boat", "car", "sea", "sky")
SETS = ((), (0,), (0, 2), (2, 3))
LABELS = [0, 1, 2, 3, 2, 1, 2, 0, 3, 2, 1]
_RANDOM = np.random.default_rng(0)
# Rounded so that some scores are equal.
LOGITS = _RANDOM.normal(0, 2, (len(LABELS), len(CLASSES))).round(0).astype(np.float32)
HAS = np.array([[each in SETS[label] for each in range(len(CLASSES))] for label in LABELS])


class Known(Engine):
    """An engine that gives an image of brightness i the logits of row i."""

    def __init__(self, logits: Logits = LOGITS) -> None:
        super().__init__("known")
        self.rows = logits

    def _infer(self, images_BCHW: Images) -> Logits:
        raise NotImplementedError

    def run(self, pixels_BCHW: Any, _: Preprocessing) -> Logits:
        return self.rows[pixels_BCHW[:, 0, 0, 0]]


def data(images: list[Any] | None = None) -> LabeledImages:
    pixels = [np.full((32, 32, 3), i, np.uint8) for i in range(len(LABELS))]
    return LabeledImages(
        origin="data",
        classes=CLASSES,
        images=images or pixels,
        labels=LABELS,
        names=[f"{i}.png" for i in range(len(LABELS))],
        label_sets=SETS,
    )


def by_threshold(scores: np.ndarray, has: np.ndarray) -> float:
    """Average precision: the sum over thresholds of precision times the gain in recall."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        recall = (taken & has).sum() / has.sum()
        total += (recall - before) * (taken & has).sum() / taken.sum()
        before = recall
    return total


def test_average_precision_is_the_sum_over_thresholds() -> None:
    for column in (0, 2, 3):
        expected = by_threshold(LOGITS[:, column], HAS[:, column])
        assert average_precision(LOGITS[:, column], HAS[:, column]) == pytest.approx(expected)
    perfect = np.array([3.0, 2.0, 1.0, 0.0])
    assert average_precision(perfect, perfect > 1.5) == 1
    assert average_precision(-perfect, perfect > 2.5) == 0.25
    assert math.isnan(average_precision(perfect, perfect > 9))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_figure_is_that_of_its_definition(batch_size: int) -> None:
    answers: list[LabelAnswer] = []
    scores = measure_labels(
        Known(),
        data(),
        PREPROCESSING,
        threshold=0.7,
        batch_size=batch_size,
        on_answer=answers.append,
    )
    probabilities = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    taken = probabilities >= 0.7
    aps = [100 * by_threshold(LOGITS[:, i], HAS[:, i]) for i in (0, 2, 3)]
    assert scores.n == len(LABELS)
    assert scores.mean_average_precision == pytest.approx(np.mean(aps))
    assert scores.average_precisions[[0, 2, 3]] == pytest.approx(aps)
    right = (taken & HAS).sum()
    assert scores.micro_f1 == pytest.approx(200 * right / (taken.sum() + HAS.sum()))
    losses = -np.where(HAS, np.log(probabilities), np.log(1 - probabilities)).sum(1)
    assert scores.loss == pytest.approx(losses.mean())
    boat, car, *_ = scores.by_class()
    assert (boat.name, boat.images) == ("boat", HAS[:, 0].sum())
    precision = 100 * (taken & HAS)[:, 0].sum() / taken[:, 0].sum()
    recall = 100 * (taken & HAS)[:, 0].sum() / HAS[:, 0].sum()
    assert (boat.precision, boat.recall) == pytest.approx((precision, recall))
    assert boat.f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert math.isnan(car.average_precision)
    f1 = [row.f1 for row in scores.by_class()]
    assert scores.macro_f1 == pytest.approx(np.mean(f1)), (
        "a class without images that is guessed counts as 0"
    )
    assert [answer.name for answer in answers] == list(data().names)
    for answer, row in zip(answers, probabilities, strict=True):
        assert dict(answer.guesses) == pytest.approx(
            {CLASSES[i]: row[i] for i in range(4) if row[i] >= 0.7}
        )
        shares = [share for _, share in answer.guesses]
        assert shares == sorted(shares, reverse=True)
    assert answers[2].labels == ("boat", "sea")


def test_several_processes_give_what_one_gives() -> None:
    sent: list[bytes] = []

    class SentError(Exception):
        pass

    def send(share: object) -> list[object]:
        sent.append(pickle.dumps(share))
        raise SentError

    def process(rank: int, gathered: object) -> LabelScores:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("splitattn.distributed.rank", lambda: rank)
            patch.setattr("splitattn.distributed.world_size", lambda: 3)
            patch.setattr("splitattn.distributed.gathered", gathered)
            return measure_labels(Known(), data([*images]), PREPROCESSING, batch_size=8)

    images: list[Any] = [*data().images]
    images[1] = b"no image"
    for rank in range(3):
        with pytest.raises(SentError):
            process(rank, send)
    together = process(0, lambda _: [pickle.loads(share) for share in sent])
    alone = measure_labels(Known(), data(images), PREPROCESSING, batch_size=64)
    assert together.n == alone.n == len(LABELS) - 1
    assert len(alone.problems) == 1
    assert together.problems == alone.problems
    for name in ("loss", "mean_average_precision", "micro_f1", "macro_f1"):
        assert getattr(together, name) == getattr(alone, name)


def test_logits_that_are_not_finite_are_a_problem_and_no_readable_image_is_an_error() -> None:
    logits = LOGITS.copy()
    logits[3, 1] = np.nan
    scores = measure_labels(Known(logits), data(), PREPROCESSING)
    assert math.isnan(scores.loss)
    assert scores.n == len(LABELS) - 1
    assert scores.problems[0].startswith("3.png: the network gives NaN")
    nothing = data([b"no image"] * len(LABELS))
    with pytest.raises(DataError, match=r"readable images, got none; the first: 0\.png"):
        measure_labels(Known(), nothing, PREPROCESSING)


def test_sigmoids_do_not_overflow() -> None:
    logits = np.array([[-1000.0, 0.0, 1000.0]])
    assert sigmoid(logits).tolist() == [[0.0, 0.5, 1.0]]
    two = np.array([[0.3, -1.2]])
    assert sigmoid(two[:, :1] - two[:, 1:]) == pytest.approx(softmax(two)[:, :1])
