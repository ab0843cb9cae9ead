"""Measuring a classifier: every image of a data set exactly once."""

import heapq
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor
from torch.nn import functional as F

from splitattn import distributed
from splitattn.data.loading import Batch, eval_loader
from splitattn.data.sources import LabelledImages
from splitattn.engines.engine import Engine
from splitattn.errors import DataError
from splitattn.images.preprocess import normalize
from splitattn.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

# As many as a page shows; the others are forgotten as soon as they are measured.
_MISTAKES_KEPT = 24


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image whose first guess is wrong.

    Attributes:
        index: of the image in the data set.
        name: how a report calls it.
        label: name of its class.
        guess: name of the class that was guessed.
        probability: of the guess, from 0 to 1.
    """

    index: int
    name: str
    label: str
    guess: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured.

    Attributes:
        classes: names, by index.
        confusion: (C, C) counts; rows are labels, columns are first guesses.
        top5_by_class: (C,) images of each label that is among the five first guesses.
        loss: mean cross-entropy, in nats.
        mistakes: the wrong first guesses of the highest probability, at most 24, the highest first.
        problems: a line for each image that could not be read; they are counted nowhere else.
    """

    classes: tuple[str, ...]
    confusion: Tensor
    top5_by_class: Tensor
    loss: float
    mistakes: tuple[Mistake, ...]
    problems: tuple[str, ...]

    @property
    def n(self) -> int:
        """Images that were measured."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Images whose label is the first guess, in percent."""
        return 100 * int(self.confusion.trace()) / self.n

    @property
    def top5(self) -> float:
        """Images whose label is among the five first guesses, in percent."""
        return 100 * int(self.top5_by_class.sum()) / self.n

    def by_class(self) -> list[tuple[str, int, float, float]]:
        """Name, images, top-1 and top-5 in percent of each class that has images."""
        counts = self.confusion.sum(1).tolist()
        right, found = self.confusion.diagonal().tolist(), self.top5_by_class.tolist()
        return [
            (name, n, 100 * top1 / n, 100 * top5 / n)
            for name, n, top1, top5 in zip(self.classes, counts, right, found, strict=True)
            if n
        ]

    def confusions(self) -> list[tuple[str, str, int]]:
        """Label, wrong first guess and number of images, the most frequent first."""
        wrong = self.confusion.clone().fill_diagonal_(0)
        return sorted(
            (
                (self.classes[label], self.classes[guess], int(wrong[label, guess]))
                for label, guess in wrong.nonzero().tolist()
            ),
            key=lambda confusion: -confusion[2],
        )


def with_classes_of_model(
    data: LabelledImages, classes: tuple[str, ...] | None, *, num_classes: int
) -> LabelledImages:
    """`data` with the model's classes, so that its labels are indices of the model's outputs.

    Classes are matched by name where the model knows all names of the data set. Else, for folders
    called by WordNet ids say, there must be as many, in the same order.

    Args:
        classes: the model's names by output index, or None if it has none.
        num_classes: how many outputs the model has.

    Raises:
        DataError: the classes are not the model's.
    """
    if classes and set(data.classes) <= set(classes):
        index = {name: i for i, name in enumerate(classes)}
        labels = [index[data.classes[label]] for label in data.labels]
        return replace(data, classes=classes, labels=labels)
    strange = [name for name in data.classes if name not in (classes or ())]
    # Where some names are the model's, the others are not the model's under another name.
    if len(data.classes) != num_classes or len(strange) < len(data.classes):
        raise DataError(
            f"the data set must have the model's {num_classes} classes, got "
            f"{len(data.classes)}, such as {strange[0]!r}; name the weights trained on it"
        )
    if classes:
        logger.warning("class names differ from the model's: matched by their order")
    return replace(data, classes=classes or data.classes)


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What one process measured, batch by batch.

    Loss and problems are kept by batch: put together, they are the same however many processes
    there were.
    """

    confusion: Tensor
    top5_by_class: Tensor
    losses: list[float]
    mistakes: list[Mistake]
    problems: list[tuple[str, ...]]


def evaluate(
    engine: Engine,
    data: LabelledImages,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    workers: int = 1,
    on_images: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Measure a network on every image of `data`.

    Several processes share the batches and all give the same result, that of one process.

    Args:
        engine: runs the network; its outputs are the classes of `data`.
        on_images: told how many more images this process has done, for a progress bar; what it
            raises ends the measurement.

    Raises:
        DataError: no image could be read.
    """
    loader = eval_loader(
        data,
        preprocessing,
        batch_size=batch_size,
        workers=workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    share = _measure(engine, loader, data, preprocessing, on_images)
    return _merged(data.classes, distributed.gathered(share))


@torch.inference_mode()
def _measure(
    engine: Engine,
    loader: Iterable[Batch],
    data: LabelledImages,
    preprocessing: Preprocessing,
    on_images: Callable[[int], None],
) -> _Share:
    classes = len(data.classes)
    confusion = torch.zeros(classes, classes, dtype=torch.long)
    top5_by_class = torch.zeros(classes, dtype=torch.long)
    losses: list[float] = []
    mistakes: list[Mistake] = []
    problems: list[tuple[str, ...]] = []
    for batch in loader:
        problems.append(batch.problems)
        if len(batch.labels):
            images = normalize(batch.images.to(engine.device), preprocessing)
            logits = engine(images).cpu().double()
            losses.append(F.cross_entropy(logits, batch.labels, reduction="sum").item())
            guesses = logits.topk(min(5, classes)).indices
            confusion.index_put_((batch.labels, guesses[:, 0]), torch.tensor(1), accumulate=True)
            found = (guesses == batch.labels[:, None]).any(1)
            top5_by_class += batch.labels[found].bincount(minlength=classes)
            mistakes = _worst(mistakes + _mistakes(logits, guesses[:, 0], batch, data))
        on_images(len(batch.labels) + len(batch.problems))
    return _Share(
        confusion=confusion,
        top5_by_class=top5_by_class,
        losses=losses,
        mistakes=mistakes,
        problems=problems,
    )


def _mistakes(logits: Tensor, guesses: Tensor, batch: Batch, data: LabelledImages) -> list[Mistake]:
    """The wrong ones of `guesses` (B,), by logits (B, C)."""
    probabilities = logits.softmax(1).gather(1, guesses[:, None])[:, 0]
    # Logits that are not numbers give no guess to be confident of, nor an order.
    wrong = (guesses != batch.labels) & ~probabilities.isnan()
    columns = (batch.indices, batch.labels, guesses, probabilities)
    return [
        Mistake(
            index=index,
            name=data.names[index],
            label=data.classes[label],
            guess=data.classes[guess],
            probability=probability,
        )
        for index, label, guess, probability in zip(
            *(column[wrong].tolist() for column in columns), strict=True
        )
    ]


def _worst(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """Those with the most confident guess, the most confident first; of equals the earliest."""
    return heapq.nsmallest(_MISTAKES_KEPT, mistakes, key=lambda m: (-m.probability, m.index))


def _merged(classes: tuple[str, ...], shares: list[_Share]) -> Evaluation:
    """One result from the share of each process, by rank."""
    # Batches were dealt in turn, so taking them in turn restores the order of the data.
    turns = zip_longest(*(share.problems for share in shares), fillvalue=())
    problems = tuple(problem for turn in turns for batch in turn for problem in batch)
    confusion = torch.stack([share.confusion for share in shares]).sum(0)
    if not confusion.any():
        raise DataError(f"evaluation needs readable images, got none; the first: {problems[0]}")
    return Evaluation(
        classes=classes,
        confusion=confusion,
        top5_by_class=torch.stack([share.top5_by_class for share in shares]).sum(0),
        # A plain sum would depend on its order, and so on the number of processes.
        loss=math.fsum(loss for share in shares for loss in share.losses) / int(confusion.sum()),
        mistakes=tuple(_worst(mistake for share in shares for mistake in share.mistakes)),
        problems=problems,
    )
