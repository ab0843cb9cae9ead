"""The formats in which `splitattn predict` writes the answers of any task."""

import csv
import io
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from splitattn.cli.output import csv_cell
from splitattn.errors import InputError

if TYPE_CHECKING:
    from PIL import Image


class Format(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    COCO = "coco"


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Answers images, and writes the answers.

    Attributes:
        results: from paths and URLs to one answer or `ImageError` each, in their order.
        writers: for each format, from a name and an answer to text.
        csv_header: names of the columns.
        coco: begins and ends COCO's results, where there is a writer for them.
        draw: from an image and an answer to a picture; raises `ImageError`.
        class_map: for a segmenter, from an image and an answer to a picture of class numbers.
    """

    results: Callable[[Iterable[str | bytes]], Generator[Any, None, None]]
    writers: Mapping[Format, Callable[[str, Any], str]]
    csv_header: tuple[str, ...]
    draw: "Callable[[str | bytes, Any], Image.Image]"
    coco: tuple[str, str] = ("", "")
    class_map: "Callable[[str | bytes, Any], Image.Image] | None" = None

    def around(self, format: Format) -> tuple[str, str]:
        """What comes before and after all answers.

        Raises:
            InputError: these answers cannot be written in the format.
        """
        if format not in self.writers:
            raise InputError(
                f"format must be one of {', '.join(self.writers)} for these weights, got {format}"
            )
        if format is Format.CSV:
            return csv_lines([self.csv_header]), ""
        return self.coco if format is Format.COCO else ("", "")


def csv_lines(rows: Iterable[tuple[object, ...]]) -> str:
    """Rows as lines of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(csv_cell, row) for row in rows)
    return text.getvalue()


def what_was_measured(measured: Any) -> dict[str, Any]:
    """The first fields of every evaluation's JSON: the network, its engine and the data."""
    from splitattn.environment import describe

    names = ("model", "weights", "engine", "data", "split")
    return {name: getattr(measured, name) for name in names} | {"environment": describe()}
