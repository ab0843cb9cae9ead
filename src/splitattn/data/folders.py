"""Data sets that are folders of images, one for each class."""

from pathlib import Path

from splitattn.data.labelled import LabelledImages
from splitattn.data.splits import KNOWN_NAMES, split_names
from splitattn.errors import DataError
from splitattn.images.paths import SUFFIXES


def open_folder(root: Path, split: str) -> LabelledImages:
    """Open `split` of a folder in ImageFolder layout.

    Raises:
        DataError: the split, class folders or images are missing.
    """
    folder = next((root / name for name in split_names(split) if (root / name).is_dir()), root)
    if folder is root and any((root / name).is_dir() for name in KNOWN_NAMES):
        raise DataError(f"the data set must have a folder {split}/, got none in {root}")
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not classes:
        raise DataError(f"the data set must have one folder per class, got none in {folder}")
    images: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES
        )
        images += found
        labels += [label] * len(found)
    if not images:
        raise DataError(f"the data set must hold images, got none in the class folders of {folder}")
    return LabelledImages(
        origin=str(folder),
        classes=classes,
        images=images,
        labels=labels,
        names=[str(path) for path in images],
    )
