"""`splitattn weights`: the catalogue as a table, and its files verified or fetched."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from splitattn.errors import InputError
from splitattn.files import is_file
from splitattn.weights.catalogue import WeightsEntry, entries, find_entry

app = typer.Typer(help="List, verify and fetch weights.")


@app.callback(invoke_without_command=True)
def weights(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """List, verify and fetch weights; without a verb, list them."""
    if context.invoked_subcommand:
        return
    if as_json:
        typer.echo(json.dumps([_row(entry) for entry in entries()], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("weights", box=None, pad_edge=False)
    for column in ("input", "published", "measured"):
        table.add_column(column, justify="right")
    table.add_column("where")
    for entry in entries():
        table.add_row(
            entry.name,
            str(entry.preprocessing.size),
            f"{entry.published.top1:.2f}" if entry.published else "",
            f"{entry.measured.top1:.2f}" if entry.measured else "",
            _where(entry),
        )
    Console().print(table)
    typer.echo(
        "\npublished: top-1 % on ImageNet-1k, as the publisher states it. "
        "measured: top-1 % by this project; --json says on what and how."
    )


@app.command()
def verify(
    targets: Annotated[list[str], typer.Argument(metavar="PATH|MODEL[:TAG]...")],
) -> None:
    """Compare files with the hashes in the catalogue; exit status 1 if one is wrong."""
    from splitattn.weights import store

    def answer(target: str) -> str:
        path = Path(target)
        if path.suffix or is_file(path):
            return f"{path}: ok, it is {store.identify(path).name}"
        entry = _entry(target)
        return f"{entry.name}: ok, sha256 {store.verify(entry)}"

    _answer_each(targets, answer)


@app.command()
def fetch(
    targets: Annotated[list[str], typer.Argument(metavar="MODEL[:TAG]...")],
) -> None:
    """Download weights into the cache and print where they are; exit status 1 if one fails."""
    from splitattn.cli.progress import downloading
    from splitattn.weights import store

    def answer(target: str) -> str:
        entry = _entry(target)
        with downloading() as progress:
            return str(store.fetch(entry, progress=progress))

    _answer_each(targets, answer)


def _answer_each(targets: list[str], answer: Callable[[str], str]) -> None:
    failed = False
    for target in targets:
        try:
            typer.echo(answer(target))
        except InputError as error:
            failed = True
            typer.echo(f"error: {error}", err=True)
    if failed:
        raise typer.Exit(1)


def _entry(target: str) -> WeightsEntry:
    model, _, tag = target.partition(":")
    return find_entry(model, tag or None)


def _row(entry: WeightsEntry) -> dict[str, object]:
    return asdict(entry) | {"where": _where(entry)}


def _where(entry: WeightsEntry) -> str:
    from splitattn.weights.store import local_path

    if not is_file(local_path(entry)):
        return "to download"
    return "embedded" if entry.embedded else "cached"
