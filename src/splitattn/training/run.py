"""Settings of a training that are common to all tasks."""

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
    """Settings of a training that are common to all tasks.

    Attributes:
        recipe: hyperparameters.
        output: folder for the training's files, see `loop.train`.
        device: device of this process.
        workers: processes that load data, for this process.
        batch_per_device: most examples that a device processes at once. Larger batches are cut into
            equal parts, whose gradients are accumulated.
        checkpoint_minutes: minutes between checkpoints within an epoch.
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
        """The path of the checkpoint."""
        return checkpoint_in(self.output)

    @property
    def accumulation(self) -> int:
        """Micro-batches per step and device."""
        share = self.recipe.batch_size // distributed.world_size()
        return math.ceil(share / self.batch_per_device)

    def with_real_batch(self) -> "Run":
        """Round the batch size down to a multiple of devices times micro-batches.

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
