"""What `evaluate` prints of a network that gives an image several labels."""

import csv
import io
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from splitattn.cli.answers import what_was_measured
from splitattn.errors import one_line

if TYPE_CHECKING:
    from splitattn.label_scores import LabelAnswer
    from splitattn.workflows import NetworkLabelScores


def as_dict(measured: "NetworkLabelScores") -> dict[str, Any]:
    """What `--json` prints."""
    return {
        **what_was_measured(measured),
        "size": measured.size,
        "n": measured.n,
        "threshold": measured.threshold,
        "map": measured.mean_average_precision,
        "f1": measured.micro_f1,
        "macro_f1": measured.macro_f1,
        "loss": measured.loss,
        "classes": [
            {
                "label": row.name,
                "n": row.images,
                "ap": None if math.isnan(row.average_precision) else row.average_precision,
                "precision": row.precision,
                "recall": row.recall,
                "f1": row.f1,
            }
            for row in measured.by_class()
        ],
        "problems": list(measured.problems),
    }


def print_table(measured: "NetworkLabelScores") -> None:
    """Print a table of classes, and a line for all of them."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    classes = Table(Column("class", overflow="fold"), box=None, pad_edge=False)
    for column in ("images", "AP %", "precision %", "recall %", "F1 %"):
        classes.add_column(column, justify="right")
    for row in measured.by_class():
        average = "-" if math.isnan(row.average_precision) else f"{row.average_precision:.1f}"
        figures = (f"{figure:.1f}" for figure in (row.precision, row.recall, row.f1))
        classes.add_row(escape(one_line(row.name)), str(row.images), average, *figures)
    console = Console()
    console.print(classes)
    console.print()
    console.print(
        f"mAP {measured.mean_average_precision:.2f} %  F1 {measured.micro_f1:.2f} %  "
        f"macro F1 {measured.macro_f1:.2f} % (at {measured.threshold:g})  "
        f"loss {measured.loss:.4f}  n {measured.n}",
        highlight=False,
    )


def answers_csv(answers: Iterable["LabelAnswer"]) -> str:
    """A line for each image: its labels, those it was given, and their probabilities."""
    from splitattn.cli.output import csv_cell
    from splitattn.data.csv_files import SEPARATOR

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "labels", "guesses", "probabilities"))
    for answer in answers:
        labels, guesses = (
            SEPARATOR.join(names) for names in (answer.labels, [name for name, _ in answer.guesses])
        )
        probabilities = SEPARATOR.join(f"{probability:.6f}" for _, probability in answer.guesses)
        writer.writerow((*map(csv_cell, (answer.name, labels, guesses)), probabilities))
    return text.getvalue()
