"""Options that several verbs have, and mean the same by."""

from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option(help="Which model, or hf-hub:OWNER/NAME; by default the one that ships inside."),
]
Weights = Annotated[
    str | None,
    typer.Option(help="A tag, file, folder or hf-hub:OWNER/NAME; by default the model's first."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
