"""The names that data sets give to their parts for training, validation and testing."""

import re
from collections.abc import Iterable

from splitattn.errors import DataError

# Of each split, whatever the case. The first is what a data set should call it.
_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
# What archives append: `training_set`, `TestData`.
_SUFFIX = re.compile(r"[\W_]*(set|data|images|split)$")


class MissingSplitError(DataError):
    """A data set has other splits than the one that is asked for."""


def split_of(name: str) -> str | None:
    """Which split `name` means, in whatever case and spelling: train, val, test or None."""
    plain = _SUFFIX.sub("", name.strip().casefold())
    return next((split for split, names in _NAMES.items() if plain in names), None)


def split_names(split: str) -> tuple[str, ...]:
    """The usual names of `split`, the preferred one first. A test set serves as validation."""
    split = split_of(split) or split
    names = _NAMES.get(split, (split,))
    return (*names, *_NAMES["test"]) if split == "val" else names


def called(names: Iterable[str], split: str) -> list[str]:
    """Those of `names` that mean `split`; if none mean "val", those that mean "test"."""
    names = sorted(names)
    split = split_of(split) or split
    found = [name for name in names if split in (name, split_of(name))]
    return called(names, "test") if split == "val" and not found else found
