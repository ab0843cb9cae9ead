"""Class names: their order, and which output of a network stands for which class.

Names that are numbers mean output numbers. ImageNet's classes are recognized by our English names
("red panda"), by WordNet's first lemmas ("lesser panda") and by WordNet ids (n02509815).
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from splitattn.errors import DataError
from splitattn.weights.catalogue import ClassSet, class_names, lemmas, wordnet_ids

How = Literal["name", "lemma", "wordnet", "number", "order"]
# Lists of ImageNet's names that agree in this share of the places are the same list; they differ in
# the names of the two cranes and the two maillots.
_SAME_LIST = 0.99
_WORDNET_ID = re.compile(r"n\d{8}(?!\d)")
# A number or an id, and after a separator a name: `4_rocket`, `n02119789 kit_fox`.
# A decimal, a range or a date is no number with a name.
_WITH_ID = re.compile(r"([A-Za-z]*\d+)[\s_,;:.)-]+([^\W\d_].*)")
# A key beside a name: `nv: nevus`, `nv -> nevus`, `nevus, nv`, `nevus (nv)`; last `nv nevus`.
_MARK = r"\s*(?:->|=>|[,;:=|\t]|\s-\s)\s*"
_WITH_KEY = (
    re.compile(rf"(?P<key>.+?){_MARK}.+"),
    re.compile(rf".+{_MARK}(?P<key>.+)"),
    re.compile(r".+\s\((?P<key>.+)\)"),
    re.compile(r"(?P<key>\S+)\s.+"),
)
# What tells two classes of one name apart: `crane (bird)`, `crane (machine)`.
_QUALIFIER = re.compile(r"\s+\([^()]+\)")
_LARGEST_NUMBER = 9  # digits
# The most names that an error lists.
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which output stands for each class.

    Attributes:
        indices: of the outputs, by class.
        how: how they were matched: by names, first lemmas, WordNet ids, numbers, or only by order.
    """

    indices: tuple[int, ...]
    how: How


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct `names`, sorted: numbers by value, others alphabetically."""
    found = sorted(set(names))
    return tuple(sorted(found, key=int)) if are_numbers(found) else tuple(found)


def normal(name: str) -> str:
    """Normalize Unicode, since file systems compose accents differently."""
    return unicodedata.normalize("NFC", name)


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all names are numbers, such as "7" or "007"."""
    return bool(names) and all(
        name.isascii() and name.isdigit() and len(name) <= _LARGEST_NUMBER for name in names
    )


def are_unnamed(outputs: Sequence[str]) -> bool:
    """Whether outputs have no names but their own numbers, from 0."""
    return all(name == str(index) for index, name in enumerate(outputs))


def match(
    names: Sequence[str], outputs: Sequence[str], numbers: Sequence[int] | None = None
) -> Match:
    """Find the output that stands for each class of a data set.

    Args:
        names: of the data set's classes, by label.
        outputs: names of the network's outputs; numbers from 0 if they have none.
        numbers: of the outputs, if the meaning of a number in `names` is known.

    Raises:
        DataError: no rule gives each class an output of its own.
    """
    if tuple(names) == tuple(outputs):
        return Match(indices=tuple(range(len(names))), how="name")
    if are_numbers(names):
        # Outputs such as "1" and "01" differ only in spelling.
        alike = are_numbers(outputs) and len({*map(int, outputs)}) < len(outputs)
        if alike and (found := _by_key(names, outputs, str)) is not None:
            return Match(indices=found, how="name")
        return Match(indices=_by_number(names, outputs, numbers), how="number")
    if by_name := match_names(names, outputs):
        return by_name
    _check_order(names, outputs)
    return Match(indices=tuple(range(len(names))), how="order")


def match_names(names: Sequence[str], outputs: Sequence[str]) -> Match | None:
    """Like `match`, but only by what names say; None if they do not.

    Raises:
        DataError: a name may mean several of the outputs.
    """
    # Numbers are left out on one side only, since `2 euro` is not `1 euro`.
    for ours, theirs in (
        (names, outputs),
        (_without_numbers(names), outputs),
        (names, _without_numbers(outputs)),
    ):
        if ours and theirs and (whole := _match_whole_names(ours, theirs)):
            return whole
    # With only a part of the classes, what follows may be chance.
    if len(names) != len(outputs) or are_numbers(names) or are_numbers(outputs):
        return None
    bare, bare_outputs = ([split_id(name)[1] for name in each] for each in (names, outputs))
    for how, key in _KEYS[1:]:
        if (found := _by_key(bare, bare_outputs, key)) is not None:
            return Match(indices=found, how=how)
    for pattern in _WITH_KEY:
        for ours, theirs in ((names, _keys(outputs, pattern)), (_keys(names, pattern), outputs)):
            if (found := _by_key(ours, theirs, spelled)) is not None:
                return Match(indices=found, how="name")
    return None


def _match_whole_names(names: Sequence[str], outputs: Sequence[str]) -> Match | None:
    for how, key in _KEYS:
        if (found := _by_key(names, outputs, key)) is not None:
            return Match(indices=found, how=how)
    if (found := _by_key(names, _lemmas(outputs), first_lemma)) is not None:
        _check_one_meaning(names, outputs, found)
        return Match(indices=found, how="lemma")
    ids, output_ids = _ids(names), _ids(outputs)
    if ids and output_ids and (found := _by_key(ids, output_ids, str)) is not None:
        return Match(indices=found, how="wordnet")
    return None


def _without_numbers(names: Sequence[str]) -> list[str] | None:
    """`rocket` for `4_rocket`, if numbers begin all of the names, otherwise None."""
    parts = [split_id(name) for name in names]
    return [name for _, name in parts] if all(number.isdigit() for number, _ in parts) else None


def _check_one_meaning(names: Sequence[str], outputs: Sequence[str], found: Sequence[int]) -> None:
    """Raise if a name may mean another output than the one found.

    `crane` may be `crane (bird)` or `crane (machine)`, unless each is the output of a class.
    """
    meanings: dict[str, list[int]] = defaultdict(list)
    for index, output in enumerate(outputs):
        meanings[_QUALIFIER.sub("", first_lemma(output))].append(index)
    for name, index in zip(names, found, strict=True):
        others = [other for other in meanings[first_lemma(name)] if other not in found]
        if others:
            meant = " or ".join(repr(outputs[number]) for number in sorted([index, *others]))
            raise DataError(
                f"a class name must mean one of the model's classes, got {name!r:.60}, which may "
                f"be {meant}; rename the class to the one meant"
            )


def _keys(names: Sequence[str], pattern: re.Pattern[str]) -> list[str]:
    """The key in each name that has one, otherwise the name."""
    return [found["key"] if (found := pattern.fullmatch(name)) else name for name in names]


def check_same(train: Sequence[str], val: Sequence[str], fix: str) -> None:
    """Raise `DataError` unless two splits have the same classes, in any order.

    Args:
        fix: advice for a split that has no images of a class.
    """
    only = {"train": [*({*train} - {*val})], "val": [*({*val} - {*train})]}
    found = [
        f"{', '.join(map(repr, sorted(names)[:_SHOWN]))}"
        f"{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''} only in {split}"
        for split, names in only.items()
        if names
    ]
    if found:
        raise DataError(
            f"train and val must have the same classes, got {' and '.join(found)}; use the same "
            f"names in both; {fix}"
        )


def first_lemma(name: str) -> str:
    """The first of several names separated by commas."""
    return normal(name.split(",")[0].strip())


def spelled(name: str) -> str:
    """Normalize a name's case and the separators between its words."""
    return re.sub(r"[\s_-]+", " ", normal(name)).strip().casefold()


def split_id(name: str) -> tuple[str, str]:
    """A leading number or id ("" if there is none), and the name after it."""
    found = _WITH_ID.fullmatch(name)
    return (found[1], found[2]) if found else ("", name)


_KEYS: tuple[tuple[How, Callable[[str], str]], ...] = (
    ("name", normal),
    ("name", spelled),
    ("lemma", first_lemma),
)


def _by_key(
    names: Sequence[str], outputs: Sequence[str], key: Callable[[str], str]
) -> tuple[int, ...] | None:
    """Indices of the outputs with the same keys, or None unless all keys are unique and known."""
    wanted = [key(name) for name in names]
    index = {key(name): i for i, name in enumerate(outputs)}
    if len(index) < len(outputs) or len(set(wanted)) < len(wanted) or not index.keys() >= {*wanted}:
        return None
    return tuple(index[name] for name in wanted)


def _by_number(
    names: Sequence[str], outputs: Sequence[str], known: Sequence[int] | None
) -> tuple[int, ...]:
    numbers = [int(name) for name in names]
    if known is not None:
        values = list(known)
    elif are_numbers(outputs) and not are_unnamed(outputs):
        values = [int(name) for name in outputs]
    else:
        values = list(range(len(outputs)))
        # Numbers from 1 are accepted only if there are as many as outputs.
        if sorted(numbers) == [value + 1 for value in values]:
            values = [value + 1 for value in values]
    index = {value: i for i, value in enumerate(values)}
    if len(set(numbers)) < len(numbers) or not index.keys() >= {*numbers}:
        odd = next((name for name in names if int(name) not in index), names[0])
        raise DataError(
            "classes that are numbers must be different output numbers of the model, or of the "
            f"list of class names, {_range(values)}, got {odd!r}; use these numbers, the model's "
            "class names, or weights that were trained on this data"
        )
    return tuple(index[number] for number in numbers)


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    among = "" if len(values) == high - low + 1 else f"{len(values)} of "
    return f"{among}{low} to {high}"


def _ids(names: Sequence[str]) -> tuple[str, ...] | None:
    """WordNet ids of the classes, if names begin with them or are a known list; otherwise None."""
    found = [_WORDNET_ID.match(name) for name in names]
    if all(found):
        return tuple(m[0] for m in found if m)
    for class_set in get_args(ClassSet):
        if any(_is_list(names, known) for known in (class_names(class_set), lemmas(class_set))):
            return wordnet_ids(class_set)
    return None


def _lemmas(outputs: Sequence[str]) -> tuple[str, ...]:
    """WordNet's first lemmas of the outputs if their names are a known list, else the names."""
    for class_set in get_args(ClassSet):
        if _is_list(outputs, class_names(class_set)):
            return lemmas(class_set)
    return tuple(outputs)


def _is_list(names: Sequence[str], known: Sequence[str]) -> bool:
    same = sum(first_lemma(a) == first_lemma(b) for a, b in zip(names, known, strict=False))
    return len(names) == len(known) and same >= _SAME_LIST * len(known)


def _check_order(names: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise unless classes and outputs may be matched by order alone."""
    if len(set(names)) < len(names):
        raise DataError(
            f"class names must be different, or the model's own, got {len(set(names))} different "
            f"of {len(names)}; name the classes with --class-names"
        )
    known = {first_lemma(name) for name in outputs}
    unknown = [name for name in names if first_lemma(name) not in known]
    # If some names are the model's, the others are not just other names of its classes.
    if len(names) != len(outputs) or len(unknown) < len(names):
        raise DataError(
            f"the data set's classes must be among the model's {len(outputs)} classes, got "
            f"{len(names)}, such as {(unknown or names)[0]!r}; name the weights trained on it, or "
            "its classes with --class-names"
        )
    if are_numbers(outputs) and not are_unnamed(outputs):
        raise DataError(
            f"the data set's classes must be numbers like the model's, such as {outputs[0]!r}, "
            f"got {names[0]!r}; name the classes with --class-names"
        )
    natural = sorted(names, key=_natural)
    if list(names) == sorted(names) != natural:
        moved = next(a for a, b in zip(names, natural, strict=True) if a != b)
        raise DataError(
            f"classes must be named as the model's or by number, got names such as {moved!r}: "
            "their order, by which they would be matched, differs by alphabet and by number"
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts "class10" after "class2"."""
    parts = re.split(r"0*(\d+)", name)
    return [(len(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)]
