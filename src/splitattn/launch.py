"""`train` in one call: builds the network, the data and the task from their names."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splitattn import distributed
from splitattn.create import create_model
from splitattn.data.class_names import are_unnamed, match
from splitattn.data.unlabeled import open_for_teacher
from splitattn.dense.annotated import with_outlines
from splitattn.dense.detection import Detection, Instances
from splitattn.dense.detectors import (
    create_detector,
    find_head,
)
from splitattn.dense.segmentation import Segmentation
from splitattn.dense.segmenters import (
    create_segmenter,
    find_output_stride,
)
from splitattn.engines.pytorch import choose_device
from splitattn.errors import DataError, InputError, check_callable
from splitattn.opening import TASK, task_of
from splitattn.preprocessing import Preprocessing
from splitattn.processes import cores_per_process
from splitattn.teachers import open_teacher
from splitattn.training import loop
from splitattn.training.classification import Classification
from splitattn.training.distillation import Distillation
from splitattn.training.image_task import ImageTask
from splitattn.training.log import Logger, check_loggers
from splitattn.training.multi_label import MultiLabel
from splitattn.training.range_test import RangeTest, range_test
from splitattn.training.recipes import Recipe, TaskName
from splitattn.training.run import Run
from splitattn.training.task import Epoch, Step, Task
from splitattn.training_plan import TrainingData, TrainingPlan, plan_training
from splitattn.weights.catalogue import find_entry, named
from splitattn.weights.metadata import read_metadata
from splitattn.weights.resolve import resolve

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training measured and where it wrote.

    Attributes:
        output: the folder; pass it as `weights=` to use the result.
        figures: what was measured after the last epoch, by name: for classification "loss" in
            nats, "top1" and "top5" in percent, or where images may have several labels "loss",
            "map" and "f1"; for distillation "agreement" with the teacher in
            percent, and "top1" if there are labels.
        summary: the same in one line.
        details: everything else that was measured: an `Evaluation`.
    """

    output: Path
    figures: dict[str, float]
    summary: str
    details: Any

    @property
    def weights(self) -> Path:
        """The weights after the last epoch."""
        return self.output / "model.safetensors"

    @property
    def best_weights(self) -> Path:
        """The weights after the best epoch, for tasks with a figure that decides."""
        return self.output / "best.safetensors"

    @property
    def report(self) -> Path:
        """The page with curves, figures and mistakes."""
        return self.output / "report.html"


def train(
    data: str | Path,
    output: str | Path,
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    head: str | None = None,
    recipe: str = "finetune",
    overrides: Iterable[str] = (),
    class_names: str | Path | None = None,
    new_classifier: bool = False,
    fold: str | None = None,
    resume: bool = False,
    device: str = "auto",
    workers: int | None = None,
    batch_per_device: int | None = None,
    checkpoint_minutes: float = 5.0,
    on_step: Callable[[Step], None] = lambda _: None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    on_measured: Callable[[int, int], None] = lambda _, __: None,
    loggers: Iterable[Logger] = (),
) -> TrainingResult:
    """Train a network on a data set.

    `training.loop.train` says what is written into `output`. Ctrl-C and SIGTERM save a checkpoint
    and end the training. If `torchrun` started several processes, each of them calls this with the
    same arguments.

    Args:
        data: a folder with `train/` and `val/`, Parquet shards, or `torchvision:NAME` (see
            `open_data`).
        output: folder for the result: a new one unless `resume`.
        model: name of the architecture; None takes that of the weights, or else the embedded model
            if the recipe starts from weights and resnest50 if not.
        weights: what to start from: a tag of the catalogue, a file, a folder or `hf-hub:NAME`. None
            takes the model's default weights if the recipe starts from weights (`pretrained`, as
            `finetune` does), or else random ones. Mean, deviation, filter and crop that the recipe
            leaves open are then those of the weights.
        head: of a detector, as in `create_detector`, for images with annotated objects, which
            then default to "fcos"; see `dense.open.open_annotated` for their formats. Or of a
            segmenter, as in `create_segmenter`, for images with masks, which default to "fpn"; see
            `dense.masks.open_masked`.
        recipe: plain, paper, modern, finetune, tiny, distill, paper_coco, paper_ade20k, or a TOML
            file. `distill` needs an override `teacher=...` (see `open_teacher`), and `data` needs
            no labels.
        overrides: changes of the recipe, each `key=value`.
        class_names: a text file that names the classes, one a line, in label order.
        new_classifier: start with a random classifier even if the weights have one for as many
            classes.
        fold: "K/N": of N equal parts of each class's training images, validate on part K and train
            on the others. None validates on the data set's own split, or on 1/5 if it has none.
        resume: continue the training in `output`, if there is one; it then needs no weights. The
            recipe may have more epochs than before.
        device: "auto" (CUDA if there is any, else the CPU), or a device as PyTorch names it.
        workers: processes that decode images; None chooses from the CPU count.
        batch_per_device: most images that a device takes at once. Larger batches are accumulated.
            None takes the recipe's.
        checkpoint_minutes: time between checkpoints within an epoch.
        on_step: called after each step.
        on_epoch: called after each epoch.
        on_measured: called while an epoch is measured, with how many more examples are done, and
            how many there are.
        loggers: get each line of the log, such as experiment trackers (`training.log`).

    Raises:
        InputError: an argument cannot be used, or see `training.loop.train`.
        DataError: the data set cannot be opened or does not fit the recipe.
        WeightsError: the weights cannot be had or do not fit the model.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, with the state saved unless
            another process has ended.
    """
    for name, told in (("on_step", on_step), ("on_epoch", on_epoch), ("on_measured", on_measured)):
        check_callable(name, told)
    loggers = check_loggers(loggers)
    plan = plan_training(
        data,
        output,
        model=model,
        weights=weights,
        head=head,
        recipe=recipe,
        overrides=overrides,
        class_names=class_names,
        new_classifier=new_classifier,
        fold=fold,
        batch_per_device=batch_per_device,
        new_output=not resume,
    )
    return train_plan(
        plan,
        resume=resume,
        device=device,
        workers=workers,
        checkpoint_minutes=checkpoint_minutes,
        on_step=on_step,
        on_epoch=on_epoch,
        on_measured=on_measured,
        loggers=loggers,
    )


def train_plan(
    plan: TrainingPlan,
    *,
    resume: bool = False,
    device: str = "auto",
    workers: int | None = None,
    checkpoint_minutes: float = 5.0,
    on_step: Callable[[Step], None] = lambda _: None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    on_measured: Callable[[int, int], None] = lambda _, __: None,
    loggers: Iterable[Logger] = (),
) -> TrainingResult:
    """Train as planned; see `train`."""
    with _prepared(
        plan, device=device, workers=workers, resume=resume, checkpoint_minutes=checkpoint_minutes
    ) as (network, task, run):
        measured = loop.train(
            network,
            task,
            run,
            resume=resume,
            on_step=on_step,
            on_epoch=on_epoch,
            on_measured=on_measured,
            loggers=loggers,
        )
    return TrainingResult(
        output=run.output,
        figures=measured.figures,
        summary=task.summary(measured),
        details=measured.details,
    )


def find_learning_rate(
    data: str | Path,
    output: str | Path,
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    head: str | None = None,
    recipe: str = "finetune",
    overrides: Iterable[str] = (),
    class_names: str | Path | None = None,
    new_classifier: bool = False,
    fold: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    batch_per_device: int | None = None,
    on_step: Callable[[Step], None] = lambda _: None,
) -> RangeTest:
    """Find a learning rate for `train`, with the arguments of `train`.

    Trains for at most 100 steps at rising rates. `output` gets `learning_rate.png` and
    `learning_rate.csv`; weights are not kept.

    Args:
        on_step: called after each step.

    Returns:
        Learning rates and losses; its `suggestion` is for `overrides=["learning_rate=..."]`.

    Raises:
        InputError, DataError, WeightsError: see `train`.
    """
    check_callable("on_step", on_step)
    plan = plan_training(
        data,
        output,
        model=model,
        weights=weights,
        head=head,
        recipe=recipe,
        overrides=overrides,
        class_names=class_names,
        new_classifier=new_classifier,
        fold=fold,
        batch_per_device=batch_per_device,
    )
    return find_rate_of_plan(plan, device=device, workers=workers, on_step=on_step)


def find_rate_of_plan(
    plan: TrainingPlan,
    *,
    device: str = "auto",
    workers: int | None = None,
    on_step: Callable[[Step], None] = lambda _: None,
) -> RangeTest:
    """Find a learning rate as planned; see `find_learning_rate`."""
    with _prepared(plan, device=device, workers=workers) as (network, task, run):
        return range_test(network, task, run, on_step=on_step)


@contextmanager
def _prepared(
    plan: TrainingPlan,
    *,
    device: str,
    workers: int | None,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
) -> Iterator[tuple[nn.Module, Task[Any], Run]]:
    """The network, the task and the run of a plan."""
    chosen, name = plan.recipe, plan.model
    here = choose_device(distributed.own_device(device))
    prepare = TASKS[chosen.task]
    with distributed.processes(here):
        with distributed.first_process_first():  # it may download what the others then find
            setup = prepare(plan.dataset, name, chosen, here)
        task = setup.task
        run = Run(
            recipe=chosen,
            output=plan.dataset.output,
            device=here,
            workers=cores_per_process() if workers is None else workers,
            batch_per_device=chosen.batch_per_device,
            checkpoint_minutes=checkpoint_minutes,
        )
        resumes = resume and run.checkpoint.exists()
        # A checkpoint has all weights.
        start = None if resumes else _start(plan.named_model or name, plan.weights, chosen)
        loop.check(task, run)
        with distributed.first_process_first():
            expected, whose = chosen.preprocessing, "the weights to start from expect"
            if resumes and (began := read_metadata(run.checkpoint)):
                expected = began.preprocessing
            elif start is not None:
                found = resolve(name, start)
                expected = found.preprocessing
            if setup.preprocessing is not None:
                expected, whose = setup.preprocessing, "the teacher expects"
            filled = chosen.starting_from(expected, whose, unread=task.unread)
            run = replace(run, recipe=filled)
            torch.manual_seed(chosen.seed)
            network = setup.build(start)
        yield network, task, run


def _start(model: str, weights: str | Path | None, recipe: Recipe) -> str | Path | None:
    """The weights to start from, or None for random ones.

    Raises:
        InputError: the recipe would freeze random weights.
        WeightsError: the recipe starts from weights, and the model has none.
    """
    if weights is not None:
        return weights
    if recipe.pretrained:
        return find_entry(model).tag
    if recipe.frozen_stages or recipe.frozen_batch_norm:
        name, off = ("frozen_stages", 0) if recipe.frozen_stages else ("frozen_batch_norm", False)
        raise InputError(
            f"{name} must be {off} without weights, got {getattr(recipe, name)}: random layers "
            "would stay random; add --weights"
        )
    if named(model)[1]:
        logger.warning("%s starts from random weights: the recipe takes none; add --weights", model)
    return None


@dataclass(frozen=True, kw_only=True)
class TaskSetup:
    """A task, and how to build its network.

    Attributes:
        task: what is learned.
        build: makes the network from weights, or with None at random.
        preprocessing: what the recipe leaves open of mean, deviation, filter and crop; None takes
            it from the weights to start from.
    """

    task: Task[Any]
    build: Callable[[str | Path | None], nn.Module]
    preprocessing: Preprocessing | None = None


# From data set, model, recipe and device.
Prepare = Callable[[TrainingData, str, Recipe, torch.device], TaskSetup]


def _classification(
    dataset: TrainingData, model: str, recipe: Recipe, _: torch.device
) -> TaskSetup:
    train, val = dataset.labeled
    if (train.label_sets is None) != (recipe.task == "classification"):
        labels = "one label" if train.label_sets is None else "several labels"
        raise DataError(
            f"task must fit the labels, got {recipe.task} for {dataset.data} with {labels} for "
            "each image: leave it out"
        )
    kind = Classification if train.label_sets is None else MultiLabel
    task = kind(model=model, train=train, val=val)
    return TaskSetup(task=task, build=partial(_build, task, dataset, recipe))


def _distillation(
    dataset: TrainingData, model: str, recipe: Recipe, device: torch.device
) -> TaskSetup:
    teacher = open_teacher(recipe.teacher, imitation=recipe.imitation, device=str(device))
    train, val = open_for_teacher(
        dataset.data, teacher.classes, dataset.class_names, seed=recipe.seed
    )
    # Images without labels may be anywhere in the folder.
    dataset.check_apart([dataset.data])
    task = Distillation(
        model=model,
        train=train,
        val=val,
        teacher=teacher,
        data=f"{Path(dataset.data).name or dataset.data}, {len(train)} images",
    )
    build = partial(_build, task, dataset, recipe)
    return TaskSetup(task=task, build=build, preprocessing=teacher.preprocessing)


def _build(
    task: ImageTask[Any], dataset: TrainingData, recipe: Recipe, weights: str | Path | None
) -> nn.Module:
    found = None if weights is None else resolve(task.model, weights)
    trained = (found and found.classes) or ()
    # A detector's or segmenter's weights give the backbone alone.
    if found and trained and not dataset.new_classifier and task_of(found.path) == TASK:
        _compare_classes(task.classes, trained)
    return create_model(
        task.model,
        weights=found.path if found else None,
        num_classes=len(task.classes),
        # Training for another number of classes always needs a new classifier: no warning.
        new_classifier=dataset.new_classifier or len(trained) not in (0, len(task.classes)),
        **recipe.network_arguments(),
    )


def _detection(dataset: TrainingData, model: str, recipe: Recipe, _: torch.device) -> TaskSetup:
    train, val = dataset.annotated
    head = str(recipe.head)
    task: Detection
    if find_head(head).masks:
        task = Instances(model=model, head=head, train=with_outlines(train), val=with_outlines(val))
    else:
        task = Detection(model=model, head=head, train=train, val=val)

    def build(weights: str | Path | None) -> nn.Module:
        found = None if weights is None else resolve(model, weights)
        return create_detector(
            model,
            head=head,
            weights=found.path if found else None,
            num_classes=len(train.classes),
            channels=recipe.head_channels,
            box_head=recipe.box_head,
            new_head=dataset.new_classifier or bool(found and found.classes != train.classes),
        )

    return TaskSetup(task=task, build=build)


def _segmentation(dataset: TrainingData, model: str, recipe: Recipe, _: torch.device) -> TaskSetup:
    train, val = dataset.masked
    head = str(recipe.head)

    def build(weights: str | Path | None) -> nn.Module:
        found = None if weights is None else resolve(model, weights)
        return create_segmenter(
            model,
            head=head,
            weights=found.path if found else None,
            num_classes=len(train.classes),
            channels=recipe.head_channels,
            output_stride=find_output_stride(head),
            new_head=dataset.new_classifier or bool(found and found.classes != train.classes),
            auxiliary=recipe.auxiliary_weight > 0,
        )

    task = Segmentation(model=model, head=head, train=train, val=val)
    return TaskSetup(task=task, build=build)


def _compare_classes(classes: tuple[str, ...], trained: tuple[str, ...]) -> None:
    """Warn if the weights' classifier has as many classes, but others or reordered."""
    if len(classes) != len(trained) or are_unnamed(trained):
        return  # the classifier is new anyway, or nothing is known
    try:
        found = match(classes, trained)
        same = found.how != "order" and found.indices == tuple(range(len(trained)))
    except DataError:
        same = False
    if not same:
        differing = next(pair for pair in zip(classes, trained, strict=True) if len({*pair}) > 1)
        logger.warning(
            "the weights' classifier is for other classes, or in another order (%r, the data set "
            "has %r): it is kept as a start; --new-classifier starts with a random one",
            *reversed(differing),
        )


# A new task is one row here, one name in `recipes.TaskName` and one module with its `Task`.
TASKS: dict[TaskName, Prepare] = {
    "classification": _classification,
    "multi-label": _classification,
    "distillation": _distillation,
    "detection": _detection,
    "segmentation": _segmentation,
}
