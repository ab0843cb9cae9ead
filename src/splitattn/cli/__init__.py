"""The command line: one module per verb, each a thin call into the library.

Nothing here, and nothing that a verb's module imports at its top, costs more than Typer, so that
`--help` answers at once.
"""

import sys
import traceback
import warnings
from typing import Annotated

import typer

from splitattn.cli import bench, data, evaluate, export, features, models, predict, train, weights
from splitattn.errors import InputError

app = typer.Typer(
    name="splitattn",
    help="ResNeSt for people who ship vision models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import splitattn

        typer.echo(f"splitattn {splitattn.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


for _verb in (
    predict.predict,
    features.features,
    evaluate.evaluate,
    train.train,
    export.export,
    bench.bench,
    models.models,
):
    app.command()(_verb)
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line with `arguments`, by default the process's own, and exit.

    Exit status 0: all good. 1: some inputs failed. 2: the call itself is wrong, and one line on
    stderr says how. 130: interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # Taken out here, because Typer knows a global option only before the verb.
    debug = "--debug" in arguments
    # Of damaged pictures, for each of thousands of tags. What cannot be read is an error anyway.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        app([argument for argument in arguments if argument != "--debug"])
    except InputError as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
