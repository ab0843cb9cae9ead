"""Image classification as a task: mixup and cutmix, the loss, figures, the resulting file."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from splitattn.data.class_names import check_same
from splitattn.data.folds import origin_of
from splitattn.data.labeled import check_classes_are_readable, check_classes_have_images
from splitattn.data.loading import Batch
from splitattn.data.normalization import normalize
from splitattn.engines.pytorch import TorchEngine
from splitattn.errors import DataError
from splitattn.evaluation import measure
from splitattn.training.classification_report import classification_report
from splitattn.training.image_task import ImageTask
from splitattn.training.mixing import mix, smoothed_loss, targets_of
from splitattn.training.recipes import Recipe
from splitattn.training.report import Report
from splitattn.training.run import Run
from splitattn.training.task import DISTILLATION_FIELDS, Figure, Measurement, StepOutput
from splitattn.weights.metadata import Activation, ModelMetadata


@dataclass(frozen=True, kw_only=True)
class Classification(ImageTask[Batch]):
    """Learn the classes of images from their labels. For the attributes see `ImageTask`."""

    name: ClassVar[str] = "classification"
    formats: ClassVar[Mapping[str, Figure]] = {
        "size": Figure(label="", unit="px", decimals=0),
        "loss": Figure(label="loss"),
        "top1": Figure(label="top-1", unit="%", decimals=2),
        "top5": Figure(label="top-5", unit="%", decimals=2),
    }
    best: ClassVar[str | None] = "top1"
    activation: ClassVar[Activation] = "softmax"
    # The function that evaluates an engine on images.
    _measured: ClassVar[Callable[..., Any]] = staticmethod(measure)

    @property
    def unread(self) -> dict[str, str]:
        return super().unread | DISTILLATION_FIELDS

    def check(self, run: Run) -> None:
        train, val = self.train, self.val
        if len(train.classes) < 2:
            raise DataError(
                f"training needs at least two classes, got only {', '.join(train.classes)!r}; "
                f"put the images of each class into a folder of its own, directly in {train.origin}"
            )
        check_same(
            train.classes, val.classes, "where a class has no images, an empty folder will do"
        )
        if train.classes != val.classes:
            raise DataError(
                "train and val must have their classes in the same order, got two orders; list "
                "them with --class-names"
            )
        super().check(run)
        self._check_images(run.recipe.in_chans, run.recipe.white_level)

    @cached_property
    def _check_images(self) -> Callable[[int, float | None], None]:
        # Cached, since `launch` checks before it fetches weights, and the loop checks again.
        def check_images(channels: int, white_level: float | None) -> None:
            check_classes_have_images(self.train, channels, white_level)
            check_classes_are_readable(self.val, "validation", channels, white_level)

        return cache(check_images)

    def batches(self, run: Run, epoch: int, first_step: int) -> Iterable[Batch]:
        return self.loader(run, epoch, first_step, run.recipe.augmentation(epoch))

    def forward(self, network: Callable[..., Any], batch: Batch, run: Run) -> StepOutput:
        recipe, device = run.recipe, run.device
        targets = targets_of(self.train, batch.labels).to(device, non_blocking=True)
        images = normalize(batch.images.to(device, non_blocking=True), recipe.preprocessing)
        images = images.contiguous(memory_format=torch.channels_last)
        images, targets = mix(images, targets, recipe)
        logits: Tensor = network(images)
        loss = self.loss(logits, targets, recipe)
        sums: dict[str, Tensor | float] = {
            "loss": loss.detach() * len(logits),
            **self.counts(logits.detach(), targets),
            "unreadable": self._unreadable.note("train", batch.problems),
        }
        return StepOutput(loss, sums)

    def loss(self, logits: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        """The mean loss of logits (B, C) for targets (B, C): a scalar."""
        balanced = recipe.class_weights == "balanced"
        weights = self._balancing_weights.to(logits.device) if balanced else None
        return smoothed_loss(logits, targets, recipe, weights)

    def counts(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums over a batch that `means` needs besides the loss."""
        return {"right": (logits.argmax(1) == targets.argmax(1)).sum()}

    @cached_property
    def _balancing_weights(self) -> Tensor:
        """Class weights n / (C * n_c), (C,), where n_c of the n images are of class c."""
        counts = torch.bincount(torch.tensor(self.train.labels), minlength=len(self.classes))
        return len(self.train) / (len(self.classes) * counts.clamp(min=1))

    def means(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        return {"loss": sums["loss"] / examples, "top1": 100 * sums["right"] / examples}

    def measure(
        self, network: nn.Module, run: Run, on_measured: Callable[[int, int], None]
    ) -> Measurement:
        measured = self._measured(
            TorchEngine(network, run.device),
            self.val,
            run.recipe.preprocessing,
            workers=max(run.workers, 1),
            on_images=on_measured,
        )
        if math.isfinite(measured.loss):  # otherwise the loop raises the error
            self.note_unreadable(measured.problems, run)
        return Measurement(figures=self.figures_of(measured), details=measured)

    def figures_of(self, measured: Any) -> dict[str, float]:
        """The figures in the result of `_measured`, by their names in `formats`."""
        return {"loss": measured.loss, "top1": measured.top1, "top5": measured.top5}

    def metadata(self, run: Run, measured: Measurement | None) -> ModelMetadata:
        figures = {**measured.figures, "n": measured.details.n} if measured else {}
        return ModelMetadata(
            model=self.model,
            classes=self.train.classes,
            preprocessing=run.recipe.preprocessing,
            recipe=asdict(run.recipe),
            metrics=figures,
            origin=origin_of(self.val),
            activation=self.activation,
        )

    def report(self, run: Run, measured: Measurement) -> Report:
        title = f"{self.model} on {len(self.train.classes)} classes"
        unreadable = len(self._unreadable.lines)
        return classification_report(
            title,
            measured.details,
            self.val,
            unreadable=unreadable,
            white_level=run.recipe.white_level,
        )

    def summary(self, measured: Measurement) -> str:
        figures = {**measured.figures}
        del figures["loss"]
        shown = ", ".join(self.formats[name].text(value) for name, value in figures.items())
        return f"{shown} of {measured.details.n} images"
