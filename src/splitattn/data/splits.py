"""Names that data sets use for their training, validation and test splits."""

import logging
import re
from collections.abc import Iterable, Sequence
from functools import cache

from splitattn.errors import DataError, nearest

logger = logging.getLogger(__name__)

# Names of each split, in any case. The first is the recommended one.
_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "validation", "valid", "validate", "dev"),
    # In data sets with "dev", "eval" is the test set.
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_SPLITS = {name: split for split, names in _NAMES.items() for name in names}
_LETTERS = re.compile(r"[^\W\d_]+")
# Words consist of letters: `TrainSet2` has two.
_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_A-Z]+|[A-Z]+(?![a-z]))?")
# Words that archives append: `training_set`, `TestData`, `trainset`.
_SUFFIX = re.compile(r"(set|data|images|imgs|img|split)+$")


class MissingSplitError(DataError):
    """A data set does not have the requested split."""


def split_of(name: str) -> str | None:
    """The split that `name` stands for, in any case and spelling: train, val, test or None.

    Numbers are ignored: `train2017` is a training set.
    """
    # In any case means `tRain` too, which capitals would divide. They do divide `TrainSet`.
    for words in (_without_suffixes(_LETTERS.findall(name)), _words(name)):
        if len(words) == 1 and words[0] in _SPLITS:
            return _SPLITS[words[0]]
    return None


def split_mentioned_in(name: str) -> str | None:
    """Like `split_of`, but other words are allowed: `ILSVRC2012_img_val`, `seg_train`."""
    splits = {_SPLITS[word] for word in _words(name) if word in _SPLITS}
    return splits.pop() if len(splits) == 1 else None


def check_one(folders: Sequence[str], split: str) -> None:
    """Raise `DataError` if several folders stand for `split`."""
    if len(folders) > 1:
        raise DataError(f"only one folder may be the split {split}, got {', '.join(folders)}")


def check_is_split(split: str) -> None:
    """Raise `MissingSplitError` unless `split` is the name of a split; for data without splits."""
    if split_of(split) is None:
        raise MissingSplitError(
            f"the split of data without splits must be one of {', '.join(_NAMES)}, got "
            f"{split!r:.60}{nearest(split, [*_NAMES])}"
        )


def warn_of_stand_in(data: object, split: str, used: str) -> None:
    """Warn if the test set is used as the validation set.

    Args:
        data: the data set, for the message.
        split: the requested split.
        used: the split, or the name of the folder or rows, that was found for it.
    """
    found = split_of(used) or split_mentioned_in(used)
    if split_of(split) == "val" and found == "test":
        _warn_of_test(str(data))


@cache  # data that turn out to have no labels are opened a second time, as images alone
def _warn_of_test(data: str) -> None:
    logger.warning("%s has no split val: test is used instead", data)


def _words(name: str) -> list[str]:
    return _without_suffixes(_WORDS.findall(name))


def _without_suffixes(words: Iterable[str]) -> list[str]:
    return [word for each in words if (word := _SUFFIX.sub("", each.casefold()))]


def split_names(split: str) -> tuple[str, ...]:
    """The usual names of `split`, the preferred one first. A test set serves as validation."""
    split = split_of(split) or split
    names = _NAMES.get(split, (split,))
    return (*names, *_NAMES["test"]) if split == "val" else names


def called(names: Iterable[str], split: str) -> list[str]:
    """The `names` that stand for `split`; for "val" without any, those for "test"."""
    names = sorted(names)
    split = split_of(split) or split
    found = [name for name in names if split in (name, split_of(name))]
    return called(names, "test") if split == "val" and not found else found
