"""Measuring a classifier: every image of a data set exactly once."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitattn.data.loading import eval_loader
from splitattn.data.sources import LabelledImages
from splitattn.errors import DataError
from splitattn.images.preprocess import normalise
from splitattn.runtimes.pytorch import full_precision
from splitattn.weights.catalogue import Preprocessing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured.

    Attributes:
        classes: names, by index.
        confusion: (C, C) counts; rows are labels, columns are first guesses.
        top5_by_class: (C,) images of each label that is among the five first guesses.
        loss: mean cross-entropy, in nats.
        problems: a line for each image that could not be read; they are counted nowhere else.
    """

    classes: tuple[str, ...]
    confusion: Tensor
    top5_by_class: Tensor
    loss: float
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


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: LabelledImages,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 1,
    on_images: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Measure `model` on every image of `data`, in evaluation mode; its mode is restored.

    Args:
        model: (B, 3, H, W) to (B, C) logits, on `device`.
        on_images: told how many more images are done, for a progress bar.

    Raises:
        DataError: no image could be read.
    """
    classes = len(data.classes)
    confusion = torch.zeros(classes, classes, dtype=torch.long)
    top5_by_class = torch.zeros(classes, dtype=torch.long)
    loss = 0.0
    problems: list[str] = []
    was_training = model.training
    model.eval()
    try:
        for batch in eval_loader(data, preprocessing, batch_size=batch_size, workers=workers):
            problems += batch.problems
            if len(batch.labels):
                images = normalise(batch.images.to(device), preprocessing)
                images = images.contiguous(memory_format=torch.channels_last)
                with full_precision(device):
                    logits = model(images).float().cpu()
                loss += F.cross_entropy(logits.double(), batch.labels, reduction="sum").item()
                guesses = logits.topk(min(5, classes)).indices
                confusion.index_put_(
                    (batch.labels, guesses[:, 0]), torch.tensor(1), accumulate=True
                )
                found = (guesses == batch.labels[:, None]).any(1)
                top5_by_class += batch.labels[found].bincount(minlength=classes)
            on_images(len(batch.labels) + len(batch.problems))
    finally:
        model.train(was_training)
    if not confusion.any():
        raise DataError(f"evaluation needs readable images, got none; the first: {problems[0]}")
    return Evaluation(
        classes=data.classes,
        confusion=confusion,
        top5_by_class=top5_by_class,
        loss=loss / int(confusion.sum()),
        problems=tuple(problems),
    )
