"""`splitattn weights`: the catalogue; files verified, fetched, converted; model cards."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from splitattn.cli.output import conclude, say
from splitattn.errors import InputError, WeightsError, one_line, write_failure
from splitattn.files import is_file, is_folder
from splitattn.weights.catalogue import WeightsEntry, entries, find_entry

# A dot alone does not make a name a file: timm has resnest50d.in1k.
_FILE_SUFFIXES = (".pth", ".pt", ".pkl", ".safetensors")

# A file, or an entry of the catalogue.
Target = TypeVar("Target", bound=Path | WeightsEntry)

app = typer.Typer(help="List, verify, fetch and convert weights.")


@app.callback(invoke_without_command=True)
def weights(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """List, verify, fetch and convert weights; without a verb, list them."""
    if context.invoked_subcommand:
        return
    if as_json:
        typer.echo(json.dumps([_row(entry) for entry in entries()], indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("weights", no_wrap=True), box=None, pad_edge=False)
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
        "\npublished: top-1 % on ImageNet-1k, as the publisher states it.\n"
        "measured: top-1 % by this project; --json says on what and how."
    )


@app.command()
def verify(
    targets: Annotated[list[str], typer.Argument(metavar="PATH|MODEL[:TAG]...")],
) -> None:
    """Compare files with the hashes in the catalogue; exit status 1 if one is wrong."""
    from splitattn.weights import cache

    def answer(found: Path | WeightsEntry) -> str:
        if isinstance(found, Path):
            entry, what = cache.identify(found), one_line(str(found))
            if entry.pinned:
                return f"{what}: ok, it is {entry.name}"
            return f"{what}: name matches {entry.name} ({_partly_known(entry)})"
        digest = cache.verify(found)
        if found.pinned:
            return f"{found.name}: ok, sha256 {digest}"
        return f"{found.name}: name matches ({_partly_known(found)}), sha256 {digest}"

    _answer_each([_file_or_entry(target) for target in targets], answer)


@app.command()
def fetch(
    targets: Annotated[list[str], typer.Argument(metavar="MODEL[:TAG]...")],
) -> None:
    """Download weights into the cache and print where they are; exit status 1 if one fails."""
    from splitattn.cli.progress import downloading, starting

    def answer(entry: WeightsEntry) -> str:
        with starting("fetching the weights"), downloading() as progress:
            from splitattn.weights import cache

            return str(cache.fetch(entry, progress=progress))

    _answer_each([find_entry(target) for target in targets], answer)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A checkpoint in any layout.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A .safetensors, .pth or .pt.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="LAYOUT",
            help="official = timm = encoding, mmpretrain, mmdet = mmseg, or detectron2.",
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Model of the checkpoint, if the file does not tell.")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which of several networks in the file: student, ..."),
    ] = None,
) -> None:
    """Write weights as another project names them; values do not change."""
    from splitattn.libraries import require

    require("weights convert", "torch")
    from splitattn.cli.progress import starting
    from splitattn.weights.layouts import find_layout

    find_layout(to)  # a wrong name is an error before PyTorch is loaded
    with starting("converting"):
        from splitattn.convert import convert as write

        done = write(source, target, to=to, model=model, part=part)
    dropped = f"; without {', and without '.join(done.dropped)}" if done.dropped else ""
    keys = f"from {done.source} to {done.target}"
    if done.source == done.target:
        keys = f"keys as before, {done.target}"
    conclude(f"{done.path}: {' or '.join(done.models)}, {keys}, {done.tensors} tensors{dropped}")
    if done.missing_depth:
        say(
            f"note: {done.target} lists no network of layers {done.missing_depth}: add them to its "
            "table of depths to build one"
        )


@app.command()
def card(
    target: Annotated[str, typer.Argument(metavar="FILE|MODEL[:TAG]")],
    output: Annotated[Path | None, typer.Option(help="Write the card here, not to stdout.")] = None,
    license: Annotated[
        str | None, typer.Option("--license", help="SPDX identifier, if you know it.")
    ] = None,
) -> None:
    """Write the model card of a file: Markdown, with metadata for the Hugging Face hub."""
    from splitattn.cli.progress import downloading
    from splitattn.files import replacing
    from splitattn.weights.cache import fetch as fetched
    from splitattn.weights.card import model_card
    from splitattn.weights.hub import is_generated

    found = _file_or_entry(target)
    if not isinstance(found, Path):
        with downloading() as progress:
            found = fetched(found, progress=progress)
    text = model_card(found, license=license)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        if output.exists() and not is_generated(output):
            raise InputError(
                f"--output must not replace a page that splitattn did not write, got {output}: "
                "choose another name"
            )
        with replacing(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(write_failure(output, error, "cannot write --output")) from error
    say(f"{output}: the model card of {found}")


def _partly_known(entry: WeightsEntry) -> str:
    return f"the publisher gives {len(entry.sha256)} of 64 digits of its sha256"


def _answer_each(targets: list[Target], answer: Callable[[Target], str]) -> None:
    failed = False
    for target in targets:
        try:
            typer.echo(answer(target))
        except InputError as error:
            failed = True
            say(f"error: {error}")
    if failed:
        raise typer.Exit(1)


def _file_or_entry(target: str) -> Path | WeightsEntry:
    path = Path(target)
    if is_folder(path):
        from splitattn.weights.in_folder import weights_file

        return weights_file(path)
    return path if path.suffix in _FILE_SUFFIXES or is_file(path) else find_entry(target)


def _row(entry: WeightsEntry) -> dict[str, object]:
    return asdict(entry) | {"where": _where(entry)}


def _where(entry: WeightsEntry) -> str:
    from splitattn.weights.cache import local_path

    with suppress(WeightsError):  # without a home folder there is no cache
        if is_file(local_path(entry)):
            return "embedded" if entry.embedded else "cached"
    return "to download"
