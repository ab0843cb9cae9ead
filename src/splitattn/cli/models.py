"""`splitattn models`: every architecture, as a table."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from splitattn.architectures import ARCHITECTURES, Architecture
from splitattn.weights.catalogue import entries


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """List the models: layers, radix, cardinality, width, parameters, weights."""
    if as_json:
        typer.echo(json.dumps([_row(name) for name in ARCHITECTURES], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "layers", "splits", box=None, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("weights")
    table.add_column("top-1 %", justify="right")
    for name, architecture in ARCHITECTURES.items():
        weights = entries(name)
        table.add_row(
            name,
            ", ".join(str(depth) for depth in architecture.layers),
            f"{architecture.radix}s{architecture.cardinality}x{architecture.bottleneck_width}d",
            f"{parameter_count(architecture):,}",
            ", ".join(entry.tag for entry in weights),
            next((f"{entry.published.top1:.2f}" for entry in weights if entry.published), ""),
        )
    Console().print(table)
    typer.echo(
        "\nsplits: radix s cardinality x bottleneck width d. "
        "top-1: ImageNet-1k, as published with the weights."
    )


def _row(name: str) -> dict[str, object]:
    architecture = ARCHITECTURES[name]
    return {
        "model": name,
        **asdict(architecture),
        "parameters": parameter_count(architecture),
        "weights": [
            {"tag": entry.tag, "published": entry.published and asdict(entry.published)}
            for entry in entries(name)
        ],
    }


def parameter_count(architecture: Architecture, num_classes: int = 1000) -> int:
    """Parameters of the network, counted without building it (and so without torch)."""

    def conv(inputs: int, outputs: int, size: int, groups: int = 1) -> int:
        return inputs * outputs * size**2 // groups

    def norm(channels: int) -> int:
        return 2 * channels

    radix, cardinality = architecture.radix, architecture.cardinality
    channels = architecture.stem_channels
    count = norm(channels)
    if architecture.deep_stem:
        stem = architecture.stem_width
        count += conv(3, stem, 3) + conv(stem, stem, 3) + conv(stem, channels, 3) + 2 * norm(stem)
    else:
        count += conv(3, channels, 7)
    for stage, depth in enumerate(architecture.layers):
        out = architecture.stage_channels[stage]
        planes = architecture.planes * 2**stage
        width = int(planes * architecture.bottleneck_width / 64) * cardinality
        if radix:
            attention = max(width * radix // 4, 32)
            spatial = conv(width, width * radix, 3, radix * cardinality) + norm(width * radix)
            spatial += conv(width, attention, 1, cardinality) + attention + norm(attention)
            spatial += conv(attention, width * radix, 1, cardinality) + width * radix
        else:
            spatial = conv(width, width, 3, cardinality) + norm(width)
        block = norm(width) + spatial + conv(width, out, 1) + norm(out)
        shortcut = conv(channels, out, 1) + norm(out) if stage or channels != out else 0
        count += depth * block + shortcut
        count += conv(channels, width, 1) + (depth - 1) * conv(out, width, 1)
        channels = out
    return count + (channels + 1) * num_classes
