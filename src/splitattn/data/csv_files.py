"""Data sets in CSV files with paths and labels."""

import csv
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from os.path import normpath
from pathlib import Path
from typing import NamedTuple, TextIO

from splitattn.data.class_names import in_order, normal
from splitattn.data.labeled import LabeledImages
from splitattn.data.splits import (
    MissingSplitError,
    called,
    check_is_split,
    split_of,
    warn_of_stand_in,
)
from splitattn.errors import DataError, nearest
from splitattn.files import is_file, open_file, open_text
from splitattn.images.paths import is_url

logger = logging.getLogger(__name__)

# Separates the classes of an image in the column `labels`.
SEPARATOR = "|"
# Columns that are not classes, if each class has its own column.
_NO_CLASSES = ("path", "split")
_COLUMNS = ("path", "label", "labels", "split")
_WHOLE = re.compile(r"[0-9]+(\.0+)?")
_NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?")
_MARKS = {"0": False, "1": True}
# The most rows that an error lists.
_ROWS_SHOWN = 5


class _Row(NamedTuple):
    path: str
    labels: tuple[str, ...]
    split: str


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How a file stores labels.

    Attributes:
        labels: a function that returns the labels of a row, or None if the row is malformed.
        rule: the rule for rows, for errors.
        classes: in order, if the header names them.
        several: whether an image may have several labels, or none.
    """

    labels: Callable[[dict[str, str]], tuple[str, ...] | None]
    rule: str
    classes: tuple[str, ...] = ()
    several: bool = False


def open_csv(path: Path, split: str) -> LabeledImages:
    """Open `split` of a CSV file, which must have a header.

    Columns: `path`, relative to the file's folder or absolute; `label`, a class name; and,
    if there are several splits, `split`. Other columns are ignored. If all labels are whole
    numbers, 3.0 means 3. If the header has no comma, columns are separated by tabs or semicolons.
    Classes are the labels of all splits, in the order of `in_order`.

    If an image may have several classes or none, a column `labels` instead of `label` lists them,
    separated by `|`. Or there is neither column, and every column but `path` and `split` is a
    class, in the order of the header, with cells of 1 or 0.

    Raises:
        DataError: the file cannot be read, a column or the split is missing, or rows are
            incomplete.
    """
    layout, rows = _read(path)
    classes = layout.classes or in_order(label for row in rows for label in row.labels)
    present = {row.split for row in rows}
    # Without such a column, or if it is empty, every row belongs to every split.
    found = [""] if present == {""} else called(present, split)
    if found == [""]:
        check_is_split(split)
    elif found:
        warn_of_stand_in(path, split, found[0])
    else:
        raise MissingSplitError(
            f"{path} must have rows whose split is {split}, "
            f"got {', '.join(map(repr, sorted(present)[:_ROWS_SHOWN]))}"
            f"{nearest(split, sorted(present))}"
        )
    if split_of(split) == "train":  # once, and not again for the images to validate on
        _warn_of_the_unusual(path, layout, rows)
    chosen = [row for row in rows if row.split in found]
    index = {label: i for i, label in enumerate(classes)}
    sets = [tuple(sorted(index[label] for label in row.labels)) for row in chosen]
    found_sets = tuple(sorted(set(sets)))
    place = {one: i for i, one in enumerate(found_sets)}
    images = [_file(path.parent, row.path) for row in chosen]
    return LabeledImages(
        origin=f"{path} {' '.join(found)}".strip(),
        classes=classes,
        images=images,
        labels=[place[one] if layout.several else one[0] for one in sets],
        names=images,
        label_sets=found_sets if layout.several else None,
    )


def _file(folder: Path, name: str) -> str:
    """The path of an image; the cell may have backslashes or spaces around it."""
    path, usual = folder / name, _usual(name)
    if usual != name and not is_file(path):
        path = folder / usual
    return str(path)


def _usual(name: str) -> str:
    return name.strip().replace("\\", "/")


def has_several_labels(path: Path) -> bool:
    """Whether the images of a CSV file may have several classes; False for other files.

    Only the header is read.
    """
    try:
        with open_text(open_file(path)) as file:
            return _layout(path, _reader(path, file).fieldnames or ()).several
    except (OSError, UnicodeError, csv.Error, DataError):
        return False  # `open_csv` raises the error


def _reader(path: Path, file: TextIO) -> "csv.DictReader[str]":
    """A reader of rows; case and spaces in the names of known columns are ignored.

    Raises:
        DataError: two columns have the same known name.
    """
    header = file.readline()
    # Spreadsheets write tabs in UTF-16 files, and semicolons in countries with a decimal comma.
    delimiter = next((each for each in ",\t;" if each in header), ",")
    reader = csv.DictReader(chain([header], file), delimiter=delimiter)
    plain = [name.strip() for name in reader.fieldnames or ()]
    names = [name.lower() if name.lower() in _COLUMNS else name for name in plain]
    if twice := next((name for name in _COLUMNS if names.count(name) > 1), None):
        raise DataError(f"{path} must have one column {twice}, got {','.join(plain)[:100]!r}")
    reader.fieldnames = names
    return reader


def _read(path: Path) -> tuple[_Layout, list[_Row]]:
    try:
        with open_text(open_file(path)) as file:
            reader = _reader(path, file)
            layout = _layout(path, reader.fieldnames or ())
            rows = list(_rows(path, reader, layout))
            if not layout.classes:
                rows = _with_whole_numbers(rows)
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path} must be a CSV file in UTF-8: {error}") from error
    if not rows:
        raise DataError(f"the data set must hold images, got no rows in {path}")
    _check_one_answer(path, rows, several=layout.several)
    _check_all_have_a_split(path, rows)
    if layout.several and not layout.classes and all(len(row.labels) < 2 for row in rows):
        shown = next((label for row in rows for label in row.labels), "")
        raise DataError(
            f"the column labels of {path} must name several classes in some row, with "
            f"{SEPARATOR} between them, got {shown!r:.60} and the like: write another separator "
            f"as {SEPARATOR}, or call the column label if each image has one class"
        )
    return layout, rows


def _with_whole_numbers(rows: list[_Row]) -> list[_Row]:
    """Replace labels such as 3.0 by 3 if all labels are whole numbers.

    pandas writes integers this way if a value in the column was missing.
    """
    if not all(_WHOLE.fullmatch(label) for row in rows for label in row.labels):
        return rows
    return [
        row._replace(labels=tuple(dict.fromkeys(label.split(".")[0] for label in row.labels)))
        for row in rows
    ]


def _check_one_answer(path: Path, rows: Sequence[_Row], *, several: bool) -> None:
    """Raise if two rows give one image different labels."""
    said: dict[str, tuple[str, ...]] = {}
    for row in rows:
        before = said.setdefault(normpath(_usual(row.path)), row.labels)
        if set(before) != set(row.labels):
            first, other = (SEPARATOR.join(labels) for labels in (before, row.labels))
            fix = "keep one row"
            if several:
                fix += " with all labels of the image"
            else:
                fix += (
                    "; if an image may have several classes, call the column labels and write them "
                    f"with {SEPARATOR} between them"
                )
            raise DataError(
                f"{path} must have the same labels in all rows of an image, got {first!r:.60} and "
                f"{other!r:.60} for {row.path!r:.100}: {fix}"
            )


def _check_all_have_a_split(path: Path, rows: Sequence[_Row]) -> None:
    """Raise if some rows have a split and others do not, which would be in no split."""
    without = [row.path for row in rows if not row.split]
    if without and len(without) < len(rows):
        raise DataError(
            f"the column split of {path} must name a split in all rows or in none, got none "
            f"for {len(without)} of {len(rows)} images, such as {without[0]!r:.100}"
        )


def _warn_of_the_unusual(path: Path, layout: _Layout, rows: Sequence[_Row]) -> None:
    """Warn of rows with unknown splits, and of labels that look like numbers or several classes."""
    unknown = [row.split for row in rows if row.split and split_of(row.split) is None]
    if unknown:
        logger.warning(
            "%s: rows skipped, since their split is not train, val or test: %d, such as %.60r",
            path,
            len(unknown),
            unknown[0],
        )
    labels = {label for row in rows for label in row.labels}
    joined = [label for label in sorted(labels) if SEPARATOR in label]
    if joined and not layout.several:
        logger.warning(
            "%s: the label %.60r counts as one class; if an image may have several, call the "
            "column labels",
            path,
            joined[0],
        )
    if not layout.classes and all(map(_NUMBER.fullmatch, labels)):
        fraction = next((label for label in sorted(labels) if not _WHOLE.fullmatch(label)), None)
        if fraction is not None:
            logger.warning(
                "%s: all labels are numbers, such as %.60r: each of these %d counts as a class",
                path,
                fraction,
                len(labels),
            )


def _layout(path: Path, columns: Sequence[str]) -> _Layout:
    """The layout of a file with these columns.

    Raises:
        DataError: the columns are no known layout.
    """
    classes = [name for name in columns if name not in _NO_CLASSES]
    if "path" not in columns or not classes or ("label" in columns and "labels" in columns):
        raise DataError(
            f"{path} must have a header with path and label, or labels, got "
            f"{','.join(columns)[:100]!r}; name the columns so, with commas between them"
        )
    if "label" in columns:
        return _Layout(labels=_one_label, rule="a path, a label")
    if "labels" in columns:
        return _Layout(labels=_several_labels, rule="a path", several=True)
    if len(set(classes)) < len(classes) or not all(classes):
        raise DataError(f"columns of {path} must have different names, got {','.join(classes)!r}")
    return _Layout(
        labels=partial(_marked, tuple(classes)),
        rule="a path, 0 or 1 in each other column (for classes by name, a column label or labels)",
        classes=tuple(map(normal, classes)),
        several=True,
    )


def _one_label(fields: dict[str, str]) -> tuple[str, ...] | None:
    label = (fields["label"] or "").strip()
    return (normal(label),) if label else None


def _several_labels(fields: dict[str, str]) -> tuple[str, ...] | None:
    if fields["labels"] is None:  # the row ends before it
        return None
    labels = (normal(label.strip()) for label in fields["labels"].split(SEPARATOR))
    return tuple({label: None for label in labels if label})


def _marked(classes: tuple[str, ...], fields: dict[str, str]) -> tuple[str, ...] | None:
    marks = [_MARKS.get((fields[name] or "").strip().removesuffix(".0")) for name in classes]
    if None in marks:
        return None
    return tuple(normal(name) for name, mark in zip(classes, marks, strict=True) if mark)


def _rows(path: Path, reader: "csv.DictReader[str]", layout: _Layout) -> Iterator[_Row]:
    bad: list[int] = []
    for fields in reader:
        # DictReader stores extra fields under None; an unquoted comma makes them.
        labels = None if None in fields or not fields["path"] else layout.labels(fields)
        if labels is None:
            bad.append(reader.line_num)
            continue
        if is_url(fields["path"]):
            raise DataError(
                f"paths in {path} must be files, got the address {fields['path']!r:.100}: a data "
                "set downloads nothing, so download the images first"
            )
        yield _Row(
            path=fields["path"],
            labels=labels,
            split=(fields.get("split") or "").strip(),
        )
    if bad:
        shown = ", ".join(map(str, bad[:_ROWS_SHOWN]))
        more = f" and {len(bad) - _ROWS_SHOWN} more" if len(bad) > _ROWS_SHOWN else ""
        raise DataError(
            f"each row of {path} must have {layout.rule} and no more fields than the header "
            f"(quote commas); not so in line {shown}{more}"
        )
