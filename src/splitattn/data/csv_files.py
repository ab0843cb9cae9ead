"""Data sets that are a CSV file of paths and labels."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from splitattn.data.class_names import in_order, normal
from splitattn.data.labelled import LabelledImages
from splitattn.data.splits import MissingSplitError, called
from splitattn.errors import DataError
from splitattn.files import open_file
from splitattn.images.paths import is_url

_REQUIRED = ("path", "label")
# Bad rows that an error lists before it only counts them.
_ROWS_SHOWN = 5


class _Row(NamedTuple):
    path: str
    label: str
    split: str


def open_csv(path: Path, split: str) -> LabelledImages:
    """Open `split` of a CSV file, which must have a header.

    Columns: `path`, relative to the file's folder or absolute; `label`, a class name; and,
    if there are several splits, `split`. Other columns are ignored. Classes are the labels of all
    splits, in the order of `in_order`.

    Raises:
        DataError: the file cannot be read, a column or the split is missing, or rows are
            incomplete.
    """
    rows = _read(path)
    classes = in_order(row.label for row in rows)
    present = {row.split for row in rows}
    # Without such a column, or with an empty one, every row is of every split.
    found = [""] if present == {""} else called(present, split)
    if not found:
        raise MissingSplitError(
            f"{path} must have rows whose split is {split}, "
            f"got {', '.join(map(repr, sorted(present)[:_ROWS_SHOWN]))}"
        )
    chosen = [row for row in rows if row.split in found]
    index = {label: i for i, label in enumerate(classes)}
    images = [str(path.parent / row.path) for row in chosen]
    return LabelledImages(
        origin=f"{path} {' '.join(found)}".strip(),
        classes=classes,
        images=images,
        labels=[index[row.label] for row in chosen],
        names=images,
    )


def _read(path: Path) -> list[_Row]:
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(path, csv.DictReader(file)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} must be a CSV file in UTF-8: {error}") from error
    if not rows:
        raise DataError(f"the data set must hold images, got no rows in {path}")
    return rows


def _rows(path: Path, reader: "csv.DictReader[str]") -> Iterator[_Row]:
    columns = reader.fieldnames or ()
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise DataError(
            f"{path} must have a header with path and label, got {','.join(columns)[:100]!r}"
        )
    bad: list[int] = []
    for fields in reader:
        # DictReader files what a row has too much under None, which an unquoted comma leads to.
        if None in fields or not fields["path"] or not (fields["label"] or "").strip():
            bad.append(reader.line_num)
            continue
        if is_url(fields["path"]):
            raise DataError(
                f"paths in {path} must be files, got the address {fields['path']!r:.100}: a data "
                "set downloads nothing, so download the images first"
            )
        yield _Row(
            path=fields["path"],
            label=normal(fields["label"].strip()),
            split=(fields.get("split") or "").strip(),
        )
    if bad:
        shown = ", ".join(map(str, bad[:_ROWS_SHOWN]))
        more = f" and {len(bad) - _ROWS_SHOWN} more" if len(bad) > _ROWS_SHOWN else ""
        raise DataError(
            f"each row of {path} must have a path, a label and no more fields than the header "
            f"(quote commas); not so in line {shown}{more}"
        )
