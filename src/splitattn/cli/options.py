"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

from splitattn.engines.table import engine_names

Model = Annotated[
    str | None,
    typer.Option(
        help="MODEL, MODEL:TAG or hf-hub:OWNER/NAME.", show_default="the one that ships inside"
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="A tag, file, folder or hf-hub:OWNER/NAME.",
        show_default="the model's default",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Engine = Annotated[str, typer.Option(help=f"What runs the network: {', '.join(engine_names())}.")]
DataClassNames = Annotated[
    Path | None,
    typer.Option(help="File that names the data's classes in label order: one a line, or JSON."),
]
OutputNames = Annotated[
    Path | None,
    typer.Option(
        "--class-names",
        help="File that names the classes in the order of the outputs: one a line, or JSON.",
        show_default="the weights' names",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Threads that decode images.", show_default="chosen from the CPU count", min=1
    ),
]
WhiteLevel = Annotated[
    float | None,
    typer.Option(
        help="The value of white in images of more than 8 bits.",
        show_default="from the weights, else from the image",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="For weights that give several labels: the smallest probability of a label.",
        show_default="0.5",
        min=0.0,
        max=1.0,
    ),
]


def _file(value: Path | None) -> Path | None:
    """None for `-`, which means stdout."""
    return None if value == Path("-") else value


Output = Annotated[
    Path | None,
    typer.Option(help="Write the results to this file instead of stdout.", callback=_file),
]
