"""Data sets that are folders of images, one for each class."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from splitattn.data.class_names import in_order, normal
from splitattn.data.labeled import LabeledImages
from splitattn.data.splits import (
    MissingSplitError,
    called,
    check_is_split,
    check_one,
    split_mentioned_in,
    split_of,
    warn_of_stand_in,
)
from splitattn.errors import DataError, nearest
from splitattn.images.paths import images_below, is_image_name, is_litter, passed_over_text

logger = logging.getLogger(__name__)

# The most folders that can be splits.
_MOST_SPLITS = 3
# The most nested folders of an archive around the data.
_MOST_WRAPPERS = 4
# Names of folders with annotated images, which are not classes.
_PARTS = {
    *("images", "image", "jpegimages", "labels", "label", "annotations", "imagesets"),
    *("masks", "mask", "segmentationclass", "segmentationobject"),
}
_ADVICE = (
    ", only images: sort them into folders, or list them in a CSV file; for boxes or masks, name "
    "the folder with both the images and their annotations"
)
# The most names that a warning lists.
_SHOWN = 5


def open_folder(root: Path, split: str) -> LabeledImages:
    """Open `split` of a folder in ImageFolder layout.

    Raises:
        DataError: the split, class folders or images are missing.
    """
    folder = _split_folder(root, split)
    _warn_of_dangling_links(folder)
    folders = folders_in(folder)
    if not folders:
        pictures = any(is_image_name(path.name) for path in folder.iterdir())
        raise DataError(
            f"the data set must have one folder per class, got none in {folder}"
            + (_ADVICE * pictures)
        )
    if all(map(split_of, folders)) or all(
        split_mentioned_in(name) and folders_in(folder / name) for name in folders
    ):
        raise DataError(
            f"the data set must have one folder per class, got only {', '.join(folders)} in "
            f"{folder}, which are names of splits; name the folder that holds the classes"
        )
    _check_classes_are_apart(folder, folders)
    _warn_of_splits(folder, folders)
    if loose := _images_in(folder):
        _warn_of_loose_images(folder, loose)
    classes = in_order(map(normal, folders))
    index = {name: label for label, name in enumerate(classes)}
    passed_over: Counter[str] = Counter()
    found = {
        name: list(images_below(folder / name, passed_over))
        for name in sorted(folders, key=lambda name: index[normal(name)])
    }
    _check_splits_are_outside(folder, found)
    images = [path for paths in found.values() for path in paths]
    labels = [index[normal(name)] for name, paths in found.items() for _ in paths]
    if passed_over:
        logger.warning("%s: %s", folder, passed_over_text(passed_over))
    if not images:
        raise DataError(f"the data set must hold images, got none in the class folders of {folder}")
    if all(classes[label].lower() in _PARTS for label in set(labels)):
        raise DataError(
            f"the data set must have one folder per class, got only {', '.join(folders)} in "
            f"{folder}, which are not classes; to train a detector add boxes (COCO, VOC, YOLO), to "
            "train a segmenter add masks"
        )
    return LabeledImages(
        origin=str(folder),
        classes=classes,
        images=images,
        labels=labels,
        names=images,
    )


def _split_folder(root: Path, split: str) -> Path:
    """The folder below `root` that holds the classes of `split`, or `root` itself."""
    root = _unwrapped(root)
    folders = folders_in(root)
    splits = _splits_in(root, folders)
    found = called(folders, split)
    # A class may be named like a split ("training" among sports). It then holds images, and there
    # are other classes.
    if not splits and not all(map(split_of, folders)):
        found = [name for name in found if not split_of(name)]
    # The test set of a competition has no labels, so it cannot serve as validation.
    if splits and split_of(split) == "val":
        found = [name for name in found if name in splits or split_of(name) == "val"]
    wanted = called(set(splits.values()), split)
    found = found or [name for name in splits if splits[name] in wanted]
    check_one(found, split)
    if found:
        warn_of_stand_in(root, split, found[0])
        inside = [root, *(root / name for name in folders if split_of(name))]
        places = {*map(os.path.realpath, inside)}
        beside = [
            name
            for name in filter(_may_be_class, folders)
            if os.path.realpath(root / name) not in places and _holds_images(root / name)
        ]
        if beside:
            _warn_of_images_beside(root, tuple(beside))
        return _unwrapped(root / found[0])
    if splits:
        shown = ", ".join(f"{name}/" for name in sorted(splits))
        raise MissingSplitError(
            f"the data set must have a folder {split}/, got {shown} in {root}"
            f"{nearest(split, [*splits])}"
        )
    check_is_split(split)
    return root


def _splits_in(root: Path, folders: list[str]) -> dict[str, str]:
    """The folders in `root` that are splits with class folders, with the split of each.

    If no folder is named like a split, folders with a split in their names count, such as
    `seg_train` and `seg_test`. Two different splits must then have a class in common, since "bullet
    train" may be a class.
    """
    found = {name: split for name in folders if (split := split_of(name))}
    if splits := {name: split for name, split in found.items() if _holds_classes(root / name)}:
        return splits
    found = {name: split for name in folders if (split := split_mentioned_in(name))}
    classes = {name: set(folders_in(_unwrapped(root / name))) for name in found}
    pairs = [(a, b) for a in found for b in found if found[a] < found[b]]
    return found if any(classes[a] & classes[b] for a, b in pairs) else {}


def _holds_classes(folder: Path) -> bool:
    """Whether `folder` has class folders, and not only one that wraps images (`test/test/`)."""
    folders = folders_in(folder)
    return bool(folders) and (folders != [folder.name] or bool(folders_in(folder / folder.name)))


def _unwrapped(folder: Path) -> Path:
    """`folder`, or the folder inside it with the data, if an archive added a level.

    Such levels are `seg_train/seg_train/`, or `archive/images/` with the splits in it.
    """
    path = folder
    for _ in range(_MOST_WRAPPERS):
        folders = folders_in(path)
        if _splits_in(path, folders):
            return path
        if len(folders) != 1:
            break
        path /= folders[0]
    path = folder
    while folders_in(path) == [path.name] and folders_in(path / path.name):
        path /= path.name
    return path


def _check_splits_are_outside(folder: Path, images: Mapping[str, Sequence[str]]) -> None:
    """Raise if splits are inside the classes, `cat/train` and `cat/val`.

    They are if two classes have such folders, even if others have none.

    Args:
        images: paths by the class's folder.
    """
    divided: dict[str, str] = {}
    for name, paths in images.items():
        below = len(os.path.join(folder, name, ""))  # noqa: PTH118
        inner = {path[below:].rpartition(os.sep)[0].partition(os.sep)[0] for path in paths}
        splits = sorted(filter(split_of, inner))
        if len({*map(split_of, splits)}) > 1:
            divided[name] = splits[0]
    if len(divided) >= min(2, len(images)):
        first, split = next(iter(divided.items()))
        raise DataError(
            f"the folders of splits must be around those of classes, as in {split}/{first}, got "
            f"{first}/{split} in {folder}; move them, or list the images in a CSV file with a "
            "column split"
        )


def _check_classes_are_apart(folder: Path, classes: list[str]) -> None:
    """Raise if a link makes two classes share a folder, or if only accents tell two names apart.

    The same accent can be one Unicode character or two.
    """
    places: dict[str, str] = {}
    for name in classes:
        first = places.setdefault(os.path.realpath(folder / name), name)
        if first != name:
            raise DataError(
                f"each class must have a folder of its own, got {first} and {name} in {folder}, "
                "which are one folder; remove the link"
            )
    composed: dict[str, str] = {}
    for name in classes:
        first = composed.setdefault(normal(name), name)
        if first != name:
            raise DataError(
                f"each class must have a folder of its own, got {first!a} and {name!a} "
                f"in {folder}, which are the same name with accents composed in two ways; move the "
                "images into one of them, or rename one"
            )


def _warn_of_splits(folder: Path, folders: list[str]) -> None:
    """Warn if the folders look like splits with unknown names, since all hold the same folders."""
    if not 2 <= len(folders) <= _MOST_SPLITS:
        return
    inner = [folders_in(folder / name) for name in folders]
    if len(inner[0]) > 1 and all(each == inner[0] for each in inner):
        logger.warning(
            "%s: the classes are %s, and each has the folders %s; if those are the classes, "
            "rename the outer folders to train and val",
            folder,
            ", ".join(folders),
            ", ".join(inner[0][:_SHOWN]) + (", ..." if len(inner[0]) > _SHOWN else ""),
        )


def _warn_of_dangling_links(folder: Path) -> None:
    """Warn of links that lead nowhere, since class folders may be links."""
    with os.scandir(folder) as entries:
        links = [e for e in entries if e.is_symlink() and not is_litter(e.name)]
    missing = [e.name for e in links if not is_image_name(e.name) and not Path(e.path).exists()]
    if missing:
        _warn_of_missing_classes(folder, tuple(sorted(missing)))


@cache  # a folder without splits is opened once for each split
def _warn_of_missing_classes(folder: Path, names: tuple[str, ...]) -> None:
    logger.warning(
        "%s: %s to nothing, so there is no such class: %s%s; mend the link if a class is meant",
        folder,
        "1 link leads" if len(names) == 1 else f"{len(names)} links lead",
        ", ".join(names[:_SHOWN]),
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "",
    )


def _images_in(folder: Path) -> tuple[str, ...]:
    """Names of the images in `folder`, but not those in its subfolders."""
    with os.scandir(folder) as entries:
        return tuple(sorted(e.name for e in entries if is_image_name(e.name) and e.is_file()))


@cache
def _warn_of_loose_images(folder: Path, names: tuple[str, ...]) -> None:
    logger.warning(
        "%s: %s beside the class folders, with no class: %s%s; move images into the folders of "
        "their classes",
        folder,
        "1 image lies" if len(names) == 1 else f"{len(names)} images lie",
        ", ".join(names[:_SHOWN]),
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "",
    )


def _may_be_class(name: str) -> bool:
    """Whether a folder beside the splits may be a class that should be in them."""
    return not split_of(name) and not split_mentioned_in(name) and name.lower() not in _PARTS


def _holds_images(folder: Path) -> bool:
    """Whether images lie in `folder` or in its subfolders, which may be classes.

    Only these two levels are read, since the folder may be large and no part of the data.
    """
    try:
        inner = [folder / name for name in folders_in(folder) if _may_be_class(name)]
        return any(map(_images_in, (folder, *inner)))
    except OSError:  # no permission
        return False


@cache  # each split is beside the same folders
def _warn_of_images_beside(root: Path, names: tuple[str, ...]) -> None:
    shown = [f"{name}/" for name in names[:_SHOWN]]
    logger.warning(
        "%s: %s beside the splits and in none of them: %s%s; if a class is meant, move it there",
        root,
        "1 folder with images is" if len(names) == 1 else f"{len(names)} folders with images are",
        ", ".join(shown),
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "",
    )


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in `folder`, without hidden and system folders."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not is_litter(e.name))
