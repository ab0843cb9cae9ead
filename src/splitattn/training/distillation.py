"""Distillation as a task: a student learns from a teacher's answers; images need no labels."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitattn.data.labeled import LabeledImages
from splitattn.data.loading import Batch as Images
from splitattn.data.normalization import normalize
from splitattn.engines.engine import Engine
from splitattn.engines.pytorch import TorchEngine
from splitattn.errors import DataError, InputError
from splitattn.evaluation import Evaluation, measure
from splitattn.preprocessing import Preprocessing
from splitattn.training.classification_report import distillation_report
from splitattn.training.image_task import ImageTask
from splitattn.training.mixing import mix, smoothed_loss
from splitattn.training.recipes import Recipe
from splitattn.training.report import Report
from splitattn.training.run import Run
from splitattn.training.task import Figure, Measurement, StepOutput
from splitattn.training.teacher import ReusedClassifier, Teacher, resized
from splitattn.weights.metadata import ModelMetadata


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Crops at the larger input size of the two networks, and the side of the student's input."""

    images: Images
    student_size: int


@dataclass(frozen=True, kw_only=True)
class Distillation(ImageTask[Crops]):
    """Learn from a teacher's answers.

    Teacher and student see the same crops, each at its own size (arXiv 2106.05237). The student's
    classes are the teacher's. For the other attributes see `ImageTask`; images without labels have
    no classes.

    Attributes:
        teacher: the network that answers.
        data: name of the data set in the student's file.
    """

    name: ClassVar[str] = "distillation"
    formats: ClassVar[Mapping[str, Figure]] = {
        "size": Figure(label="", unit="px", decimals=0),
        "loss": Figure(label="loss"),
        "agreement": Figure(label="agreement", unit="%", decimals=2),
        "top1": Figure(label="top-1", unit="%", decimals=2),
    }
    best: ClassVar[str | None] = "agreement"

    teacher: Teacher
    data: str
    _answered: list[LabeledImages] = field(default_factory=list, init=False, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.teacher.classes

    @property
    def has_labels(self) -> bool:
        """Whether the images have labels of the teacher's classes."""
        return bool(self.train.classes)

    def check(self, run: Run) -> None:
        if self.has_labels and not self.train.classes == self.val.classes == self.classes:
            raise DataError(
                "labels must be of the teacher's classes, got "
                f"{len(self.train.classes)} classes in train and {len(self.val.classes)} in val, "
                f"but the teacher has {len(self.classes)}"
            )
        if run.recipe.class_weights != "none":
            raise InputError(
                f"class_weights must be none in distillation, got {run.recipe.class_weights}"
            )
        if run.recipe.sampling == "balanced" and not self.has_labels:
            raise InputError("sampling must be 'uniform' for images without labels, got 'balanced'")
        channels = (run.recipe.in_chans, self.teacher.preprocessing.channels)
        if channels != (3, 3):
            raise InputError(
                f"distillation is for RGB images, got a student for {channels[0]} channels and a "
                f"teacher for {channels[1]}"
            )
        if run.recipe.label_weight and not self.has_labels:
            raise DataError(
                "label_weight needs images with labels of the teacher's classes, got images "
                "without; set label_weight=0"
            )
        super().check(run)

    def prepare(self, network: nn.Module, recipe: Recipe) -> None:
        super().prepare(network, recipe)
        if recipe.imitation == "logits":
            return
        classifier = self.teacher.classifier
        fc = getattr(network, "fc", None)
        if classifier is None or not isinstance(fc, nn.Linear | ReusedClassifier):
            raise InputError(
                "imitation=features needs the teacher's classifier and a student with a dense "
                f"layer fc, got {self.teacher.name} and {type(network).__name__}; use "
                "imitation=logits"
            )
        if isinstance(fc, nn.Linear):
            reused = ReusedClassifier(fc.in_features, classifier, seed=recipe.seed)
            network.fc = reused.to(fc.weight.device)

    def fold(self, network: nn.Module) -> None:
        if isinstance(fc := getattr(network, "fc", None), ReusedClassifier):
            network.fc = fc.folded()

    def batches(self, run: Run, epoch: int, first_step: int) -> Iterator[Crops]:
        size = run.recipe.size_in(epoch)
        augmentation = run.recipe.augmentation(epoch)
        larger = replace(augmentation, size=max(size, self.teacher.preprocessing.size))
        for images in self.loader(run, epoch, first_step, larger):
            yield Crops(images=images, student_size=size)

    def forward(self, network: Callable[..., Any], batch: Crops, run: Run) -> StepOutput:
        recipe, device = run.recipe, run.device
        crops = batch.images.images.to(device, non_blocking=True).float()
        labels = batch.images.labels.to(device, non_blocking=True)
        # Images without labels all have label 0, which is not used.
        targets = F.one_hot(labels, len(self.train.classes) or 1).float()
        crops, targets = mix(crops, targets, recipe)
        answer = self.teacher.answer(crops)
        images = normalize(resized(crops, batch.student_size) / 255, recipe.preprocessing)
        given = network(images.contiguous(memory_format=torch.channels_last))
        if recipe.imitation == "features":
            features, logits = (part.float() for part in given)
            reused = self.teacher.classifier
            assert reused is not None  # `prepare` has checked this
            wanted = F.linear(answer, reused.weight.to(device), reused.bias.to(device))
            loss = _relative_error(features, answer) + _divergence(logits, wanted, recipe)
        else:
            logits, wanted = given.float(), answer
            loss = _divergence(logits, wanted, recipe)
        if share := recipe.label_weight:
            loss = loss.lerp(smoothed_loss(logits, targets, recipe), share)
        sums: dict[str, Tensor | float] = {
            "loss": loss.detach() * len(labels),
            "agreeing": (logits.detach().argmax(1) == wanted.argmax(1)).sum(),
            "unreadable": self._unreadable.note("train", batch.images.problems),
        }
        return StepOutput(loss, sums)

    def means(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        return {"loss": sums["loss"] / examples, "agreement": 100 * sums["agreeing"] / examples}

    def measure(
        self, network: nn.Module, run: Run, on_measured: Callable[[int, int], None]
    ) -> Measurement:
        """Measure for how many images student and teacher have the same first guess.

        With labels, measure top-1 too. Each network's images are preprocessed for it.
        """
        if not self._answered:
            self._answered.append(self._ask(run, on_measured))
        (answered,) = self._answered
        engine = TorchEngine(network, run.device)
        measured = _measured(engine, answered, run.recipe.preprocessing, run, on_measured)
        if not math.isfinite(measured.loss):
            raise InputError(
                "the student's answers must be finite, got others in validation; lower "
                "learning_rate or use precision fp32"
            )
        self.note_unreadable(measured.problems, run)
        figures = {"agreement": measured.top1}
        if self.has_labels:
            read = measured.guesses >= 0
            figures["top1"] = 100 * float(np.mean((measured.guesses == self.val.labels)[read]))
        return Measurement(figures=figures, details=measured)

    def _ask(self, run: Run, on_images: Callable[[int, int], None]) -> LabeledImages:
        """The validation images, labeled by the teacher's first guesses."""
        blank = replace(self.val, classes=self.classes, labels=[0] * len(self.val))
        teacher = self.teacher
        preprocessing = teacher.preprocessing
        measured = _measured(teacher.for_logits(), blank, preprocessing, run, on_images)
        # Labels of unreadable images are never used.
        return replace(blank, labels=measured.guesses.clip(0).tolist())

    def metadata(self, run: Run, measured: Measurement | None) -> ModelMetadata:
        figures = {**measured.figures, "n": measured.details.n} if measured else {}
        return ModelMetadata(
            model=self.model,
            classes=self.classes,
            preprocessing=run.recipe.preprocessing,
            recipe=asdict(run.recipe) | {"teacher": self.teacher.name},
            metrics=figures,
            origin={"teacher": self.teacher.name, "data": self.data},
        )

    def report(self, run: Run, measured: Measurement) -> Report:
        title = f"{self.model}, distilled from {self.teacher.name}"
        unreadable = len(self._unreadable.lines)
        return distillation_report(
            title,
            measured,
            self._answered[0],
            unreadable=unreadable,
            white_level=run.recipe.white_level,
        )

    def summary(self, measured: Measurement) -> str:
        return f"{super().summary(measured)} of {measured.details.n} images"


def _measured(
    engine: Engine,
    images: LabeledImages,
    preprocessing: Preprocessing,
    run: Run,
    on_images: Callable[[int, int], None],
) -> Evaluation:
    return measure(
        engine,
        images,
        preprocessing,
        workers=max(run.workers, 1),
        on_images=on_images,
    )


def _divergence(logits: Tensor, wanted: Tensor, recipe: Recipe) -> Tensor:
    """Kullback-Leibler divergence of class probabilities (B, C), times the temperature's square.

    The square keeps gradients as large as at temperature 1 (arXiv 1503.02531, section 2).
    """
    heat = recipe.temperature
    ours, theirs = ((x / heat).log_softmax(1) for x in (logits, wanted))
    return heat**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def _relative_error(features: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of features (B, F), relative to the teacher's squares, mean over images.

    It is relative for each image, so that accumulated micro-batches have the loss of their batch.
    """
    error = (features - wanted).square().sum(1)
    return (error / wanted.square().sum(1).clamp(min=1e-12)).mean()
