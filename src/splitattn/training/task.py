"""The interface between the training loop and tasks. A new task is a subclass of `Task`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from splitattn.errors import InputError
from splitattn.nn.freezing import thaw
from splitattn.training.recipe_files import load_recipe
from splitattn.training.recipes import Recipe
from splitattn.training.report import Report
from splitattn.training.run import Run
from splitattn.training.stages import freeze_batch_norms, freeze_stages
from splitattn.weights.metadata import ModelMetadata

Batch = TypeVar("Batch")
# Recipe fields that only distillation reads, with the fix, for `Task.unread`.
DISTILLATION_FIELDS = dict.fromkeys(
    ("teacher", "imitation", "temperature", "label_weight"), "add --recipe distill"
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """How a figure is formatted for people.

    Attributes:
        label: its name; may be empty.
        unit: follows the number; may be empty.
        decimals: number of decimals.
    """

    label: str
    unit: str = ""
    decimals: int = 3

    def text(self, value: float) -> str:
        """For example "top-1 81.25 %"."""
        return " ".join(filter(None, (self.label, f"{value:.{self.decimals}f}", self.unit)))


class StepOutput(NamedTuple):
    """The result of a task's forward pass for one micro-batch.

    Attributes:
        loss: a scalar to differentiate, the mean over the micro-batch.
        sums: figures by name, summed over the micro-batch: detached scalars or plain numbers. The
            loop adds those of all micro-batches, processes and steps. The names are always the
            same and include "loss".
    """

    loss: Tensor
    sums: Mapping[str, Tensor | float]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The result of validation after an epoch.

    Attributes:
        figures: by name; logged as `val_NAME`.
        details: other results, for the task's report.
    """

    figures: dict[str, float]
    details: Any = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a training.

    Attributes:
        step, steps: the step, counted from 0, and the steps of the whole training.
        epoch, epochs: the step's epoch, counted from 0, and the epochs of the training.
        figures: means over the step's examples by name, as `Task.means` returns them.
        formats: format of each of `figures`.
        learning_rate: of the step.
        examples: number of examples, over all devices.
        unit: the name of examples, in the plural.
        seconds: duration of the step.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    figures: Mapping[str, float]
    formats: Mapping[str, Figure]
    learning_rate: float
    examples: int
    unit: str
    seconds: float

    def diverged(self, rule: str) -> InputError:
        """The error for a loss that breaks `rule`, such as "stay finite"."""
        return InputError(
            f"the loss must {rule}, got {self.figures['loss']:.4g} at step {self.step} with "
            f"learning rate {self.learning_rate:.4g}; lower learning_rate, raise warmup_epochs, "
            "set clip_norm or use precision fp32"
        )


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A finished epoch, with its validation.

    Attributes:
        epoch, epochs: the epoch, counted from 0, and the epochs of the training.
        line: its line of the log.
        text: its figures for people, on one line.
    """

    epoch: int
    epochs: int
    line: Mapping[str, Any]
    text: str


class Task(ABC, Generic[Batch]):
    """A training task: batches, loss, figures and the result.

    The loop does the rest: steps, gradient accumulation, EMA, precision, several processes,
    checkpoints, logs. Every process has its own task object, with the same data. Random choices of
    a task must come from torch's generator, which the loop seeds before each step, or from the
    recipe's seed.

    Attributes:
        name: of the task, in messages and checkpoints.
        unit: the name of examples, in the plural.
        formats: format of each figure, by name; "loss" is among them.
        best: name of the validation figure by which epochs are compared; the best epoch is kept in
            `best.safetensors`. None if there is none.
        higher_is_better: whether a higher value of `best` is better.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = "examples"
    formats: ClassVar[Mapping[str, Figure]] = {"loss": Figure(label="loss")}
    best: ClassVar[str | None] = None
    higher_is_better: ClassVar[bool] = True

    # Methods that each task must implement.

    @property
    @abstractmethod
    def examples(self) -> int:
        """Number of training examples."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Plain values that must be the same to resume a training, besides the recipe."""

    @abstractmethod
    def batches(self, run: Run, epoch: int, first_step: int) -> Iterable[Batch]:
        """The micro-batches of this process from `first_step` of `epoch` on.

        Each step has `run.accumulation` micro-batches of `run.batch_per_device` examples. An
        incomplete last step is left out.
        """

    @abstractmethod
    def forward(self, network: Callable[..., Any], batch: Batch, run: Run) -> StepOutput:
        """Compute the loss of one micro-batch.

        Args:
            network: in training mode; computes in the recipe's precision.
        """

    @abstractmethod
    def measure(
        self, network: nn.Module, run: Run, on_measured: Callable[[int, int], None]
    ) -> Measurement:
        """Measure a network; the result is the same in every process.

        Args:
            network: in evaluation mode, with weights rounded as they will be in the file.
            on_measured: call it with the number of newly measured examples and the total of this
                process; it raises if the training must stop.
        """

    # Methods with defaults.

    @property
    def unread(self) -> dict[str, str]:
        """Recipe fields that have no effect for this task, with the fix for each.

        `check` refuses other values than those of the recipes `plain` and `finetune`.
        """
        return {}

    def check(self, run: Run) -> None:
        """Raise an `InputError` if data and recipe do not work together, before training starts.

        Overrides must call this method.

        Args:
            run: with the rounded batch size (see `Run.with_real_batch`).
        """
        usual = [load_recipe(name, task=run.recipe.task) for name in ("plain", "finetune")]
        for name, fix in self.unread.items():
            value = getattr(run.recipe, name)
            if value not in [getattr(recipe, name) for recipe in usual]:
                raise InputError(f"{name} does nothing for {self.name}, got {value!r}: {fix}")

    def prepare(self, network: nn.Module, recipe: Recipe) -> None:
        """Check that `network` fits, and freeze layers. Overrides must call this method."""
        thaw(network)  # an earlier training may have frozen layers
        freeze_stages(network, recipe.frozen_stages)
        if recipe.frozen_batch_norm:
            freeze_batch_norms(network)

    def begin_epoch(self, network: nn.Module, epoch: int, recipe: Recipe) -> None:
        """Update the network's settings that change with the epoch."""

    def means(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        """The figures to log, from sums over `examples` examples."""
        return {name: value / examples for name, value in sums.items()}

    def watch(self, step: Step, sums: Mapping[str, float], run: Run) -> None:
        """Raise an `InputError` if the training should stop.

        Args:
            step: the last step.
            sums: its sums over all processes, so that all processes raise together.
        """

    def end_epoch(self, epoch: int, run: Run) -> dict[str, float]:  # noqa: ARG002
        """More figures for the log, after validation; called in every process."""
        return {}

    def fold(self, network: nn.Module) -> None:
        """Turn a trained network, in place, into the one that is measured and saved.

        Folds layers that exist only in training into others. By default nothing changes.
        """

    def metadata(
        self,
        run: Run,  # noqa: ARG002
        measured: Measurement | None,  # noqa: ARG002
    ) -> ModelMetadata | None:
        """Metadata of the resulting file; `measured` is None for a checkpoint."""
        return None

    def write_files(self, folder: Path) -> None:
        """Write more files whenever a checkpoint is saved; called in the first process."""

    def report(self, run: Run, measured: Measurement) -> Report:  # noqa: ARG002
        """The task's part of the report."""
        return Report(title=self.name)

    def summary(self, measured: Measurement) -> str:
        """The result in one line."""
        return figures_text(self.formats, measured.figures)

    def state_dict(self) -> dict[str, Any]:
        """Plain values that the task needs to resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""


def figures_text(
    formats: Mapping[str, Figure], figures: Mapping[str, float], separator: str = ", "
) -> str:
    """The figures that have a format, as text, in the order of formats."""
    shown = [name for name in formats if name in figures]
    return separator.join(formats[name].text(figures[name]) for name in shown)


def epoch_text(
    task: Task[Any], facts: Mapping[str, float], train_loss: float, measured: Mapping[str, float]
) -> str:
    """An epoch as a line of text: facts of `Task.end_epoch`, losses, validation figures."""
    loss = task.formats["loss"]
    others = {name: value for name, value in measured.items() if name != "loss"}
    parts = [
        figures_text(task.formats, facts, "  "),
        loss.text(train_loss),
        f"val {replace(loss, label='').text(measured['loss'])}" if "loss" in measured else "",
        figures_text(task.formats, others, "  "),
    ]
    return "  ".join(filter(None, parts))
