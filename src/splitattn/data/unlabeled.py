"""Images with or without labels, for distillation from a teacher."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from splitattn.data.class_names import match
from splitattn.data.folders import folders_in
from splitattn.data.folds import subset
from splitattn.data.labeled import LabeledImages, with_classes_of_model
from splitattn.data.parquet import open_unlabeled_parquet
from splitattn.data.sources import open_data, parquet_shards
from splitattn.data.splits import (
    MissingSplitError,
    called,
    check_one,
    split_of,
    warn_of_stand_in,
)
from splitattn.errors import DataError
from splitattn.files import expanded, is_folder
from splitattn.images.paths import expand

# The validation split of data without one: one image in 20, but at most 5,000.
_EVERY, _MOST_HELD_OUT = 20, 5000


def open_for_teacher(
    data: str, classes: tuple[str, ...], class_names: str | Path | None = None, *, seed: int
) -> tuple[LabeledImages, LabeledImages]:
    """Open the training and validation images of `data`, with or without labels.

    Without a validation split, `seed` draws one image in twenty, at most 5,000, for validation.

    Args:
        data: as in `open_data`, or any folder of images at any depth, or Parquet shards without
            labels.
        classes: the teacher's, by output index.
        class_names: see `open_data`.

    Returns:
        Training and validation images. Either both have `classes`, or neither has any, and labels
        mean nothing.

    Raises:
        DataError: there are no images.
    """
    train = _open(data, "train", classes, class_names)
    try:
        val = _open(data, "val", classes, class_names)
    except MissingSplitError:
        val = train
    if train.origin == val.origin:
        train, val = _divided(train, seed)
    if train.classes != val.classes:
        train, val = _without_labels(train), _without_labels(val)
    return train, val


def _open(
    data: str, split: str, classes: tuple[str, ...], class_names: str | Path | None
) -> LabeledImages:
    try:
        images = open_data(data, split, class_names)
    except DataError:
        if (found := _without_looking_for_labels(data, split)) is None:
            raise
        return found
    if images.label_sets is None and _are_known(images.classes, classes):
        return with_classes_of_model(images, classes)
    return _without_looking_for_labels(data, split) or _without_labels(images)


def _are_known(names: tuple[str, ...], classes: tuple[str, ...]) -> bool:
    """Whether the data's classes are the teacher's by name; numbers and order do not count."""
    try:
        return match(names, classes).how in ("name", "lemma", "wordnet")
    except DataError:
        return False


def _without_looking_for_labels(data: str, split: str) -> LabeledImages | None:
    """Images without labels, or None if this kind of `data` always has labels."""
    try:
        root = expanded(data)
        if shards := parquet_shards(root):
            return open_unlabeled_parquet(shards, split)
        return _images_below(root, split) if is_folder(root) else None
    except OSError:  # no permission, or an invalid file name
        return None


def _images_below(root: Path, split: str) -> LabeledImages | None:
    """The images of `split` if all folders in `root` are named like splits, otherwise all."""
    folders = folders_in(root)
    splits = folders if all(map(split_of, folders)) else []
    found = called(splits, split) or called(splits, "train")
    check_one(found, split)
    if found:
        warn_of_stand_in(root, split, found[0])
    folder = str(root / found[0] if found else root)
    paths = list(expand([folder]))
    if paths == [folder]:
        return None
    return LabeledImages(
        origin=folder, classes=(), images=paths, labels=[0] * len(paths), names=paths
    )


def _without_labels(images: LabeledImages) -> LabeledImages:
    return replace(images, classes=(), labels=[0] * len(images), label_sets=None)


def _divided(images: LabeledImages, seed: int) -> tuple[LabeledImages, LabeledImages]:
    order = np.random.default_rng(seed).permutation(len(images))
    held_out = min(-(-len(images) // _EVERY), _MOST_HELD_OUT)
    val, train = sorted(order[:held_out].tolist()), sorted(order[held_out:].tolist())
    return (
        subset(images, train, "training part"),
        subset(images, val, "validation part"),
    )
