"""Evaluates a classifier on every image of a data set exactly once."""

import heapq
import math
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import compress, zip_longest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitattn import distributed
from splitattn.data.eval_batches import EvalBatch, eval_batches
from splitattn.data.labeled import LabeledImages
from splitattn.engines.engine import NOT_FINITE, Engine, finite, softmax
from splitattn.errors import DataError, one_line
from splitattn.preprocessing import Preprocessing

Array = NDArray[Any]

# The number of mistakes in a report; others are discarded at once.
_MISTAKES_KEPT = 24


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The first guess for an image.

    Attributes:
        index: of the image in the data set.
        name: of the image, in reports.
        label: name of its class.
        guess: name of the predicted class.
        probability: of the guess, from 0 to 1.
    """

    index: int
    name: str
    label: str
    guess: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        classes: names, by index.
        confusion: (C, C) counts; rows are labels, columns are first guesses.
        top5_by_class: (C,) number of images whose label is among the first five guesses, by label.
        loss: mean cross-entropy, in nats; NaN if the network gives NaN or infinite numbers.
        mistakes: the wrong first guesses of the highest probability, at most 24, highest first.
        problems: a line for each image that could not be read, or for which the network gives NaN
            or infinite numbers. Other figures leave these images out.
        guesses: (N,) index of the first guess for each image of the data set; -1 for images in
            `problems`.
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    top5_by_class: NDArray[np.int64]
    loss: float
    mistakes: tuple[Answer, ...]
    problems: tuple[str, ...]
    guesses: NDArray[np.int64]

    @property
    def n(self) -> int:
        """Number of evaluated images."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Images whose label is the first guess, in percent."""
        return 100 * int(self.confusion.trace()) / self.n if self.n else math.nan

    @property
    def top5(self) -> float:
        """Images whose label is among the five first guesses, in percent."""
        return 100 * int(self.top5_by_class.sum()) / self.n if self.n else math.nan

    def by_class(self) -> list[tuple[str, int, float, float]]:
        """Name, images, top-1 and top-5 in percent of each class that has images."""
        counts = self.confusion.sum(1).tolist()
        right, found = self.confusion.diagonal().tolist(), self.top5_by_class.tolist()
        return [
            (name, n, 100 * top1 / n, 100 * top5 / n)
            for name, n, top1, top5 in zip(self.classes, counts, right, found, strict=True)
            if n
        ]

    def precision_and_f1(self) -> list[tuple[float, float]]:
        """Precision and F1 in percent of each class; recall is its top-1 in `by_class`.

        Both are 0 if no guess of the class is right.
        """
        right = self.confusion.diagonal()
        labels, guesses = self.confusion.sum(1), self.confusion.sum(0)
        precision = 100 * right / np.maximum(guesses, 1)
        f1 = 200 * right / np.maximum(labels + guesses, 1)
        return list(zip(precision.tolist(), f1.tolist(), strict=True))

    @property
    def macro_f1(self) -> float:
        """Mean F1 of all classes that occur as labels or guesses, in percent."""
        occurs = self.confusion.sum(0) + self.confusion.sum(1) > 0
        if not self.n:
            return math.nan
        return float(np.mean([f1 for _, f1 in self.precision_and_f1()], where=occurs))

    def confusions(self) -> list[tuple[str, str, int]]:
        """Label, wrong first guess and number of images, the most frequent first."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        labels, guesses = wrong.nonzero()
        return sorted(
            (
                (self.classes[label], self.classes[guess], int(wrong[label, guess]))
                for label, guess in zip(labels.tolist(), guesses.tolist(), strict=True)
            ),
            key=lambda confusion: -confusion[2],
        )


@dataclass(frozen=True, kw_only=True)
class _Share:
    """The results of one process.

    Loss and problems are kept by batch, so the merged result does not depend on the number of
    processes.
    """

    confusion: NDArray[np.int64]
    top5_by_class: NDArray[np.int64]
    losses: list[float]
    mistakes: list[Answer]
    problems: list[tuple[str, ...]]
    guesses: NDArray[np.int64]


def measure(
    engine: Engine,
    data: LabeledImages,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    on_images: Callable[[int, int], None] = lambda _, __: None,
    on_answer: Callable[[Answer], None] | None = None,
) -> Evaluation:
    """Evaluate a network on every image of `data`.

    Several processes share the batches, and all return the same result as one process would.

    Args:
        engine: runs the network; its outputs are the classes of `data`.
        preprocessing: how images become the network's input.
        workers: threads that decode images; None chooses from the number of processors.
        on_images: called with the number of images that this process has newly finished and the
            total; if it raises, the evaluation ends.
        on_answer: called with the first guess for each image of this process, in order.

    Raises:
        DataError: no image could be read.
    """
    answered = answers(
        engine, data, preprocessing, batch_size=batch_size, workers=workers, on_images=on_images
    )
    with closing(answered):
        share = _measure(answered, data, on_answer)
    return _merged(data.classes, distributed.gathered(share))


class Answered(NamedTuple):
    """A batch with the network's logits.

    Attributes:
        batch: without images for which the network gives NaN or infinite numbers; these become
            problems of the batch.
        logits: (B, C), float64.
        broken: whether there were such images.
    """

    batch: EvalBatch
    logits: Array
    broken: bool


def answers(
    engine: Engine,
    data: LabeledImages,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int | None,
    on_images: Callable[[int, int], None],
) -> Generator[Answered, None, None]:
    """The batches of this process, with the network's answers; for the arguments see `measure`."""
    batches = eval_batches(
        data,
        preprocessing,
        batch_size=batch_size,
        workers=workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    with closing(batches):
        for batch in batches:
            done = len(batch.labels) + len(batch.problems)
            logits = np.empty((0, len(data.classes)))
            broken = np.zeros(0, np.bool_)
            if len(batch.labels):
                logits = engine.run(batch.images, preprocessing).astype(np.float64)
                broken = ~finite(logits)
                if broken.any():
                    batch, logits = _without(batch, broken, data), logits[~broken]
            yield Answered(batch, logits, bool(broken.any()))
            on_images(done, len(data))


def _measure(
    answered: Iterable[Answered],
    data: LabeledImages,
    on_answer: Callable[[Answer], None] | None,
) -> _Share:
    classes = len(data.classes)
    confusion = np.zeros((classes, classes), np.int64)
    top5_by_class = np.zeros(classes, np.int64)
    losses: list[float] = []
    mistakes: list[Answer] = []
    problems: list[tuple[str, ...]] = []
    first_guesses = np.full(len(data), -1, np.int64)
    for batch, logits, broken in answered:
        if broken:
            losses.append(math.nan)  # makes the mean NaN, even for a single image
        problems.append(batch.problems)
        if len(logits):
            losses.append(_cross_entropy(logits, batch.labels))
            guesses = np.argsort(-logits, axis=1, kind="stable")[:, :5]
            first_guesses[batch.indices] = guesses[:, 0]
            np.add.at(confusion, (batch.labels, guesses[:, 0]), 1)
            found = (guesses == batch.labels[:, None]).any(1)
            top5_by_class += np.bincount(batch.labels[found], minlength=classes)
            given = _answers(logits, guesses[:, 0], batch, data)
            if on_answer:
                for answer in given:
                    on_answer(answer)
            wrong = (guesses[:, 0] != batch.labels).tolist()
            mistakes = _worst([*mistakes, *compress(given, wrong)])
    return _Share(
        confusion=confusion,
        top5_by_class=top5_by_class,
        losses=losses,
        mistakes=mistakes,
        problems=problems,
        guesses=first_guesses,
    )


def _without(batch: EvalBatch, broken: NDArray[np.bool_], data: LabeledImages) -> EvalBatch:
    """The images that are not `broken` (B,); the others become problems."""
    names = (data.names[index] for index in batch.indices[broken].tolist())
    return EvalBatch(
        images=batch.images[~broken],
        labels=batch.labels[~broken],
        indices=batch.indices[~broken],
        problems=(*batch.problems, *(one_line(f"{name}: {NOT_FINITE}") for name in names)),
    )


def _cross_entropy(logits: Array, labels: Array) -> float:
    """The cross-entropy, summed over the batch, in nats."""
    highest = logits.max(1)
    log_sums = highest + np.log(np.exp(logits - highest[:, None]).sum(1))
    return float((log_sums - logits[np.arange(len(labels)), labels]).sum())


def _answers(logits: Array, guesses: Array, batch: EvalBatch, data: LabeledImages) -> list[Answer]:
    """An `Answer` for each image, from logits (B, C) and first guesses (B,)."""
    probabilities = softmax(logits)[np.arange(len(guesses)), guesses]
    columns = (batch.indices, batch.labels, guesses, probabilities)
    return [
        Answer(
            index=index,
            name=data.names[index],
            label=data.classes[label],
            guess=data.classes[guess],
            probability=probability,
        )
        for index, label, guess, probability in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


def _worst(mistakes: Iterable[Answer]) -> list[Answer]:
    """The mistakes of the highest probability, highest first; the earliest first if equal."""
    return heapq.nsmallest(_MISTAKES_KEPT, mistakes, key=lambda m: (-m.probability, m.index))


def in_turn(problems: list[list[tuple[str, ...]]]) -> tuple[str, ...]:
    """The problems of all processes' batches, in the order of the data."""
    turns = zip_longest(*problems, fillvalue=())
    return tuple(problem for turn in turns for batch in turn for problem in batch)


def _merged(classes: tuple[str, ...], shares: list[_Share]) -> Evaluation:
    """Merge the results of all processes, ordered by rank."""
    problems = in_turn([share.problems for share in shares])
    confusion = np.sum([share.confusion for share in shares], axis=0)
    losses = [loss for share in shares for loss in share.losses]
    if not losses:
        raise DataError(f"evaluation needs readable images, got none; the first: {problems[0]}")
    return Evaluation(
        classes=classes,
        confusion=confusion,
        top5_by_class=np.sum([share.top5_by_class for share in shares], axis=0),
        # A plain sum would depend on its order, and so on the number of processes.
        loss=math.fsum(losses) / max(int(confusion.sum()), 1),
        mistakes=tuple(_worst(mistake for share in shares for mistake in share.mistakes)),
        problems=problems,
        # Each image was measured in one process; in the others it is -1.
        guesses=np.max([share.guesses for share in shares], axis=0),
    )
