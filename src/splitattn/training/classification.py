"""Image classification as a task: mixed batches, cross-entropy, top-1."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from splitattn import distributed
from splitattn.architectures import ARCHITECTURES
from splitattn.data.labelled import LabelledImages, check_classes_have_images
from splitattn.data.loading import Batch, epoch_batches, train_loader
from splitattn.data.normalization import normalize
from splitattn.engines.pytorch import TorchEngine
from splitattn.errors import DataError, InputError
from splitattn.evaluation import measure
from splitattn.nn.drop_block import DropBlock2d
from splitattn.nn.resnest import DropPath
from splitattn.training.classification_report import classification_report
from splitattn.training.mixing import mix, smoothed_loss
from splitattn.training.recipes import Recipe
from splitattn.training.report import Report
from splitattn.training.run import Run
from splitattn.training.task import Figure, Measurement, Step, StepOutput, Task
from splitattn.training.unreadable import Unreadable
from splitattn.weights.metadata import ModelMetadata

# A network that guesses at random has a loss of log(classes). Ten times that for ten steps running
# is no noise.
_EXPLOSION_FACTOR, _EXPLOSION_STEPS = 10, 10


@dataclass(frozen=True, kw_only=True)
class Classification(Task[Batch]):
    """Learn the classes of images.

    Attributes:
        model: the network's name, written into the result.
        train: the images to learn from.
        val: the images to measure on after each epoch.
    """

    name: ClassVar[str] = "classification"
    unit: ClassVar[str] = "images"
    formats: ClassVar[Mapping[str, Figure]] = {
        "size": Figure(label="", unit="px", decimals=0),
        "loss": Figure(label="loss"),
        "top1": Figure(label="top-1", unit="%", decimals=2),
        "top5": Figure(label="top-5", unit="%", decimals=2),
    }
    best: ClassVar[str | None] = "top1"

    model: str
    train: LabelledImages
    val: LabelledImages
    _unreadable: Unreadable = field(default_factory=Unreadable, init=False, repr=False)
    _explosion: "_Explosion" = field(default_factory=lambda: _Explosion(), init=False, repr=False)

    @property
    def examples(self) -> int:
        return len(self.train)

    def identity(self) -> dict[str, Any]:
        labels = np.asarray([*self.train.labels, *self.val.labels], dtype=np.int64)
        return {
            "model": self.model,
            "classes": list(self.train.classes),
            "images": [len(self.train), len(self.val), sha256(labels.tobytes()).hexdigest()],
        }

    def check(self, run: Run) -> None:
        train, val = self.train, self.val
        if len(train.classes) < 2:
            raise DataError(
                f"training needs at least two classes, got only {', '.join(train.classes)!r}; "
                "put the images of each class into a folder of its own"
            )
        if train.classes != val.classes:
            odd = set(train.classes) ^ set(val.classes)
            raise DataError(
                f"train and val must have the same classes, got {len(odd)} in only one of them: "
                f"{', '.join(sorted(odd)[:5])}"
            )
        if train.origin == val.origin:
            raise DataError(
                "train and val must be different images, got the same ones for both, from "
                f"{train.origin}; put some of them into val/"
            )
        check_classes_have_images(train, run.recipe.in_chans)
        recipe = run.recipe
        if run.batch_per_device == 1 and (recipe.mixup_alpha or recipe.cutmix_alpha):
            raise DataError(
                "mixup and cutmix need at least 2 images on a device at once, got 1; set "
                "mixup_alpha=0 and cutmix_alpha=0, or a larger batch"
            )

    def prepare(self, network: nn.Module, recipe: Recipe) -> None:
        _check_network(network, self.model, len(self.train.classes), recipe)
        super().prepare(network, recipe)
        self._unreadable.clear()
        self._explosion.steps = 0

    def begin_epoch(self, network: nn.Module, epoch: int, recipe: Recipe) -> None:
        for module in network.modules():
            if isinstance(module, DropBlock2d):
                module.probability.fill_(recipe.drop_block_in(epoch))

    def batches(self, run: Run, epoch: int, first_step: int) -> Iterable[Batch]:
        recipe = run.recipe
        return train_loader(
            self.train,
            recipe.augmentation(epoch),
            batches=epoch_batches(
                len(self.train),
                batch_size=recipe.batch_size,
                seed=recipe.seed,
                epoch=epoch,
                first_step=first_step,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
                accumulation=run.accumulation,
                blocks=self.train.blocks,
            ),
            workers=run.workers,
            seed=recipe.seed,
            epoch=epoch,
            white_level=recipe.white_level,
        )

    def forward(self, network: Callable[..., Any], batch: Batch, run: Run) -> StepOutput:
        recipe, device = run.recipe, run.device
        images = normalize(batch.images.to(device, non_blocking=True), recipe.preprocessing)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = batch.labels.to(device, non_blocking=True)
        images, targets = mix(images, labels, len(self.train.classes), recipe)
        logits: Tensor = network(images)
        loss = smoothed_loss(logits, targets, recipe)
        sums: dict[str, Tensor | float] = {
            "loss": loss.detach() * len(labels),
            "right": (logits.detach().argmax(1) == targets.argmax(1)).sum(),
            "unreadable": self._unreadable.note("train", batch.problems),
        }
        return StepOutput(loss, sums)

    def means(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        return {"loss": sums["loss"] / examples, "top1": 100 * sums["right"] / examples}

    def watch(self, step: Step, sums: Mapping[str, float], run: Run) -> None:
        self._explosion.watch(step, len(self.train.classes))
        found = self._unreadable
        found.in_train += round(sums["unreadable"])
        found.check("train", found.in_train, of=len(self.train), folder=run.output)

    def measure(self, network: nn.Module, run: Run, poll: Callable[[], None]) -> Measurement:
        measured = measure(
            TorchEngine(network, run.device),
            self.val,
            run.recipe.preprocessing,
            workers=max(run.workers, 1),
            on_images=lambda *_: poll(),
        )
        self._unreadable.note("val", measured.problems)
        self._unreadable.check("val", len(measured.problems), of=len(self.val), folder=run.output)
        figures = {"loss": measured.loss, "top1": measured.top1, "top5": measured.top5}
        return Measurement(figures=figures, details=measured)

    def end_epoch(self, epoch: int, run: Run) -> dict[str, float]:
        self._unreadable.gather()
        return {"size": run.recipe.size_in(epoch), "unreadable": len(self._unreadable.lines)}

    def metadata(self, run: Run, measured: Measurement | None) -> ModelMetadata:
        figures = {**measured.figures, "n": measured.details.n} if measured else {}
        return ModelMetadata(
            model=self.model,
            classes=self.train.classes,
            preprocessing=run.recipe.preprocessing,
            recipe=asdict(run.recipe),
            metrics=figures,
        )

    def write_files(self, folder: Path) -> None:
        self._unreadable.write(folder)

    def report(self, measured: Measurement) -> Report:
        title = f"{self.model} on {len(self.train.classes)} classes"
        unreadable = len(self._unreadable.lines)
        return classification_report(title, measured.details, self.val, unreadable=unreadable)

    def summary(self, measured: Measurement) -> str:
        figures = {**measured.figures}
        del figures["loss"]
        shown = ", ".join(self.formats[name].text(value) for name, value in figures.items())
        return f"{shown} of {measured.details.n} images"

    def state_dict(self) -> dict[str, Any]:
        return {"unreadable": self._unreadable.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._unreadable.load_state_dict(state["unreadable"])


class _Explosion:
    """Stops a training whose loss stays far above that of guessing."""

    def __init__(self) -> None:
        self.steps = 0

    def watch(self, step: Step, classes: int) -> None:
        limit = _EXPLOSION_FACTOR * math.log(classes)
        self.steps = self.steps + 1 if step.figures["loss"] > limit else 0
        if self.steps >= _EXPLOSION_STEPS:
            raise step.diverged(f"stay below {limit:.3g}")


def _check_network(network: nn.Module, model: str, classes: int, recipe: Recipe) -> None:
    """Refuse a network that is not what its name, the data and the recipe say.

    A network of another kind than ours need not tell its shape.

    Raises:
        InputError: the message says what differs.
    """
    shape = getattr(network, "architecture", None)
    if shape is not None and ARCHITECTURES.get(model, shape) != shape:
        raise InputError(f"the network must be a {model}, got one of another architecture")
    stem = next(network.parameters(), None)
    if stem is not None and stem.ndim == 4 and stem.shape[1] != recipe.in_chans:
        raise InputError(
            f"the network must take images of in_chans channels, {recipe.in_chans}, got one for "
            f"{stem.shape[1]}; pass **recipe.network_arguments() to create_model"
        )
    outputs = getattr(network, "num_classes", classes)
    if outputs != classes:
        raise InputError(
            f"the network must have an output for each of {classes} classes, got {outputs}; pass "
            f"num_classes={classes} to create_model"
        )
    for name, kind in {"drop_path": DropPath, "drop_block": DropBlock2d}.items():
        has = any(isinstance(module, kind) for module in network.modules())
        if has != bool(getattr(recipe, name)):
            raise InputError(
                f"the network must be built with the recipe's {name}, {getattr(recipe, name)}, "
                f"got one {'with' if has else 'without'}; pass **recipe.network_arguments() to "
                "create_model"
            )
