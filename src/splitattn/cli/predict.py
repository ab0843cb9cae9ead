"""`splitattn predict`: images become labels."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from enum import StrEnum
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from splitattn.cli.options import Device, Model, Weights
from splitattn.errors import ImageError, InputError, one_line
from splitattn.files import is_file

if TYPE_CHECKING:
    from splitattn.classifier import Classifier, Prediction

    Result = list[Prediction] | ImageError

_CSV_HEADER = ("path", "rank", "label", "index", "probability", "model", "weights", "error")


class Format(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def predict(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs, URLs, or - for a list on stdin."),
    ] = None,
    model: Model = None,
    weights: Weights = None,
    topk: Annotated[int, typer.Option(help="How many classes to name.")] = 5,
    device: Device = "auto",
    engine: Annotated[
        str, typer.Option(help="auto, torch, compile, onnxruntime or openvino.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Images that the network sees at once.")] = 32,
    workers: Annotated[
        int | None, typer.Option(help="Threads that decode; by default, by processors.")
    ] = None,
    layout: Annotated[Format, typer.Option("--format", help="How results are written.")] = (
        Format.TABLE
    ),
    output: Annotated[
        Path | None, typer.Option(help="Write the results here, not to stdout.")
    ] = None,
) -> None:
    """Label images. Exit status 1 if some could not be; the others are labelled all the same."""
    if not paths:
        raise InputError(
            "predict needs images, got none; name files, folders, globs or URLs, or - for stdin"
        )
    if output is not None and not is_file(output) and os.path.exists(output):  # noqa: PTH110
        raise InputError(f"--output must be a file, got {output}, a folder or device")
    from splitattn.classifier import Classifier
    from splitattn.cli.progress import counting, downloading
    from splitattn.images.paths import expand

    with downloading() as progress:
        classifier = Classifier(model, weights, device=device, engine=engine, progress=progress)
    # File names need not be text: they come in as the system gives them and leave escaped.
    _reconfigure(sys.stdin, errors="surrogateescape")
    watched = sys.stderr.isatty()
    total = sum(1 for _ in expand(paths)) if watched and "-" not in paths else None
    names, sources = tee(expand(paths, sys.stdin))
    results = classifier.predict_stream(sources, topk=topk, batch_size=batch_size, workers=workers)
    write_as = _WRITERS[layout]
    done = failed = 0
    with closing(results), _opened(output) as write, counting(total, shown=watched) as count:
        if layout is Format.CSV:
            write(_csv_lines([_CSV_HEADER]))
        for name, result in zip(names, results, strict=True):
            write(write_as(name, result, classifier))
            done += 1
            failed += isinstance(result, ImageError)
            count(1)
    if failed:
        typer.echo(f"{failed} of {done} inputs could not be labelled", err=True)
        raise typer.Exit(1)


def _table(name: str, result: "Result", _: "Classifier") -> str:
    if isinstance(result, ImageError):
        return f"error: {result}\n"
    lines = (f"{100 * p.probability:8.2f} %  {one_line(p.label)}\n" for p in result)
    return f"{one_line(name)}\n{''.join(lines)}"


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


_WRITERS = {Format.TABLE: _table, Format.JSON: _json, Format.CSV: _csv}


@contextmanager
def _opened(output: Path | None) -> Iterator[Callable[[str], None]]:
    """A function that writes to `output`, which appears when all is written, or to stdout."""
    if output is None:
        _reconfigure(sys.stdout, errors="backslashreplace")
        yield _write_to_stdout
        return
    from splitattn.files import replacing

    try:
        with (
            replacing(output) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            yield lambda text: print(text, end="", file=file)
    except OSError as error:
        raise InputError(f"cannot write --output {output}: {error.strerror or error}") from error


def _write_to_stdout(text: str) -> None:
    # Flushed, so that whoever reads the pipe has each result as soon as it is known.
    print(text, end="", flush=True)  # noqa: T201


def _reconfigure(stream: TextIO, *, errors: str) -> None:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=errors)
