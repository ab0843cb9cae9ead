"""What a training needs besides the network, and whether it can work."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from splitattn import distributed
from splitattn.data.sources import LabelledImages
from splitattn.errors import DataError
from splitattn.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training needs besides the network: how, on what, where to.

    Attributes:
        name: the model's name, written into the result.
        recipe: how.
        train: the images to learn from.
        val: the images to measure on after each epoch.
        output: folder for what a training leaves, see `train`.
        device: where this process computes.
        workers: processes that decode images, for this process.
        batch_per_device: most images that a device takes at once. Its share of the recipe's batch
            is cut into parts of no more, whose gradients are added. 128 is what the paper had.
        checkpoint_minutes: time between checkpoints within an epoch.
    """

    name: str
    recipe: Recipe
    train: LabelledImages
    val: LabelledImages
    output: Path
    device: torch.device
    workers: int = 1
    batch_per_device: int = 128
    checkpoint_minutes: float = 5.0

    @property
    def checkpoint(self) -> Path:
        """What a resumed training goes on from."""
        return self.output / "last.pt"

    @property
    def accumulation(self) -> int:
        """Parts of a device's share of a batch, one after the other."""
        share = self.recipe.batch_size // distributed.world_size()
        return math.ceil(share / self.batch_per_device)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training images."""
        return len(self.train) // self.recipe.batch_size

    def with_real_batch(self) -> "Run":
        """The recipe's batch rounded down to what devices and their equal parts add up to.

        Raises:
            DataError: there are fewer images in a batch than processes, or too few to mix.
        """
        processes = distributed.world_size()
        if self.recipe.batch_size < processes:
            raise DataError(
                f"batch_size must be at least 1 for each of {processes} processes, "
                f"got {self.recipe.batch_size}"
            )
        parts = processes * self.accumulation
        part = self.recipe.batch_size // parts
        recipe = replace(self.recipe, batch_size=part * parts)
        if part == 1 and (recipe.mixup_alpha or recipe.cutmix_alpha):
            raise DataError(
                "mixup and cutmix need at least 2 images on a device at once, got 1; set "
                "mixup_alpha=0 and cutmix_alpha=0, or a larger batch"
            )
        return replace(self, recipe=recipe, batch_per_device=part)


def check_data(run: Run) -> None:
    """Refuse what cannot be trained on, before anything is spent.

    Raises:
        DataError: see `train`.
    """
    if len(run.train.classes) < 2:
        raise DataError(
            f"training needs at least two classes, got only {', '.join(run.train.classes)!r}; "
            "put the images of each class into a folder of its own"
        )
    if run.train.classes != run.val.classes:
        odd = set(run.train.classes) ^ set(run.val.classes)
        raise DataError(
            f"train and val must have the same classes, got {len(odd)} in only one of them: "
            f"{', '.join(sorted(odd)[:5])}"
        )
    if run.train.origin == run.val.origin:
        raise DataError(
            "train and val must be different images, got the same ones for both, from "
            f"{run.train.origin}; put some of them into val/"
        )
    if not run.steps_per_epoch:
        raise DataError(
            f"training needs at least one full batch of {run.recipe.batch_size} images, "
            f"got {len(run.train)}; set batch_size lower"
        )
