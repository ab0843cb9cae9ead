"""Evaluates a classifier of images that may have several labels each.

Shapes: N images, C classes.
"""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitattn import distributed
from splitattn.data.labeled import LabeledImages
from splitattn.engines.engine import THRESHOLD, Array, Engine, sigmoid
from splitattn.errors import DataError
from splitattn.evaluation import answers, in_turn
from splitattn.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class LabelAnswer:
    """The labels of an image and the predicted ones.

    Attributes:
        index: of the image in the data set.
        name: of the image, in reports.
        labels: names of its classes.
        guesses: names of the classes above the threshold, the most probable first, and the
            probability of each.
    """

    index: int
    name: str
    labels: tuple[str, ...]
    guesses: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class ClassLabelScore:
    """Scores of one class.

    Attributes:
        name: of the class.
        images: number of images with the class.
        average_precision, precision, recall, f1: in percent. The average precision is NaN if no
            image has the class; the others are 0 if no prediction is right.
    """

    name: str
    images: int
    average_precision: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """The result of an evaluation.

    Attributes:
        classes: names, by index.
        threshold: classes with at least this probability are predicted.
        n: number of evaluated images.
        positives: (C,) number of images with each class.
        guessed: (C,) number of images for which it is predicted.
        right: (C,) number of images for which it is predicted correctly.
        average_precisions: (C,) in percent; NaN if no image has the class.
        loss: binary cross-entropy, summed over classes and averaged over images, in nats; NaN if
            the network gives NaN or infinite numbers.
        problems: as in `Evaluation`.
    """

    classes: tuple[str, ...]
    threshold: float
    n: int
    positives: NDArray[np.int64]
    guessed: NDArray[np.int64]
    right: NDArray[np.int64]
    average_precisions: NDArray[np.float64]
    loss: float
    problems: tuple[str, ...]

    @property
    def mean_average_precision(self) -> float:
        """Mean average precision (mAP) over classes that occur, in percent."""
        found = self.average_precisions[self.positives > 0]
        return float(found.mean()) if len(found) else math.nan

    @property
    def micro_f1(self) -> float:
        """Micro-averaged F1, over all labels of all images, in percent."""
        return float(_f1(self.right.sum(), self.guessed.sum(), self.positives.sum()))

    @property
    def macro_f1(self) -> float:
        """Macro-averaged F1, over all classes that occur or are predicted, in percent."""
        found = _f1(self.right, self.guessed, self.positives)[self.positives + self.guessed > 0]
        return float(found.mean()) if len(found) else math.nan

    def by_class(self) -> list[ClassLabelScore]:
        """The scores of each class."""
        columns = (
            self.positives,
            self.average_precisions,
            100 * self.right / np.maximum(self.guessed, 1),
            100 * self.right / np.maximum(self.positives, 1),
            _f1(self.right, self.guessed, self.positives),
        )
        return [
            ClassLabelScore(
                name=name,
                images=images,
                average_precision=average,
                precision=precision,
                recall=recall,
                f1=f1,
            )
            for name, images, average, precision, recall, f1 in zip(
                self.classes, *(column.tolist() for column in columns), strict=True
            )
        ]


def _f1(right: Array, guessed: Array, positives: Array) -> Array:
    """F1 in percent, from counts (C,)."""
    f1: Array = 200 * right / np.maximum(guessed + positives, 1)
    return f1


def measure_labels(
    engine: Engine,
    data: LabeledImages,
    preprocessing: Preprocessing,
    *,
    threshold: float = THRESHOLD,
    batch_size: int = 64,
    workers: int | None = None,
    on_images: Callable[[int, int], None] = lambda _, __: None,
    on_answer: Callable[[LabelAnswer], None] | None = None,
) -> LabelScores:
    """Evaluate a network on every image of `data`, each of which may have several labels.

    Several processes share the batches, and all return the same result as one process would.

    Args:
        engine: runs the network; its outputs are the classes of `data`.
        threshold: classes with at least this probability are predicted.
        preprocessing, batch_size, workers, on_images, on_answer: as in `evaluation.measure`.

    Raises:
        DataError: no image could be read.
    """
    answered = answers(
        engine, data, preprocessing, batch_size=batch_size, workers=workers, on_images=on_images
    )
    indices: list[int] = []
    rows: list[Array] = [np.empty((0, len(data.classes)))]  # for a process without batches
    problems: list[tuple[str, ...]] = []
    broken = False
    with closing(answered):
        for batch, logits, some_broken in answered:
            broken |= some_broken
            problems.append(batch.problems)
            indices += batch.indices.tolist()
            rows.append(logits)
            if on_answer:
                for index, row in zip(batch.indices.tolist(), sigmoid(logits), strict=True):
                    on_answer(_answer(data, index, row, threshold))
    shares = distributed.gathered((indices, np.concatenate(rows), problems, broken))
    every = in_turn([share[2] for share in shares])
    logits = np.concatenate([share[1] for share in shares])
    order = np.argsort([index for share in shares for index in share[0]])
    if not len(logits) and not any(share[3] for share in shares):
        raise DataError(f"evaluation needs readable images, got none; the first: {every[0]}")
    measured = sorted(index for share in shares for index in share[0])
    return _scores(
        data,
        logits[order],
        _labels(data, measured),
        threshold=threshold,
        problems=every,
        broken=any(share[3] for share in shares),
    )


def _labels(data: LabeledImages, indices: list[int]) -> NDArray[np.bool_]:
    """Whether each image has each class, (N, C)."""
    has = np.zeros((len(indices), len(data.classes)), np.bool_)
    for row, index in enumerate(indices):
        has[row, [*data.classes_of(data.labels[index])]] = True
    return has


def _answer(data: LabeledImages, index: int, probabilities: Array, threshold: float) -> LabelAnswer:
    order = np.argsort(-probabilities, kind="stable").tolist()
    return LabelAnswer(
        index=index,
        name=data.names[index],
        labels=tuple(data.classes[each] for each in data.classes_of(data.labels[index])),
        guesses=tuple(
            (data.classes[each], float(probabilities[each]))
            for each in order
            if probabilities[each] >= threshold
        ),
    )


def _scores(
    data: LabeledImages,
    logits: Array,
    has: NDArray[np.bool_],
    *,
    threshold: float,
    problems: tuple[str, ...],
    broken: bool,
) -> LabelScores:
    taken = sigmoid(logits) >= threshold
    # log(1 + e^x) - x * y, without overflow.
    losses = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits))) - logits * has
    return LabelScores(
        classes=data.classes,
        threshold=threshold,
        n=len(logits),
        positives=has.sum(0),
        guessed=taken.sum(0),
        right=(taken & has).sum(0),
        average_precisions=np.array(
            [100 * average_precision(*pair) for pair in zip(logits.T, has.T, strict=True)]
        ),
        loss=math.nan if broken else math.fsum(losses.ravel().tolist()) / len(logits),
        problems=problems,
    )


def average_precision(scores: Array, has: NDArray[np.bool_]) -> float:
    """The average precision of one class, from 0 to 1, as in scikit-learn.

    It is the area under precision as a step function of recall. Images with equal scores are
    processed together, so their order does not matter.

    Args:
        scores: (N,), any scores that increase with the probability.
        has: (N,), whether the image has the class.

    Returns:
        The average precision, or NaN if no image has the class.
    """
    if not has.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    found, places = np.cumsum(has[order]), np.arange(1, len(order) + 1)
    last = np.append(np.diff(scores[order]) != 0, True)  # the last image of each score
    found, places = found[last], places[last]
    gained = np.diff(found, prepend=0) / found[-1]
    return float((gained * found / places).sum())
