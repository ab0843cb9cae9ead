"""Classification of images that may have several labels each, or none, as a task."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from splitattn.label_scores import measure_labels
from splitattn.training.classification import Classification
from splitattn.training.multi_label_report import multi_label_report
from splitattn.training.recipes import Recipe
from splitattn.training.report import Report
from splitattn.training.run import Run
from splitattn.training.task import Figure, Measurement
from splitattn.weights.metadata import Activation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MultiLabel(Classification):
    """Learn for each class independently whether an image has it. Attributes as in `ImageTask`.

    The loss is binary cross-entropy, summed over the classes. So a class's gradient does not depend
    on the number of classes, as with one label per image.
    """

    name: ClassVar[str] = "multi-label classification"
    formats: ClassVar[Mapping[str, Figure]] = {
        "size": Figure(label="", unit="px", decimals=0),
        "loss": Figure(label="loss"),
        "map": Figure(label="mAP", unit="%", decimals=2),
        "f1": Figure(label="F1", unit="%", decimals=2),
    }
    best: ClassVar[str | None] = "map"
    activation: ClassVar[Activation] = "sigmoid"
    _measured: ClassVar[Callable[..., Any]] = staticmethod(measure_labels)

    @property
    def loss_of_guessing(self) -> float:
        return len(self.classes) * math.log(2)

    def check(self, run: Run) -> None:
        super().check(run)
        if all(len(one) == 1 for one in self.train.label_sets or ()):
            logger.warning(
                "each training image has exactly one label; to train a network that predicts one "
                "label, put them into a column label"
            )

    def loss(self, logits: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:  # noqa: ARG002
        return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum") / len(
            logits
        )

    def counts(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        has, taken = targets > 0.5, logits > 0
        return {"right": (has & taken).sum(), "labels": has.sum(), "guesses": taken.sum()}

    def means(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        found = max(sums["labels"] + sums["guesses"], 1)
        return {"loss": sums["loss"] / examples, "f1": 200 * sums["right"] / found}

    def figures_of(self, measured: Any) -> dict[str, float]:
        return {
            "loss": measured.loss,
            "map": measured.mean_average_precision,
            "f1": measured.micro_f1,
        }

    def report(self, run: Run, measured: Measurement) -> Report:  # noqa: ARG002
        title = f"{self.model} on {len(self.train.classes)} classes"
        unreadable = len(self._unreadable.lines)
        return multi_label_report(title, measured.details, unreadable=unreadable)
