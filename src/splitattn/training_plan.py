"""Resolves the arguments of `train` without PyTorch, whose import takes seconds."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast, get_args

from splitattn.data.folds import Fold, split_off
from splitattn.data.labeled import LabeledImages, warn_of_shared_images
from splitattn.data.sources import has_several_labels, is_downloaded, open_data
from splitattn.data.splits import MissingSplitError, split_of
from splitattn.dense.annotated import AnnotatedImages, check_same_classes
from splitattn.dense.masks import MaskedImages, is_masked, open_masked
from splitattn.dense.open import annotation_format, open_annotated
from splitattn.distributed import restarted
from splitattn.errors import InputError, check_choice, check_path
from splitattn.files import check_can_make_folder, is_file, is_folder
from splitattn.libraries import require
from splitattn.training.output import checkpoint_in, in_use
from splitattn.training.recipe_files import default_model, load_recipe
from splitattn.training.recipes import (
    DetectionHeadName,
    HeadName,
    Recipe,
    SegmentationHeadName,
    TaskName,
)
from splitattn.training.teacher_name import check_teacher
from splitattn.weights.catalogue import named
from splitattn.weights.hub import is_reference
from splitattn.weights.resolve import resolve

logger = logging.getLogger(__name__)

# The heads of each task, the default first.
_HEADS: dict[TaskName, tuple[str, ...]] = {
    "detection": get_args(DetectionHeadName),
    "segmentation": get_args(SegmentationHeadName),
}


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """A data set as a person names it. Its images are opened once, when they are first asked for.

    Attributes:
        data: the data set, as `open_data` takes it.
        output: where the result is written.
        class_names: a text file that names its classes, or None.
        new_classifier: the classifier of the weights to start from is not kept.
        fold: the part of the training images to validate on, or None for its own split.
        seed: chooses the images to validate on if the data set has no split for that.
    """

    data: str
    output: Path
    class_names: str | Path | None = None
    new_classifier: bool = False
    fold: Fold | None = None
    seed: int = 0

    @cached_property
    def labeled(self) -> tuple[LabeledImages, LabeledImages]:
        """Images with labels, to train on and to validate on.

        Raises:
            DataError: the data set cannot be opened.
            InputError: the output would become a part of it.
        """
        train = open_data(self.data, "train", self.class_names)
        self.check_apart([train.origin])
        if self.fold:
            return split_off(train, self.fold, seed=self.seed)
        try:
            val = open_data(self.data, "val", self.class_names)
        except MissingSplitError:
            val = train
        self.check_apart([val.origin])
        if val.origin != train.origin:
            warn_of_shared_images(train, val)
            return train, val
        logger.warning("no validation split in %s: validating on a fifth of each class", self.data)
        return split_off(train, Fold(number=1, of=5), seed=self.seed)

    @cached_property
    def annotated(self) -> tuple[AnnotatedImages, AnnotatedImages]:
        """Images with annotated objects, to train on and to validate on; raises as `labeled`."""
        train = open_annotated(self.data, "train")
        val = check_same_classes(train, open_annotated(self.data, "val"))
        self.check_apart({image.parent for image in (*train.images, *val.images)})
        labels = {int(label) for each in train.objects for label in each.labels[~each.crowd]}
        _warn_of_absent(train.origin, train.classes, labels, "objects")
        return train, val

    @cached_property
    def masked(self) -> tuple[MaskedImages, MaskedImages]:
        """Images with masks, to train on and to validate on; raises as `labeled`."""
        train, val = open_masked(self.data, "train"), open_masked(self.data, "val")
        self.check_apart({image.parent for image in (*train.images, *val.images)})
        labels = {label for label, count in enumerate(train.pixels.sum(0)) if count}
        _warn_of_absent(train.origin, train.classes, labels, "pixels")
        return train, val

    def check_apart(self, holding: Iterable[str | Path]) -> None:
        """Raise unless the output is apart from the data set, whose images are in `holding`.

        Raises:
            InputError: it is the data set's folder, lies among its images, or looks like a split.
        """
        place, whole = self.output.resolve(), Path(self.data).resolve()
        folders = {Path(folder).resolve() for folder in holding if is_folder(folder)}
        split = place.parent == whole and split_of(place.name)
        if split or place == whole or not folders.isdisjoint((place, *place.parents)):
            raise InputError(
                f"output must be a folder outside the data set, got {self.output}, which would be "
                "taken for a part of it"
            )


def _warn_of_absent(origin: str, classes: Sequence[str], labels: set[int], what: str) -> None:
    """Warn of classes without training images. If there are no labels at all, the task raises."""
    absent = [name for label, name in enumerate(classes) if label not in labels]
    if absent and labels:
        some = ", ".join(map(repr, absent[:5])) + (", ..." if len(absent) > 5 else "")
        logger.warning("no %s in %s are of %s: they will not be found", what, origin, some)


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What is trained, on what, and how.

    Attributes:
        model: our name of the architecture.
        named_model: what a person called it, or None; such a name may hold a tag of weights.
        weights: what to start from, or None if nothing is named.
        recipe: how. Detection and segmentation have a head in it.
        dataset: on what.
    """

    model: str
    named_model: str | None
    weights: str | Path | None
    recipe: Recipe
    dataset: TrainingData


def plan_training(
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
    batch_per_device: int | None = None,
    new_output: bool = False,
) -> TrainingPlan:
    """Check the arguments of `splitattn.train` and resolve them into a plan.

    The data set is opened too, unless it may have to be downloaded or needs a teacher's classes.

    Args:
        new_output: refuse an output folder with a training in it.

    Raises:
        InputError, DataError, WeightsError: as `splitattn.train`.
    """
    check_path("data", data)
    check_path("output", output)
    if is_file(output):
        raise InputError(f"output must be a folder, got {output}, a file")
    check_can_make_folder(Path(output), "output must be a folder to write to, got")
    # torchrun's restarted processes find their own checkpoint there, as the loop then checks.
    if new_output and not restarted() and is_file(checkpoint_in(Path(output))):
        raise in_use(Path(output))
    if model is not None and is_reference(model):
        if weights is not None:
            resolve(model, weights)  # raises: two weights are named
        model, weights = None, model
    name = _name(model, weights)  # wrong names first of all
    chosen = load_recipe(recipe, overrides, model=name, task=_task(data, head))
    if batch_per_device is not None:
        chosen = replace(chosen, batch_per_device=batch_per_device)
    if heads := _HEADS.get(chosen.task):
        head = head or chosen.head or heads[0]
        check_choice("head", head, heads)
        chosen = replace(chosen, head=cast("HeadName", head))
    part = None if fold is None else Fold.parse(fold)
    if part and chosen.task not in ("classification", "multi-label"):
        raise InputError(f"--fold is for classification, got {part} for {chosen.task}")
    if class_names is not None and chosen.task in _HEADS:
        raise InputError(
            f"--class-names is for data that names no classes, got {class_names} for "
            f"{chosen.task}: leave it out"
        )
    dataset = TrainingData(
        data=str(data),
        output=Path(output),
        class_names=class_names,
        new_classifier=new_classifier,
        fold=part,
        seed=chosen.seed,
    )
    if chosen.task == "distillation":
        check_teacher(chosen.teacher, chosen.imitation)
    _open(dataset, chosen.task)
    return TrainingPlan(
        model=name or default_model(chosen),
        named_model=model,
        weights=weights,
        recipe=chosen,
        dataset=dataset,
    )


def _task(data: str | Path, head: str | None) -> TaskName:
    """What is learned from the data, unless a recipe says it."""
    if head is not None:
        check_choice("head", head, [name for heads in _HEADS.values() for name in heads])
        return next(task for task, heads in _HEADS.items() if head in heads)
    if annotation_format(data):
        return "detection"
    if is_masked(data):
        return "segmentation"
    return "multi-label" if has_several_labels(data) else "classification"


def _name(model: str | None, weights: str | Path | None) -> str | None:
    """Our name of the model, or None if neither it nor weights are named."""
    if model is not None:
        return named(model)[0]
    return None if weights is None else resolve(None, weights).model


def _open(dataset: TrainingData, task: TaskName) -> None:
    """Open the data set, unless that is for later, and check what its task needs."""
    if task == "detection":
        require("training a detector", "faster_coco_eval", "torchvision")
    elif task == "segmentation":
        require("training a segmenter", "torchvision")
    if is_downloaded(dataset.data):
        return  # by one process, before the others
    if task in ("classification", "multi-label"):
        _ = dataset.labeled
    elif task == "detection":
        _ = dataset.annotated
    elif task == "segmentation":
        _ = dataset.masked
