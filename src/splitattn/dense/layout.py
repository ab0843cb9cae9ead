"""Folders, splits and images of data sets, for all formats of annotations."""

import logging
from collections.abc import Collection, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol, TypeVar

from splitattn.data.sources import not_data
from splitattn.data.splits import check_is_split, split_of, warn_of_stand_in
from splitattn.errors import DataError, nearest
from splitattn.files import expanded, is_folder
from splitattn.images.paths import is_image_name

logger = logging.getLogger(__name__)

# In a data set without splits, one image in this many is for validation.
HELD_OUT = 5


class Named(Protocol):
    """An image that has a name."""

    @property
    def name(self) -> str:
        """How messages call it."""


T = TypeVar("T", bound=Named)
Split = TypeVar("Split", str, str | None)


def chosen_split(root: Path, split: str, found: Collection[str | None]) -> str | None:
    """Which of the splits `found` is used as `split`, or None. A test set serves as validation."""
    name = next((name for name in _accepted(split) if name in found), None)
    if name:
        warn_of_stand_in(root, split, name)
    return name


def _accepted(split: str) -> tuple[str, ...]:
    """The splits that can be used as `split`, best first."""
    split = split_of(split) or split
    return ("val", "test") if split == "val" else (split,)


def split_folders(root: Path) -> dict[Path, str]:
    """The folders in `root` that are named like a split, with that split."""
    if not is_folder(root):
        return {}
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    return {path: name for path in folders if (name := split_of(path.name))}


def one_of_each(found: Iterable[tuple[Split, Path]]) -> dict[Split, Path]:
    """Where each split is.

    Raises:
        DataError: a split is in several places.
    """
    places: dict[Split, Path] = {}
    for split, path in found:
        if split in places:
            raise DataError(
                f"only one of them may be the split {split}: {places[split]}, {path}; rename or "
                "remove the other"
            )
        places[split] = path
    return places


def paired_folders(root: Path, other: str) -> list[tuple[str | None, Path, Path]]:
    """Splits, with their folders of images and of `other`; None is the split of all images.

    Either is `images/SPLIT/` beside `other/SPLIT/`, or both are in `SPLIT/`, or in `root`.
    """
    folders: list[tuple[str | None, Path, Path]] = [
        (name, path, root / other / path.name)
        for path, name in split_folders(root / "images").items()
    ]
    folders += [(name, path / "images", path / other) for path, name in split_folders(root).items()]
    folders.append((None, root / "images", root / other))
    found = [each for each in folders if each[1].is_dir() and each[2].is_dir()]
    one_of_each((name, images) for name, images, _ in found)
    return found


def undivided_folders(other: str) -> str:
    """What to do so that `paired_folders` finds no splits."""
    return f"put all files into images/ and {other}/ themselves, without folders of splits"


def image_files(folder: Path) -> list[Path]:
    """The images in `folder`, sorted, without the hidden files that systems leave."""
    return [path for path in sorted(folder.iterdir()) if is_image_name(path.name)]


def hold_out(images: Sequence[T], split: str, why: str = "the data set has no splits") -> list[T]:
    """One split of a data set without splits: one image in five, by its name, is for validation.

    Adding or removing images moves no other image into another split. A warning gives the reason,
    `why`, unless `split` is "train": a training opens both, and warns once.
    """
    check_is_split(split)
    held_out = split_of(split) != "train"
    if held_out:
        logger.warning("%s: one image in %d is for validation", why, HELD_OUT)
    return [image for image in images if _is_held_out(image.name) == held_out]


def _is_held_out(name: str) -> bool:
    return sha256(name.encode("utf-8", "surrogateescape")).digest()[0] % HELD_OUT == 0


def no_split(root: Path, split: str, found: Sequence[str], undivided: str) -> DataError:
    """The error for a data set that has the splits `found` only.

    Args:
        undivided: what to do with a single split so that its images are divided.
    """
    advice = nearest(split, [*found])
    if not advice:
        advice = "; add it"
        if len(found) == 1:
            advice += f", or {undivided}: then one image in {HELD_OUT} is for validation"
    return DataError(
        f"{root} must have a split {' or '.join(_accepted(split))}, got "
        f"{', '.join(dict.fromkeys(found)) or 'none'}{advice}"
    )


def other_data(needs: str, data: str | Path) -> DataError:
    """The error for data of another kind than the head or the weights are for.

    Args:
        needs: what needs which data: "a detector needs annotated images".
        data: what came.
    """
    found = "a folder without them; name other data, or choose a network for another task"
    if not is_folder(expanded(data)):
        found = not_data(str(data))
    return DataError(f"{needs}, got {str(data)!r}: {found}")
