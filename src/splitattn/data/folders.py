"""Data sets that are folders of images, one for each class."""

import logging
import os
from collections import Counter
from pathlib import Path

from splitattn.data.class_names import in_order, normal
from splitattn.data.labelled import LabelledImages
from splitattn.data.splits import MissingSplitError, called, split_of
from splitattn.errors import DataError
from splitattn.images.paths import images_below, is_litter, passed_over_text

logger = logging.getLogger(__name__)


def open_folder(root: Path, split: str) -> LabelledImages:
    """Open `split` of a folder in ImageFolder layout.

    Raises:
        DataError: the split, class folders or images are missing.
    """
    folder = _split_folder(root, split)
    folders = folders_in(folder)
    if not folders:
        raise DataError(f"the data set must have one folder per class, got none in {folder}")
    if all(map(split_of, folders)):
        raise DataError(
            f"the data set must have one folder per class, got only {', '.join(folders)} in "
            f"{folder}, which are names of splits; name the folder that holds the classes"
        )
    classes = in_order(map(normal, folders))
    index = {name: label for label, name in enumerate(classes)}
    images: list[str] = []
    labels: list[int] = []
    passed_over: Counter[str] = Counter()
    for name in sorted(folders, key=lambda name: index[normal(name)]):
        found = list(images_below(folder / name, passed_over))
        images += found
        labels += [index[normal(name)]] * len(found)
    if passed_over:
        logger.warning("%s: %s", folder, passed_over_text(passed_over))
    if not images:
        raise DataError(f"the data set must hold images, got none in the class folders of {folder}")
    return LabelledImages(
        origin=str(folder),
        classes=classes,
        images=images,
        labels=labels,
        names=images,
    )


def _split_folder(root: Path, split: str) -> Path:
    """The folder below `root` that holds the classes of `split`, or `root` itself."""
    folders = folders_in(root)
    splits = [name for name in folders if split_of(name) and folders_in(root / name)]
    found = called(folders, split)
    # A class may be called like a split ("training" among sports): then it holds images, and
    # there are other classes.
    if not splits and not all(map(split_of, folders)):
        found = [name for name in found if not split_of(name)]
    if len(found) > 1:
        raise DataError(f"only one folder may be the split {split}, got {', '.join(found)}")
    if found:
        return root / found[0]
    if splits:
        raise MissingSplitError(f"the data set must have a folder {split}/, got none in {root}")
    return root


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in `folder`, without litter."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not is_litter(e.name))
