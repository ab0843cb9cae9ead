"""Labeled images, the common form of all kinds of data sets."""

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path, PurePath

from splitattn.data.class_lists import ClassList
from splitattn.data.class_names import Match, are_numbers, are_unnamed, match, match_names, spelled
from splitattn.errors import DataError, ImageError
from splitattn.images.decode import RGB, ImageSource, decode_as

logger = logging.getLogger(__name__)

# The most names that a warning lists.
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of images in a large file; reading one image reads its whole block.

    Attributes:
        starts: index of the first image of each block.
        at_once: how many blocks are kept in memory.
    """

    starts: tuple[int, ...]
    at_once: int


@dataclass(frozen=True, kw_only=True)
class LabeledImages:
    """One split of a data set.

    Attributes:
        origin: where the images were found; two splits with the same origin are the same images.
        part: which of these images were selected; empty for all.
        whole: the `fingerprint` of all images, if only a part was selected.
        label_sets: if an image may have several classes or none, each combination that occurs, as
            ascending indices into `classes`; None if each image has one class.
        classes: names, by label.
        images: sources for `splitattn.images.decode.decode`; nothing is decoded yet.
        labels: index of each image into `classes`, or into `label_sets`.
        names: name of each image in reports and errors.
        blocks: images that must be read together; None if images can be read in any order.
    """

    origin: str
    classes: tuple[str, ...]
    images: Sequence[ImageSource]
    labels: Sequence[int]
    names: Sequence[str]
    blocks: Blocks | None = None
    part: str = ""
    whole: str = ""
    label_sets: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def renamed(self, classes: tuple[str, ...]) -> "LabeledImages":
        """The same images with other class names.

        Raises:
            DataError: there are not as many names as classes, or two are the same.
        """
        if len(classes) != len(self.classes) or len(set(classes)) != len(classes):
            raise DataError(
                f"class names must be {len(self.classes)} different ones, "
                f"got {len(set(classes))} different of {len(classes)}"
            )
        return replace(self, classes=classes)

    def classes_of(self, label: int) -> tuple[int, ...]:
        """Indices of the classes that images with this label have."""
        return (label,) if self.label_sets is None else self.label_sets[label]

    def fingerprint(self) -> str:
        """SHA-256 of file names and labels, in order; folders are ignored."""
        lines = zip(self.names, self.labels, strict=True)
        text = "\n".join(
            f"{' '.join(map(str, self.classes_of(label)))} {PurePath(name).name}"
            for name, label in lines
        )
        return sha256(text.encode(errors="surrogateescape")).hexdigest()


def check_classes_have_images(
    data: LabeledImages, channels: int = RGB, white_level: float | None = None
) -> None:
    """Decode one image of each class; warn of classes without images or with similar names.

    Args:
        channels: of the network.
        white_level: see `Preprocessing`.

    Raises:
        DataError: fewer than two classes have images, or no image of a class can be read.
    """
    by_class = _by_class(data)
    if missing := [name for label, name in enumerate(data.classes) if label not in by_class]:
        shown = ", ".join(map(repr, missing[:_SHOWN]))
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        count = "1 class has" if len(missing) == 1 else f"{len(missing)} classes have"
        where = " outside of the part for validation" if data.part else ""
        logger.warning("%s no training image%s: %s%s", count, where, shown, more)
        if len(by_class) < 2 and data.label_sets is None:
            raise DataError(
                "training needs images of at least two classes, got only those of "
                f"{', '.join(repr(data.classes[label]) for label in by_class)}"
            )
    _warn_of_similar_names(data.classes)
    check_classes_are_readable(data, "training", channels, white_level)


def check_classes_are_readable(
    data: LabeledImages, what: str, channels: int = RGB, white_level: float | None = None
) -> None:
    """Decode one image of each class that has any.

    Args:
        what: the images are for: "training" or "validation".
        channels, white_level: see `check_classes_have_images`.

    Raises:
        DataError: no image of a class can be read.
    """
    # In the order of the data, for sequential reads from the disk.
    for label, indices in _by_class(data).items():
        if problem := _why_unreadable(data, indices, channels, white_level):
            raise DataError(
                f"each class must have {what} images that can be read, got none of "
                f"{len(indices)} for {data.classes[label]!r}; the first: {problem}"
            )


def _by_class(data: LabeledImages) -> dict[int, list[int]]:
    """Indices of the images of each class that has any."""
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(data.labels):
        for each in data.classes_of(label):
            by_class[each].append(index)
    return by_class


def _warn_of_similar_names(classes: Sequence[str]) -> None:
    first: dict[str, str] = {}
    pairs = [(first.setdefault(_plain(name), name), name) for name in classes]
    if similar := [f"{one!r} and {other!r}" for one, other in pairs if one != other]:
        logger.warning(
            "classes whose names differ only in case, spaces, _, - or leading zeros: %s%s; if one "
            "class is meant, give it one name",
            ", ".join(similar[:_SHOWN]),
            f" and {len(similar) - _SHOWN} more" if len(similar) > _SHOWN else "",
        )


def _plain(name: str) -> str:
    """A name without what may differ by mistake; of a number, its value."""
    return str(int(name)) if are_numbers([name]) else spelled(name)


def warn_of_shared_images(train: LabeledImages, val: LabeledImages) -> None:
    """Warn if validation files are also training files, by the same path or through a link."""
    if train.names is not train.images:  # not files: for files, names are the paths
        return
    folder_of = cache(os.path.realpath)

    def place(path: str) -> tuple[str, str]:
        folder, name = os.path.split(path)
        return folder_of(folder), name

    places = {place(path) for path in val.names}
    names = {name for _, name in places}
    trained = {place(path) for path in train.names if os.path.split(path)[1] in names}
    if shared := places & trained:
        logger.warning(
            "%d of %d validation images are also training images, such as %s: validation figures "
            "will be too good",
            len(shared),
            len(places),
            Path(*min(shared)),
        )


def _why_unreadable(
    data: LabeledImages, indices: list[int], channels: int, white_level: float | None
) -> str:
    """The error of the first image, or "" if any of the images can be read."""
    problem = ""
    for index in indices:
        try:
            decode_as(data.images[index], channels, name=data.names[index], white_level=white_level)
        except ImageError as error:
            problem = problem or str(error)
        else:
            return ""
    return problem


def with_classes_of_model(data: LabeledImages, classes: tuple[str, ...]) -> LabeledImages:
    """Give `data` the model's classes, so that its labels are indices of the model's outputs.

    Classes are matched by `class_names.match`. A data set may have only some of the classes.

    Args:
        classes: the model's names by output index; numbers if its outputs have no names.

    Raises:
        DataError: the classes are not the model's.
    """
    found = match(data.classes, classes)
    if found.how == "order":
        if are_unnamed(classes):
            return data
        logger.warning("class names differ from the model's: matched by their order")
    elif found.how == "number" and not are_numbers(classes):
        logger.warning(
            "class names are numbers: matched with the model's outputs, %s is %s",
            data.classes[0],
            classes[found.indices[0]],
        )
    return _relabeled(data, classes, found)


def named(data: LabeledImages, classes: ClassList) -> LabeledImages:
    """Give `data` the classes of a list, in the order of labels.

    If the list has the data set's own names, ids or numbers, its order is the labels' new order,
    and it may have more classes than the data set.

    Raises:
        DataError: names cannot be matched with the data set's.
    """
    try:
        found = _match_list(data.classes, classes)
    except DataError as error:
        if len(classes.names) != len(data.classes):
            raise DataError(
                f"there must be one class name for each of the {len(data.classes)} classes of the "
                f"data set, got {len(classes.names)} in {classes.origin}; list them all, in the "
                "order of labels"
            ) from error
        raise
    if found.how == "number":
        _check_where_numbers_begin(data.classes, classes)
    return _relabeled(data, classes.names, found)


def _check_where_numbers_begin(names: tuple[str, ...], listed: ClassList) -> None:
    """Raise if the class numbers may count from 0 or from 1.

    Folders 1 to 11 and twelve names may lack class 0 or class 12.
    """
    if listed.numbers or are_numbers(listed.names) or len(names) == len(listed.names):
        return
    numbers = [*map(int, names)]
    if 0 not in numbers:
        raise DataError(
            f"class names need numbers if the data has no class 0, got classes {min(numbers)} to "
            f"{max(numbers)} and {len(listed.names)} names in {listed.origin}: begin the first "
            f"line with '0 {listed.names[0]}' or '1 {listed.names[0]}', and number the others too"
        )


def _match_list(names: tuple[str, ...], listed: ClassList) -> Match:
    ids = listed.ids
    if ids and names != listed.names and (by_id := match_names(names, ids)):
        return by_id
    found = match(names, listed.names, listed.numbers)
    if found.how == "order":
        if ids:
            match(names, ids)  # raises if only some are the data set's
        logger.warning(
            "the class names in %s are not those of the data set: matched by their order, %r is "
            "%r; to be sure, begin each name with the data set's own, such as '%s: ...'",
            listed.origin,
            names[0],
            listed.names[0],
            names[0],
        )
    return found


def _relabeled(data: LabeledImages, classes: tuple[str, ...], found: Match) -> LabeledImages:
    if data.label_sets is not None:
        sets = (tuple(sorted(found.indices[each] for each in one)) for one in data.label_sets)
        return replace(data, classes=classes, label_sets=tuple(sets))
    labels = [found.indices[label] for label in data.labels]
    return replace(data, classes=classes, labels=labels)
