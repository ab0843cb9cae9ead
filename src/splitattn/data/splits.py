"""The names that data sets give to their training and validation parts."""

_NAMES = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
KNOWN_NAMES = tuple(name for names in _NAMES.values() for name in names)


def split_names(split: str) -> tuple[str, ...]:
    """The usual names of `split`, the preferred one first."""
    return _NAMES.get(split, (split,))
