"""`splitattn predict`: images become labels."""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitattn.cli.drawing import Pictures
from splitattn.cli.options import Device, Engine, Model, Output, Weights, WhiteLevel, Workers
from splitattn.cli.output import check_output, reconfigure, writing
from splitattn.errors import ImageError, InputError, one_line

if TYPE_CHECKING:
    from splitattn.classifier import Classifier, Prediction

    Result = list[Prediction] | ImageError

_CSV_HEADER = ("path", "rank", "label", "index", "probability", "model", "weights", "error")


class Format(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


# What the format is if only the ending of --output says it.
_BY_ENDING = {".json": Format.JSON, ".jsonl": Format.JSON, ".csv": Format.CSV}


# Measured with the model inside the package (docs/log.md): below, three of four first guesses are
# wrong; just above it, about half.
_MIN_PROBABILITY = 0.3


class Decoding(StrEnum):
    """How JPEG photographs are decoded."""

    FAST = "fast"
    EXACT = "exact"


def predict(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs, URLs, or - for a list on stdin."),
    ] = None,
    model: Model = None,
    weights: Weights = None,
    topk: Annotated[int, typer.Option(help="How many classes to name.")] = 5,
    min_probability: Annotated[
        float,
        typer.Option(
            help="Say 'not sure' in the table where the best class has less. JSON and CSV always "
            "have everything.",
            min=0.0,
            max=1.0,
        ),
    ] = _MIN_PROBABILITY,
    device: Device = "auto",
    engine: Engine = "auto",
    batch_size: Annotated[int, typer.Option(help="Images that the network sees at once.")] = 32,
    workers: Workers = None,
    decode: Annotated[
        Decoding,
        typer.Option(
            help="fast reads large JPEGs at reduced scale, never below twice the network's input."
        ),
    ] = Decoding.FAST,
    white_level: WhiteLevel = None,
    layout: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="How results are written. [default: by the ending of --output, or table]",
        ),
    ] = None,
    output: Output = None,
    draw: Annotated[
        Path | None,
        typer.Option(help="Folder for pictures with their labels, one JPEG for each image."),
    ] = None,
) -> None:
    """Label images. Exit status 1 if some could not be; the others are labelled all the same."""
    if not paths:
        raise InputError(
            "predict needs images, got none; name files, folders, globs or URLs, or - for stdin"
        )
    check_output(output)
    if layout is None:
        layout = _BY_ENDING.get(output.suffix.lower() if output else "", Format.TABLE)
    from splitattn.classifier import Classifier
    from splitattn.cli.progress import counting, downloading
    from splitattn.images.paths import expand, passed_over_text

    with downloading() as progress:
        classifier = Classifier(
            model,
            weights,
            device=device,
            engine=engine,
            decoding=decode.value,
            white_level=white_level,
            progress=progress,
        )
    # File names need not be text: they come in as the system gives them and leave escaped.
    reconfigure(sys.stdin, errors="surrogateescape")
    watched = sys.stderr.isatty()
    total = sum(1 for _ in expand(paths)) if watched and "-" not in paths else None
    passed_over: Counter[str] = Counter()
    own = classifier.preprocessing.white_level
    pictures = None if draw is None else Pictures(draw, white_level=own)
    names, sources = tee(expand(paths, sys.stdin, passed_over))
    results = classifier.predict_stream(sources, topk=topk, batch_size=batch_size, workers=workers)
    write_as = partial(_table, min_probability) if layout is Format.TABLE else _WRITERS[layout]
    done = failed = 0
    with closing(results), writing(output) as write, counting(shown=watched) as count:
        if layout is Format.CSV:
            write(_csv_lines([_CSV_HEADER]))
        for name, result in zip(names, results, strict=True):
            write(write_as(name, result, classifier))
            if pictures and not isinstance(result, ImageError):
                undrawn = pictures.add(name, result)
                if undrawn:
                    typer.echo(f"error: {undrawn}", err=True)
                    failed += 1
            done += 1
            failed += isinstance(result, ImageError)
            count(1, total)
    if passed_over:
        typer.echo(f"warning: {passed_over_text(passed_over)}", err=True)
    if failed:
        typer.echo(f"{failed} of {done} inputs could not be labelled", err=True)
        raise typer.Exit(1)


def _table(min_probability: float, name: str, result: "Result", _: "Classifier") -> str:
    if isinstance(result, ImageError):
        return f"error: {result}\n"
    lines = (f"{100 * p.probability:8.2f} %  {one_line(p.label)}\n" for p in result)
    doubt = "  (not sure)" if result[0].probability < min_probability else ""
    return f"{one_line(name)}{doubt}\n{''.join(lines)}"


def _json(name: str, result: "Result", classifier: "Classifier") -> str:
    line: dict[str, Any] = {"path": name}
    if isinstance(result, ImageError):
        line["error"] = str(result)
    else:
        line["predictions"] = [asdict(prediction) for prediction in result]
        line["model"] = classifier.model
        line["weights"] = classifier.weights
    return json.dumps(line) + "\n"


def _csv(name: str, result: "Result", classifier: "Classifier") -> str:
    if isinstance(result, ImageError):
        return _csv_lines([(name, "", "", "", "", "", "", str(result))])
    origin = (classifier.model, classifier.weights)
    return _csv_lines(
        (name, rank, p.label, p.index, p.probability, *origin, "")
        for rank, p in enumerate(result, start=1)
    )


def _csv_lines(rows: Iterable[tuple[object, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


_WRITERS = {Format.JSON: _json, Format.CSV: _csv}
