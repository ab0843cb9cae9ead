"""Errors for bad input.

Bad input raises an :class:`InputError` whose message is one line: the rule, the value received and
the fix. The command line prints only that line.
"""

import errno
import os
from numbers import Integral, Real
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


# The least similarity of names, from 0 to 1, for one to be meant by the other: one letter of four
# may differ. Below it, names that have nothing to do with each other are alike: mmcls and mmseg.
_SIMILAR = 0.75
# The most names in a hint.
_MOST_MEANT = 3
# The disk or the user's quota is full.
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class InputError(ValueError):
    """An argument, a file or a name cannot be used.

    The message is converted to one line of printable text, since it may quote untrusted names.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ImageError(InputError):
    """A file, URL or array is not an image that can be labeled.

    Attributes:
        reason: the error without the image's name.
    """

    def __init__(self, reason: str, name: str | None = None) -> None:
        super().__init__(reason if name is None else f"{name or repr(name)}: {reason}")
        self.reason = reason


class WeightsError(InputError):
    """Weights cannot be found, verified, read or matched to the model."""


class DataError(InputError):
    """A data set cannot be opened or does not fit its purpose."""


def check_choice(what: str, value: str, choices: "Iterable[str]") -> None:
    """Raise `InputError` unless `value` is one of `choices`; the message names the nearest."""
    names = list(choices)
    if value not in names:
        raise InputError(
            f"{what} must be one of {', '.join(names)}, got {value!r:.60}"
            f"{nearest(str(value), names)}"
        )


def check_path(what: str, value: object) -> None:
    """Raise `InputError` unless `value` can be a path or a name."""
    if not isinstance(value, str | PathLike):
        raise InputError(f"{what} must be a name or a path, got {value!r:.60}")


def check_number(what: str, value: object) -> None:
    """Raise `InputError` unless `value` is a number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise InputError(f"{what} must be a number, got {value!r:.60}")


def check_callable(what: str, value: object) -> None:
    """Raise `InputError` unless `value` can be called."""
    if not callable(value):
        raise InputError(f"{what} must be a function, got {value!r:.60}")


def check_whole(what: str, value: object, *, least: int) -> None:
    """Raise `InputError` unless `value` is a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{what} must be a whole number, got {value!r:.60}")
    if value < least:
        raise InputError(f"{what} must be at least {least}, got {value}")


def nearest(name: str, names: "list[str]") -> str:
    """A hint `; did you mean 'x'?` for the closest of `names`, or an empty string.

    If names contain `name` as a word, as "tabby cat" does "cat", the hint lists some of those. If
    no whole name is similar, it lists names that contain a similar word.
    """
    # Imported here: difflib is slow to import, and only errors need it.
    import difflib

    by_folded = {each.casefold(): each for each in reversed(names)}
    folded = name.casefold()
    if folded in by_folded:
        close = [folded]
    elif not (close := [each for each in names if folded in each.casefold().split()]):
        close = difflib.get_close_matches(folded, by_folded, n=1, cutoff=_SIMILAR)
        close = close or [each for each in by_folded if folded and each.startswith(folded)][:1]
        close = close or [
            each
            for each in by_folded
            if difflib.get_close_matches(folded, each.split(), n=1, cutoff=_SIMILAR)
        ]
    meant = [repr(by_folded.get(each, each)) for each in close[:_MOST_MEANT]]
    return f"; did you mean {' or '.join(meant)}?" if meant else ""


def is_full_disk(error: Exception) -> bool:
    """Whether a write failed because no space is left."""
    return getattr(error, "errno", None) in _FULL


def write_failure(place: object, error: Exception, rule: str = "cannot write") -> str:
    """The message for a file or folder that cannot be written.

    Args:
        place: the file or folder.
        error: of the system, or of a library that writes, such as safetensors.
        rule: the beginning of the message, before `place`, unless the disk is full.
    """
    reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
    no_space = os.strerror(errno.ENOSPC)
    if no_space in reason:
        reason = no_space
    elif not is_full_disk(error):
        return f"{rule} {place}: {reason}"
    return f"the disk is full: {place} ({reason}); free some space or choose another place"


def one_line(text: str) -> str:
    """`text` with line breaks, control characters and undecodable bytes of a file name escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def counted(count: int, what: str) -> str:
    """A number of things in words: "1 part", "1,200 parts"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
