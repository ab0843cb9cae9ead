"""Options that several verbs have, and mean the same by."""

from typing import Annotated

import typer

Model = Annotated[
    str | None, typer.Option(help="Which model; by default the one that ships inside.")
]
Weights = Annotated[str | None, typer.Option(help="A tag or a file; by default the model's first.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
