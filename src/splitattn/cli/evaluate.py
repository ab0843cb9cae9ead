"""`splitattn evaluate`: how good is a network on these images?"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitattn.cli.options import Device, Model, Weights
from splitattn.errors import InputError, one_line

if TYPE_CHECKING:
    from splitattn.engines.engine import Engine
    from splitattn.evaluation import Evaluation
    from splitattn.preprocessing import Preprocessing

# As many of the most frequent confusions as a screen takes in.
_CONFUSIONS_SHOWN = 10


def evaluate(
    data: Annotated[str, typer.Argument(help="Folder, Parquet shards or torchvision:NAME.")],
    model: Model = None,
    weights: Weights = None,
    split: Annotated[str, typer.Option(help="Which part of the data.")] = "val",
    size: Annotated[
        int | None, typer.Option(help="Input size, if not the model's own.", min=32)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at once.", min=1)] = 64,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="Processes that decode images.", min=0)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure top-1, top-5 and loss over every image once, class by class.

    Exit status 1 if some images could not be read; the others are measured all the same.
    """
    from splitattn.cli.progress import counting
    from splitattn.data.sources import open_data
    from splitattn.environment import describe
    from splitattn.evaluation import evaluate as measure
    from splitattn.evaluation import with_classes_of_model

    network = _opened(model, weights, size=size, device=device)
    images = with_classes_of_model(
        open_data(data, split), network.classes, num_classes=network.num_classes
    )
    with counting(len(images), shown=sys.stderr.isatty()) as advance:
        measured = measure(
            network.engine,
            images,
            network.preprocessing,
            batch_size=batch_size,
            workers=workers,
            on_images=advance,
        )
    origin = {
        "model": network.model,
        "weights": network.weights,
        "engine": network.engine.name,
        "data": data,
        "split": split,
        "size": network.preprocessing.size,
    }
    if as_json:
        typer.echo(json.dumps(origin | {"environment": describe()} | _as_dict(measured)))
    else:
        _print_tables(measured)
    for problem in measured.problems:
        typer.echo(f"error: {problem}", err=True)
    if measured.problems:
        raise typer.Exit(1)


@dataclass(frozen=True, kw_only=True)
class _Network:
    """What is measured.

    Attributes:
        model, weights: the names of its architecture, and of the tag or file.
        classes: by output index, or None if the weights come without names.
        num_classes: its outputs.
        preprocessing: how images become its input.
        engine: runs it.
    """

    model: str
    weights: str
    classes: tuple[str, ...] | None
    num_classes: int
    preprocessing: "Preprocessing"
    engine: "Engine"


def _opened(model: str | None, weights: str | None, *, size: int | None, device: str) -> _Network:
    from splitattn.cli.progress import downloading
    from splitattn.create import load_trained
    from splitattn.engines.exported import is_exported, load_exported
    from splitattn.engines.pytorch import TorchEngine, choose_device
    from splitattn.images.preprocess import at_size
    from splitattn.weights.resolve import check_owner, resolve

    if weights is not None and is_exported(weights):
        exported = load_exported(weights, device=device)
        metadata = exported.metadata
        check_owner(Path(weights), metadata.model, model)
        if size not in (None, metadata.preprocessing.size):
            raise InputError(
                f"{weights} takes images of {metadata.preprocessing.size} pixels, got --size "
                f"{size}: leave it out, or name the weights that it was exported from"
            )
        return _Network(
            model=metadata.model,
            weights=weights,
            classes=metadata.classes,
            num_classes=len(metadata.classes),
            preprocessing=metadata.preprocessing,
            engine=exported.runtime.engine,
        )
    with downloading() as progress:
        resolved = resolve(model, weights, progress=progress)
    network = load_trained(resolved)
    return _Network(
        model=resolved.model,
        weights=resolved.tag or str(resolved.path),
        classes=resolved.classes,
        num_classes=network.num_classes,
        preprocessing=at_size(resolved.preprocessing, size or resolved.preprocessing.size),
        engine=TorchEngine(network.eval(), choose_device(device)),
    )


def _as_dict(measured: "Evaluation") -> dict[str, Any]:
    return {
        "n": measured.n,
        "top1": measured.top1,
        "top5": measured.top5,
        "loss": measured.loss,
        "classes": [
            {"label": name, "n": n, "top1": top1, "top5": top5}
            for name, n, top1, top5 in measured.by_class()
        ],
        "confusion": measured.confusion.tolist(),
        "problems": list(measured.problems),
    }


def _print_tables(measured: "Evaluation") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    classes = Table("class", box=None, pad_edge=False)
    for column in ("images", "top-1 %", "top-5 %"):
        classes.add_column(column, justify="right")
    for name, n, top1, top5 in measured.by_class():
        classes.add_row(escape(one_line(name)), str(n), f"{top1:.1f}", f"{top5:.1f}")
    confusions = Table("taken for", "is", box=None, pad_edge=False)
    confusions.add_column("images", justify="right")
    for label, guess, count in measured.confusions()[:_CONFUSIONS_SHOWN]:
        confusions.add_row(escape(one_line(guess)), escape(one_line(label)), str(count))
    console = Console()
    console.print(classes)
    console.print()
    console.print(confusions)
    console.print()
    console.print(
        f"top-1 {measured.top1:.2f} %  top-5 {measured.top5:.2f} %  loss {measured.loss:.4f}  "
        f"n {measured.n}",
        highlight=False,
    )
