"""How, where and with what a network is trained, whatever the task."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from splitattn import distributed
from splitattn.errors import DataError, check_whole
from splitattn.training.output import checkpoint_in
from splitattn.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Run:
    """How, where and with what a network is trained, whatever the task.

    Attributes:
        recipe: hyperparameters.
        output: folder for what a training writes, see `loop.train`.
        device: where this process computes.
        workers: processes that load data, for this process.
        batch_per_device: most examples that a device takes at once. A larger share of the recipe's
            batch is cut into equal parts, whose gradients are accumulated.
        checkpoint_minutes: time between checkpoints within an epoch.
    """

    recipe: Recipe
    output: Path
    device: torch.device
    workers: int = 1
    batch_per_device: int = 128
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        check_whole("workers", self.workers, least=0)

    @property
    def checkpoint(self) -> Path:
        """What a resumed training continues from."""
        return checkpoint_in(self.output)

    @property
    def accumulation(self) -> int:
        """Parts of a device's share of a batch, one after the other."""
        share = self.recipe.batch_size // distributed.world_size()
        return math.ceil(share / self.batch_per_device)

    def with_real_batch(self) -> "Run":
        """The recipe's batch rounded down to what devices and their equal parts add up to.

        Raises:
            DataError: there are fewer examples in a batch than processes.
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
        return replace(self, recipe=recipe, batch_per_device=part)
