"""What the training loop asks of a task. A new task is one subclass of `Task`."""

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
# Fields of a recipe that only distillation reads, and how to have it, for `Task.unread`.
DISTILLATION_FIELDS = dict.fromkeys(
    ("teacher", "imitation", "temperature", "label_weight"), "add --recipe distill"
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """How a figure is written for people.

    Attributes:
        label: what it is called; may be empty.
        unit: what follows the number; may be empty.
        decimals: how many the number has.
    """

    label: str
    unit: str = ""
    decimals: int = 3

    def text(self, value: float) -> str:
        """For example "top-1 81.25 %"."""
        return " ".join(filter(None, (self.label, f"{value:.{self.decimals}f}", self.unit)))


class StepOutput(NamedTuple):
    """What a task computes from one micro-batch.

    Attributes:
        loss: a scalar, the mean over the micro-batch: what is differentiated.
        sums: figures by name, summed over the micro-batch: detached scalars or plain numbers. The
            loop adds those of all micro-batches, processes and steps. The names are always the
            same, and "loss" is among them.
    """

    loss: Tensor
    sums: Mapping[str, Tensor | float]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured after an epoch.

    Attributes:
        figures: by name; logged as `val_NAME`.
        details: whatever else the task measured, for its report.
    """

    figures: dict[str, float]
    details: Any = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a training.

    Attributes:
        step, steps: this step, counted from 0, of how many in the whole training.
        epoch, epochs: the epoch that the step is in, counted from 0, of how many.
        figures: means over the step's examples by name, as `Task.means` gives them.
        formats: how each of `figures` is written.
        learning_rate: of the step.
        examples: how many, over all devices.
        unit: what an example is called, in the plural.
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
    """An epoch that was trained and measured.

    Attributes:
        epoch, epochs: this epoch, counted from 0, of how many.
        line: its line of the log.
        text: its figures for people, on one line.
    """

    epoch: int
    epochs: int
    line: Mapping[str, Any]
    text: str


class Task(ABC, Generic[Batch]):
    """What is learned: batches, a loss, figures, a result.

    The loop does the rest: steps, gradient accumulation, EMA, precision, several processes,
    checkpoints, logs. Every process has a task of its own, with the same data. What a task draws at
    random must follow from torch's generator, which the loop seeds before each step, or from the
    recipe's seed.

    Attributes:
        name: in messages and checkpoints.
        unit: what an example is called, in the plural.
        formats: how figures are written, by name; "loss" is among them.
        best: the figure of a measurement whose best epoch is kept in `best.safetensors`, or None.
        higher_is_better: of that figure.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = "examples"
    formats: ClassVar[Mapping[str, Figure]] = {"loss": Figure(label="loss")}
    best: ClassVar[str | None] = None
    higher_is_better: ClassVar[bool] = True

    # Each task answers these.

    @property
    @abstractmethod
    def examples(self) -> int:
        """How many there are to train on."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What must be the same to resume a training, besides the recipe: plain values."""

    @abstractmethod
    def batches(self, run: Run, epoch: int, first_step: int) -> Iterable[Batch]:
        """The micro-batches of this process from `first_step` of `epoch` on.

        Each step has `run.accumulation` of them, of `run.batch_per_device` examples each. A last
        step that would not be full is left out.
        """

    @abstractmethod
    def forward(self, network: Callable[..., Any], batch: Batch, run: Run) -> StepOutput:
        """The loss of one micro-batch.

        Args:
            network: the network in training mode; it computes in the recipe's precision.
        """

    @abstractmethod
    def measure(
        self, network: nn.Module, run: Run, on_measured: Callable[[int, int], None]
    ) -> Measurement:
        """Measure a network; the result is the same in every process.

        Args:
            network: in evaluation mode, with the weights as a file will hold them.
            on_measured: to be told how many more examples this process has measured, of how many
                in all; raises if the training shall stop.
        """

    # These have defaults.

    @property
    def unread(self) -> dict[str, str]:
        """Fields of a recipe that change nothing for this task, and what to do instead.

        `check` refuses other values than those of the recipes `plain` and `finetune`.
        """
        return {}

    def check(self, run: Run) -> None:
        """Raise an `InputError` if the data and the recipe cannot work, before anything is spent.

        Overrides call this one.

        Args:
            run: with the batch as it will be (see `Run.with_real_batch`).
        """
        usual = [load_recipe(name, task=run.recipe.task) for name in ("plain", "finetune")]
        for name, fix in self.unread.items():
            value = getattr(run.recipe, name)
            if value not in [getattr(recipe, name) for recipe in usual]:
                raise InputError(f"{name} does nothing for {self.name}, got {value!r}: {fix}")

    def prepare(self, network: nn.Module, recipe: Recipe) -> None:
        """Check that `network` fits, and freeze what stays as it is. Overrides call this one."""
        thaw(network)  # what an earlier training of this network froze
        freeze_stages(network, recipe.frozen_stages)
        if recipe.frozen_batch_norm:
            freeze_batch_norms(network)

    def begin_epoch(self, network: nn.Module, epoch: int, recipe: Recipe) -> None:
        """Set what changes from epoch to epoch."""

    def means(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        """The figures that are logged, from the sums over so many examples."""
        return {name: value / examples for name, value in sums.items()}

    def watch(self, step: Step, sums: Mapping[str, float], run: Run) -> None:
        """Raise an `InputError` if the training should not go on.

        Args:
            step: the step that was done.
            sums: its sums over all processes; so all processes raise together.
        """

    def end_epoch(self, epoch: int, run: Run) -> dict[str, float]:  # noqa: ARG002
        """Further figures for the log, after the epoch was measured; called in every process."""
        return {}

    def fold(self, network: nn.Module) -> None:
        """Turn a trained network, in place, into the one that is measured and saved.

        A task that trains layers which its result does not have folds them in here. By default
        the result is the network as it was trained.
        """

    def metadata(
        self,
        run: Run,  # noqa: ARG002
        measured: Measurement | None,  # noqa: ARG002
    ) -> ModelMetadata | None:
        """What the resulting file says about itself; nothing was measured yet in a checkpoint."""
        return None

    def write_files(self, folder: Path) -> None:
        """Write further files, in the first process, whenever a checkpoint is saved."""

    def report(self, measured: Measurement) -> Report:  # noqa: ARG002
        """What the report shows, besides the learning rate and the recipe."""
        return Report(title=self.name)

    def summary(self, measured: Measurement) -> str:
        """The result in one line."""
        return figures_text(self.formats, measured.figures)

    def state_dict(self) -> dict[str, Any]:
        """What the task must remember to resume: plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""


def figures_text(
    formats: Mapping[str, Figure], figures: Mapping[str, float], separator: str = ", "
) -> str:
    """The figures that have a format, in the order of formats."""
    shown = [name for name in formats if name in figures]
    return separator.join(formats[name].text(figures[name]) for name in shown)


def epoch_text(
    task: Task[Any], facts: Mapping[str, float], train_loss: float, measured: Mapping[str, float]
) -> str:
    """An epoch for people: what `Task.end_epoch` gave, the losses, the figures measured."""
    loss = task.formats["loss"]
    others = {name: value for name, value in measured.items() if name != "loss"}
    parts = [
        figures_text(task.formats, facts, "  "),
        loss.text(train_loss),
        f"val {replace(loss, label='').text(measured['loss'])}" if "loss" in measured else "",
        figures_text(task.formats, others, "  "),
    ]
    return "  ".join(filter(None, parts))
