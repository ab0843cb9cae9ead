"""A learning-rate range test (arXiv 1506.01186, section 3.3): raise the rate until loss rises."""

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from time import perf_counter

from torch import nn

from splitattn import distributed
from splitattn.data.loading import dead_workers_named
from splitattn.errors import InputError
from splitattn.files import replacing
from splitattn.training.learner import Learner, micro_batches
from splitattn.training.loop import check
from splitattn.training.output import writing_to
from splitattn.training.range_plot import draw_range
from splitattn.training.run import Run
from splitattn.training.task import Batch, Step, Task

# Lowest and highest rate of a test, as multiples of the recipe's; steps are logarithmic.
_LOWEST, _HIGHEST, _STEPS = 1e-3, 1e3, 100
# Weight of earlier steps in the smoothed loss. The test ends when the smoothed loss is this many
# times its minimum.
_SMOOTHING, _DIVERGED = 0.9, 4.0
# Training nearly diverges at the rate of the lowest loss; the suggestion is this share of it.
_SAFE = 0.1


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """The result of a range test.

    Attributes:
        learning_rates: of each step, for a batch of 256 like the recipe's `learning_rate`.
        losses: of each step's batch, before the step.
        smoothed: exponential moving average of the losses.
    """

    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]

    @property
    def lowest(self) -> float:
        """The learning rate at which the smoothed loss is lowest."""
        return self.learning_rates[self.smoothed.index(min(self.smoothed))]

    @property
    def suggestion(self) -> float:
        """A learning rate to train with: a tenth of `lowest`, rounded to two digits.

        Raises:
            InputError: no rate lowers the loss.
        """
        if self.lowest == self.learning_rates[0]:
            raise InputError(
                "the range test must find a learning rate that lowers the loss, got none from "
                f"{self.learning_rates[0]:.2g} to {self.learning_rates[-1]:.2g}; try other weights "
                "or a larger batch_size"
            )
        return float(f"{_SAFE * self.lowest:.1e}")


def range_test(
    network: nn.Module,
    task: Task[Batch],
    run: Run,
    *,
    on_step: Callable[[Step], None] = lambda _: None,
) -> RangeTest:
    """Train `network` for up to 100 steps with rising learning rates, and write the losses.

    Batches are those of the recipe's first epoch; further passes have other seeds. The output
    folder gets only `learning_rate.png` and `learning_rate.csv`.

    Args:
        network: changed in place; useless afterwards.
        on_step: called after each step.

    Raises:
        InputError: see `loop.train`; or no rate lowers the loss.
    """
    run = run.with_real_batch()
    check(task, run)
    with dead_workers_named():
        tested = _tested(network, task, run, on_step)
    if distributed.rank() == 0:
        with writing_to(run.output):
            run.output.mkdir(parents=True, exist_ok=True)
            _write_csv(run.output / "learning_rate.csv", tested)
            with replacing(run.output / "learning_rate.png") as path:
                points = [*zip(tested.learning_rates, tested.losses, strict=True)]
                smooth = [*zip(tested.learning_rates, tested.smoothed, strict=True)]
                draw_range(points, smooth, mark=_SAFE * tested.lowest).save(path, format="png")
    return tested


def _tested(
    network: nn.Module, task: Task[Batch], run: Run, on_step: Callable[[Step], None]
) -> RangeTest:
    recipe = run.recipe
    learner = Learner(network, task, run)
    task.begin_epoch(learner.network, 0, recipe)
    learner.network.train()
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    for turn in count():
        other_order = replace(run, recipe=replace(recipe, seed=recipe.seed + turn))
        for batches in micro_batches(task, other_order, 0, 0):
            began, number = perf_counter(), len(rates)
            rate = recipe.learning_rate * _LOWEST * (_HIGHEST / _LOWEST) ** (number / (_STEPS - 1))
            pending = learner.step(number, batches, rate * recipe.batch_size / 256)
            step = Step(
                step=number,
                steps=_STEPS,
                epoch=0,
                epochs=1,
                figures=task.means(pending.figures(), recipe.batch_size),
                formats=task.formats,
                learning_rate=rate,
                examples=recipe.batch_size,
                unit=task.unit,
                seconds=perf_counter() - began,
            )
            loss = step.figures["loss"]
            if not math.isfinite(loss):
                if not rates:
                    raise step.diverged("stay finite")
                return _as_result(rates, losses, smoothed)
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            rates.append(rate)
            losses.append(loss)
            smoothed.append(mean / (1 - _SMOOTHING ** len(rates)))
            on_step(step)
            if len(rates) == _STEPS or not smoothed[-1] <= _DIVERGED * min(smoothed):
                return _as_result(rates, losses, smoothed)
    raise AssertionError("count() does not end")


def _as_result(rates: list[float], losses: list[float], smoothed: list[float]) -> RangeTest:
    return RangeTest(learning_rates=(*rates,), losses=(*losses,), smoothed=(*smoothed,))


def _write_csv(path: Path, tested: RangeTest) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("learning_rate", "loss", "smoothed_loss"))
        columns = (tested.learning_rates, tested.losses, tested.smoothed)
        writer.writerows([f"{value:.6g}" for value in row] for row in zip(*columns, strict=True))
