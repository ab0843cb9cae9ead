"""Reads files that list class names in the order of labels."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from splitattn.data.class_names import (
    are_numbers,
    are_unnamed,
    first_lemma,
    match_names,
    normal,
    spelled,
    split_id,
)
from splitattn.errors import DataError
from splitattn.files import is_file, is_folder, open_file, open_text

# A number, and after a separator a name: `0 cat`, `1: dog`, `2,fox`.
_NUMBERED = re.compile(r"(\d+)(?:\s*[,;:.)\t]\s*|\s+)(\S.*)")
_NUMBER_LAST = re.compile(r".*[,;\t]\s*\d+")
# Suffixes of files that may contain class names but are not lists.
_OTHER_KINDS = (".csv", ".tsv", ".yaml", ".yml", ".toml", ".xml", ".pbtxt")


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Class names in the order of labels.

    Attributes:
        names: of the classes, all different.
        numbers: of the classes, ascending; if the file has numbers.
        ids: of the classes, by which data may name them, such as `n01440764`; if the list has ids.
        origin: where they come from, for messages.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...] | None = None
    ids: tuple[str, ...] | None = None
    origin: str


# Class names as arguments: a file that lists them, or the names.
ClassNames = str | Path | Sequence[str]


def read_class_list(path: Path) -> ClassList:
    """Read class names from a text file: one a line, or JSON.

    Lines may begin with the numbers of the classes, from 0 or 1 and in any order. JSON is a list of
    names, or an object that maps numbers to names. Instead of a name there may be a list with the
    class's id first and its name last, as in ImageNet's `["n01440764", "tench"]`. A name may also
    begin with the id: `n01440764 tench`.

    Raises:
        DataError: the file cannot be read, or is not such a list.
    """
    if not is_file(path):
        reason = "a folder" if is_folder(path) else "and there is no such file"
        raise DataError(f"class names must be a text file, got {path}, {reason}")
    try:
        with open_text(open_file(path)) as file:
            text = file.read().strip()
    except (OSError, UnicodeError) as error:
        raise DataError(f"class names must be a text file in UTF-8, got {path}: {error}") from error
    return _of_json(text, path) if text.startswith(("[", "{")) else _of_lines(text, path)


def class_list(given: ClassNames | ClassList) -> ClassList:
    """Class names, in the order of labels.

    Args:
        given: the names, or a file that lists them: see `read_class_list`.

    Raises:
        DataError: the file cannot be read, or is not such a list.
    """
    if isinstance(given, ClassList):
        return given
    if isinstance(given, str | Path):
        return read_class_list(Path(given))
    names = list(given) if isinstance(given, Sequence) else [given]
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise DataError(f"class names must be a file or a list of names, got {given!r:.60}")
    return _listed([name.strip() for name in names], "the list")


def name_outputs(listed: ClassList, outputs: Sequence[str]) -> tuple[str, ...]:
    """The names of a list, if they can be the names of a network's outputs.

    Args:
        listed: names in the order of the outputs.
        outputs: the network's own names; numbers from 0 if it has none.

    Raises:
        DataError: there are more or fewer names than outputs, the list's numbers do not begin at 0
            or 1 or have gaps, or a name is that of another output.
    """
    names, numbers = listed.names, listed.numbers
    if len(names) != len(outputs):
        raise DataError(
            f"there must be one class name for each of the network's {len(outputs)} outputs, got "
            f"{len(names)} in {listed.origin}; list them all, in the order of the outputs"
        )
    if numbers and (numbers[0] > 1 or numbers[-1] - numbers[0] >= len(numbers)):
        raise DataError(
            f"the numbers of class names must be 0 to {len(names) - 1} or 1 to {len(names)}, got "
            f"{numbers[0]} to {numbers[-1]} in {listed.origin}; number the outputs from 0 or 1 "
            "without gaps"
        )
    if are_unnamed(outputs):
        return names
    for given in filter(None, (names, listed.ids)):
        for found in _found(given, outputs):
            wrong = [index for index, output in enumerate(found) if output not in (None, index)]
            if wrong:
                index = wrong[0]
                raise DataError(
                    f"class names must be in the order of the network's outputs, got "
                    f"{given[index]!r:.60} for output {index}, which is {outputs[index]!r:.60}, in "
                    f"{listed.origin}"
                )
    return names


def _found(names: tuple[str, ...], outputs: Sequence[str]) -> Iterator[Sequence[int | None]]:
    """In each way to compare names, the output that has a name already, or None for a new name."""
    for key in (normal, spelled, first_lemma):
        known = {key(name): index for index, name in enumerate(outputs)}
        # Two classes may have the same first name, such as ImageNet's maillots.
        if len(known) == len(outputs) and len({*map(key, names)}) == len(names):
            yield [known.get(key(name)) for name in names]
    if found := match_names(names, outputs):
        yield found.indices


def _of_lines(text: str, path: Path) -> ClassList:
    lines = [line.strip() for line in text.splitlines()]
    if "" in lines:
        raise DataError(
            f"class names must be one a line, got an empty line {lines.index('') + 1} in {path}; "
            "remove it, or name the class"
        )
    found = [_NUMBERED.fullmatch(line) for line in lines]
    numbers = sorted(int(each[1]) for each in found if each)
    # Numbers count only if every line has one; otherwise they are parts of names.
    if numbers in (list(range(len(lines))), list(range(1, len(lines) + 1))):
        names = {int(each[1]): normal(each[2]) for each in found if each}
        if len(set(names.values())) == len(names):
            return _numbered(names, path)
    if len(numbers) == len(lines) and numbers[0] == 0:
        raise DataError(
            f"the numbers of class names must be different and without gaps, got {lines[0]!r:.60}"
            f' and more in {path}; write JSON, such as {{"0": "cat", "2": "dog"}}'
        )
    columns = (len(lines) > 2 and not found[0] and all(found[1:])) or all(
        map(_NUMBER_LAST.fullmatch, lines)
    )
    if path.suffix.lower() in _OTHER_KINDS or columns:
        raise DataError(
            f"class names must be one a line, or JSON, got {lines[0]!r:.60} and more "
            f"in {path}; write the names alone, in the order of the labels"
        )
    return _listed(lines, path)


def _of_json(text: str, path: Path) -> ClassList:
    try:
        content = json.loads(text, object_pairs_hook=partial(_object, path))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"class names in {path} must be JSON or one a line, got {error}") from error
    if isinstance(content, dict) and are_numbers([str(value) for value in content.values()]):
        content = _object(path, [(str(number), name) for name, number in content.items()])
    if isinstance(content, dict) and are_numbers([*content]):
        values = {int(number): value for number, value in content.items()}
        names = {*map(_name, values.values())}
        if all(names) and len(names) == len(content):
            return _numbered(values, path)
    if isinstance(content, list) and content and all(map(_name, content)):
        numbers = [str(each[0]) for each in content if isinstance(each, list) and len(each) > 1]
        if len(numbers) == len(content) and are_numbers(numbers):  # as `1 cat` on a line
            return _numbered(dict(zip(map(int, numbers), content, strict=True)), path)
        return _listed(content, path)
    raise DataError(
        f"class names in {path} must be a list of different names, or an object of numbers and "
        f"different names, got {text!r:.60}"
    )


def _object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raise if a key occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise DataError(f"class names must be different, got {twice!r:.60} twice in {path}")
    return found


def _name(value: Any) -> str:
    while isinstance(value, list) and value:
        value = value[-1]
    return normal(value.strip()) if isinstance(value, str) else ""


def _ids(values: list[Any]) -> tuple[str, ...] | None:
    found = [*map(_id, values)]
    return tuple(found) if all(found) and len(set(found)) == len(found) else None


def _id(value: Any) -> str:
    if not isinstance(value, list):
        found, _ = split_id(value)
        return "" if found.isdigit() else found
    first = value[0].strip() if len(value) > 1 and isinstance(value[0], str) else ""
    return "" if first.isdigit() else normal(first)


def _numbered(values: dict[int, Any], path: Path) -> ClassList:
    numbers = tuple(sorted(values))
    ordered = [values[number] for number in numbers]
    return ClassList(
        names=tuple(map(_name, ordered)),
        numbers=numbers,
        ids=_ids(ordered),
        origin=str(path),
    )


def _listed(values: list[Any], origin: Path | str) -> ClassList:
    found = Counter(map(_name, values))
    if twice := [name for name, count in found.items() if count > 1]:
        raise DataError(f"class names must be different, got {twice[0]!r} twice in {origin}")
    return ClassList(names=tuple(found), ids=_ids(values), origin=str(origin))
