"""Common parts of tasks on images: loading, DropBlock's schedule, unreadable images."""

import math
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn
from torch.utils.data import DataLoader

from splitattn import distributed
from splitattn.architectures import ARCHITECTURES
from splitattn.data.augmentation import Augmentation
from splitattn.data.labeled import LabeledImages
from splitattn.data.loading import Batch as Images
from splitattn.data.loading import epoch_batches, train_loader
from splitattn.errors import DataError, InputError
from splitattn.nn.drop_block import DropBlock2d
from splitattn.nn.resnest import DropPath
from splitattn.training.recipes import Recipe
from splitattn.training.run import Run
from splitattn.training.task import Batch, Step, Task
from splitattn.training.unreadable import Unreadable

# A network that guesses at random has a loss of log(classes). If the loss is ten times that for ten
# steps in a row, the training has diverged.
_EXPLOSION_FACTOR, _EXPLOSION_STEPS = 10, 10


@dataclass(frozen=True, kw_only=True)
class ImageTask(Task[Batch]):
    """A task that gives an image one of several classes.

    Attributes:
        model: the network's name, written into the result.
        train: the training images.
        val: the validation images, evaluated after each epoch.
    """

    unit: ClassVar[str] = "images"

    model: str
    train: LabeledImages
    val: LabeledImages
    _unreadable: Unreadable = field(default_factory=Unreadable, init=False, repr=False)
    _explosion: "_Explosion" = field(default_factory=lambda: _Explosion(), init=False, repr=False)

    @property
    def unread(self) -> dict[str, str]:
        dense = (
            *("head", "head_channels", "box_head", "regions_per_image", "longest_side"),
            *("zoom", "multi_scale", "mosaic", "auxiliary_weight"),
        )
        return dict.fromkeys(dense, "leave it out")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by output of the network."""
        return self.train.classes

    @property
    def examples(self) -> int:
        return len(self.train)

    @property
    def loss_of_guessing(self) -> float:
        """The loss of a network for which all classes are equally probable."""
        return math.log(len(self.classes))

    def identity(self) -> dict[str, Any]:
        labels = np.asarray([*self.train.labels, *self.val.labels], dtype=np.int64).tobytes()
        if self.train.label_sets is not None:
            labels += repr((self.train.label_sets, self.val.label_sets)).encode()
        return {
            "model": self.model,
            "classes": list(self.classes),
            "images": [len(self.train), len(self.val), sha256(labels).hexdigest()],
            "parts": [self.train.part, self.val.part],
        }

    def check(self, run: Run) -> None:
        super().check(run)
        if self.train.origin == self.val.origin:
            raise DataError(
                "train and val must be different images, got the same ones for both, from "
                f"{self.train.origin}; put some of them into val/"
            )
        recipe = run.recipe
        if run.batch_per_device == 1 and (recipe.mixup_alpha or recipe.cutmix_alpha):
            raise DataError(
                "mixup and cutmix need at least 2 images on a device at once, got 1; set "
                "mixup_alpha=0 and cutmix_alpha=0, or a larger batch"
            )

    def prepare(self, network: nn.Module, recipe: Recipe) -> None:
        _check_network(network, self.model, len(self.classes), recipe)
        super().prepare(network, recipe)
        self._unreadable.clear()
        self._explosion.steps = 0

    def begin_epoch(self, network: nn.Module, epoch: int, recipe: Recipe) -> None:
        for module in network.modules():
            if isinstance(module, DropBlock2d):
                module.probability.fill_(recipe.drop_block_in(epoch))

    def loader(
        self, run: Run, epoch: int, first_step: int, augmentation: Augmentation
    ) -> DataLoader[Images]:
        """A loader of augmented training images for one epoch."""
        recipe = run.recipe
        return train_loader(
            self.train,
            augmentation,
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
                balanced=self.train.labels if recipe.sampling == "balanced" else None,
            ),
            workers=run.workers,
            seed=recipe.seed,
            epoch=epoch,
            white_level=recipe.white_level,
        )

    def watch(self, step: Step, sums: Any, run: Run) -> None:
        self._explosion.watch(step, self.loss_of_guessing)
        found = self._unreadable
        found.in_train += round(sums["unreadable"])
        found.check("train", found.in_train, of=len(self.train), folder=run.output)

    def note_unreadable(self, problems: tuple[str, ...], run: Run) -> None:
        """Record validation images that could not be read; raise if there are too many."""
        self._unreadable.note("val", problems)
        self._unreadable.check("val", len(problems), of=len(self.val), folder=run.output)

    def end_epoch(self, epoch: int, run: Run) -> dict[str, float]:
        unreadable = self._unreadable.end_epoch(run.output)
        return {"size": run.recipe.size_in(epoch), "unreadable": unreadable}

    def write_files(self, folder: Path) -> None:
        self._unreadable.write(folder)

    def state_dict(self) -> dict[str, Any]:
        return {"unreadable": self._unreadable.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._unreadable.load_state_dict(state["unreadable"])


class _Explosion:
    """Stops a training whose loss stays far above that of guessing."""

    def __init__(self) -> None:
        self.steps = 0

    def watch(self, step: Step, guessing: float) -> None:
        limit = _EXPLOSION_FACTOR * guessing
        self.steps = self.steps + 1 if step.figures["loss"] > limit else 0
        if self.steps >= _EXPLOSION_STEPS:
            raise step.diverged(f"stay below {limit:.3g}")


def _check_network(network: nn.Module, model: str, classes: int, recipe: Recipe) -> None:
    """Raise unless a network agrees with its name, the data and the recipe.

    Networks of other classes than ours are checked as far as possible.

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
