"""`splitattn models`: every architecture, as a table."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from splitattn.architectures import ARCHITECTURES
from splitattn.weights.catalogue import entries


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """List the models: layers, radix, cardinality, width, parameters, weights."""
    if as_json:
        typer.echo(json.dumps([_row(name) for name in ARCHITECTURES], indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    # On a narrow terminal the other columns wrap; a name must stay whole, to be copied.
    name_column = Column("model", no_wrap=True)
    table = Table(name_column, "layers", "splits", box=None, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("weights", no_wrap=True)
    table.add_column("top-1", justify="right")
    for name, architecture in ARCHITECTURES.items():
        weights = entries(name)
        table.add_row(
            name,
            ",".join(str(depth) for depth in architecture.layers),
            f"{architecture.radix}s{architecture.cardinality}x{architecture.bottleneck_width}d",
            f"{_parameters(name):,}",
            ", ".join(entry.tag for entry in weights),
            next((f"{entry.published.top1:.2f}" for entry in weights if entry.published), ""),
        )
    Console().print(table)
    typer.echo(
        "\nsplits: radix s cardinality x bottleneck width d.\n"
        "top-1: % on ImageNet-1k, as published with the weights."
    )


def _row(name: str) -> dict[str, object]:
    architecture = ARCHITECTURES[name]
    return {
        "model": name,
        **asdict(architecture),
        "parameters": _parameters(name),
        "weights": [
            {"tag": entry.tag, "published": entry.published and asdict(entry.published)}
            for entry in entries(name)
        ],
    }


def _parameters(name: str) -> int:
    """Of the network with the classes of its default weights, or ImageNet's if it has none."""
    weights = entries(name)
    return ARCHITECTURES[name].parameters(len(weights[0].classes) if weights else 1000)
