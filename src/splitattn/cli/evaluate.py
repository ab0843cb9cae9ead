"""`splitattn evaluate`: how good is a network on these images?"""

import csv
import io
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitattn.cli import boxes, class_maps, several_labels
from splitattn.cli.answers import what_was_measured
from splitattn.cli.options import (
    DataClassNames,
    Device,
    Engine,
    Model,
    Output,
    Threshold,
    Weights,
    WhiteLevel,
    Workers,
)
from splitattn.errors import InputError, one_line

if TYPE_CHECKING:
    from splitattn.evaluation import Answer
    from splitattn.workflows import NetworkEvaluation

# How many of the most frequent confusions the table shows.
_CONFUSIONS_SHOWN = 10


def evaluate(
    data: Annotated[
        str,
        typer.Argument(help="Folder, Parquet, CSV file or torchvision:NAME; or boxes or masks."),
    ],
    model: Model = None,
    weights: Weights = None,
    split: Annotated[str, typer.Option(help="Split of the data: train, val or test.")] = "val",
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="Measure on the training images that `train` held out for validation: a --fold, "
            "or a fifth if the data has no split for it.",
        ),
    ] = False,
    class_names: DataClassNames = None,
    size: Annotated[
        int | None, typer.Option(help="Input size, if not the model's own.", min=32)
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Images that the network sees at once.", min=1)
    ] = 64,
    device: Device = "auto",
    engine: Engine = "auto",
    workers: Workers = None,
    white_level: WhiteLevel = None,
    threshold: Threshold = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    output: Output = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="Write the first guess, or all labels, for each image to this CSV file."),
    ] = None,
) -> None:
    """Measure top-1, top-5 and loss over every image once, class by class.

    For weights that give several labels: mAP and F1. For a detector: COCO's
    figures. For a segmenter: mIoU and accuracy.

    Exit status 1 if some images could not be read; the others are measured all the same.
    """
    from splitattn.cli.output import check_output, json_line, say, write_output
    from splitattn.cli.progress import counting, downloading, starting

    check_output(output, endings=(".json", ".jsonl"))
    check_output(answers, "--answers", endings=(".csv",))
    with starting("starting"):
        from splitattn.dense.evaluating import DetectionEvaluation
        from splitattn.dense.segmenter_evaluating import SegmentationEvaluation
        from splitattn.opening import TASK, task_of
        from splitattn.workflows import NetworkLabelScores
        from splitattn.workflows import evaluate as measure

    if answers and task_of(weights) != TASK:
        raise InputError(f"--answers is for classification, got weights for {task_of(weights)}")
    given: list[Any] = []
    answer_lines: Callable[[Any], str] = _as_csv
    with downloading() as progress, counting(first=5.0) as advance:
        measured = measure(
            data,
            model=model,
            weights=weights,
            split=split,
            held_out=held_out,
            class_names=class_names,
            size=size,
            engine=engine,
            device=device,
            batch_size=batch_size,
            workers=workers,
            white_level=white_level,
            threshold=threshold,
            progress=progress,
            on_images=advance,
            on_answer=given.append if answers else None,
        )
    if isinstance(measured, DetectionEvaluation):
        line, show = boxes.as_dict(measured), partial(boxes.print_table, measured)
    elif isinstance(measured, SegmentationEvaluation):
        line, show = class_maps.as_dict(measured), partial(class_maps.print_table, measured)
    elif isinstance(measured, NetworkLabelScores):
        line = several_labels.as_dict(measured)
        show = partial(several_labels.print_table, measured)
        answer_lines = several_labels.answers_csv
    else:
        line, show = _as_dict(measured), partial(_print_tables, measured)
    with ExitStack() as writes:  # called last to first, each even if another one fails
        if not as_json:
            writes.callback(show)
        if as_json or output:
            writes.callback(write_output, json_line(line), output)
        if answers:
            writes.callback(write_output, answer_lines(given), answers, "--answers")
    for problem in measured.problems:
        say(f"error: {problem}")
    if measured.problems:
        raise typer.Exit(1)


def _as_csv(answers: "list[Answer]") -> str:
    """A line for each image: its name, its label, the first guess and that one's probability."""
    from splitattn.cli.output import csv_cell

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "label", "guess", "probability"))
    for answer in answers:
        names = map(csv_cell, (answer.name, answer.label, answer.guess))
        writer.writerow((*names, f"{answer.probability:.6f}"))
    return text.getvalue()


def _as_dict(measured: "NetworkEvaluation") -> dict[str, Any]:
    return {
        **what_was_measured(measured),
        "size": measured.size,
        "n": measured.n,
        "top1": measured.top1,
        "top5": measured.top5,
        "loss": measured.loss,
        "macro_f1": measured.macro_f1,
        "classes": [
            {
                "label": name,
                "n": n,
                "top1": top1,
                "top5": top5,
                "precision": precision,
                "recall": top1,
                "f1": f1,
            }
            for (name, n, top1, top5), (precision, f1) in _scores(measured)
        ],
        "confusion": measured.confusion.tolist(),
        "problems": list(measured.problems),
    }


def _scores(
    measured: "NetworkEvaluation",
) -> list[tuple[tuple[str, int, float, float], tuple[float, float]]]:
    """`by_class`, and precision and F1 beside it."""
    images: list[int] = measured.confusion.sum(1).tolist()
    scores = compress(measured.precision_and_f1(), images)
    return list(zip(measured.by_class(), scores, strict=True))


def _print_tables(measured: "NetworkEvaluation") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    # Names of classes that are too long are wrapped, since they may differ only in their ends.
    name_column = partial(Column, overflow="fold")
    classes = Table(name_column("class"), box=None, pad_edge=False)
    for column in ("images", "top-1 %", "top-5 %", "precision %", "F1 %"):
        classes.add_column(column, justify="right")
    for (name, n, *shares), scores in _scores(measured):
        figures = (f"{figure:.1f}" for figure in (*shares, *scores))
        classes.add_row(escape(one_line(name)), str(n), *figures)
    confusions = Table(name_column("taken for"), name_column("is"), box=None, pad_edge=False)
    confusions.add_column("images", justify="right")
    for label, guess, count in measured.confusions()[:_CONFUSIONS_SHOWN]:
        confusions.add_row(escape(one_line(guess)), escape(one_line(label)), str(count))
    console = Console()
    console.print(classes)
    console.print()
    if confusions.rows:
        console.print(confusions)
        console.print()
    console.print(
        f"top-1 {measured.top1:.2f} %  top-5 {measured.top5:.2f} %  "
        f"macro F1 {measured.macro_f1:.2f} %  loss {measured.loss:.4f}  "
        f"n {measured.n}",
        highlight=False,
    )
