"""The command line: one module per verb, each a thin call into the library.

Nothing that takes longer than Typer is imported here or at the top of a verb's module, so that
`--help` answers at once. A call that begins with a verb imports only that verb's module.
"""

import errno
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from io import UnsupportedOperation
from types import ModuleType
from typing import Annotated, Any

import typer

from splitattn import distributed
from splitattn.cli.elsewhere import with_our_name
from splitattn.cli.output import (
    discard_unwritten,
    reconfigure,
    replace_streams,
    say,
    show_warnings,
)
from splitattn.cli.values import Command
from splitattn.errors import InputError, is_full_disk, one_line, write_failure

# In the order of `--help`. Each is a module here, with a function or, where there are verbs of its
# own, an `app` of Typer.
VERBS = (
    *("predict", "explain", "features", "evaluate", "train", "export", "bulk", "serve", "bench"),
    *("models", "data", "weights"),
)
# Libraries whose import is reported: PyTorch takes seconds, the others a third of one.
_SLOW = {"torch": "PyTorch", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


def _print_version(wanted: bool) -> None:
    if wanted:
        import splitattn

        typer.echo(f"splitattn {splitattn.__version__}")
        raise typer.Exit


def create_app(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """The command line with some of the verbs."""
    app = typer.Typer(
        name="splitattn",
        help="ResNeSt for people who ship vision models.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        callback=_options,
    )
    for verb in verbs:
        module = import_module(f"splitattn.cli.{verb}")
        if hasattr(module, "app"):
            for command in module.app.registered_commands:
                command.cls = Command
            app.add_typer(module.app, name=verb)
        else:
            app.command(cls=Command)(getattr(module, verb))
    return app


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


def main(arguments: list[str] | None = None) -> None:
    """Run the command line with `arguments`, by default the process's own, and exit.

    Exit status 0: all good. 1: some inputs failed. 2: the call itself is wrong, and one line on
    stderr says how. 130: interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # Taken out here, because Typer knows a global option only before the verb.
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    named = [verb for verb in VERBS if arguments[:1] == [verb]]
    app = create_app(named or VERBS)
    # Pillow warns of every tag of a damaged picture. One that cannot be read is an error anyway.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {one_line(str(message))}\n"
    replace_streams()
    show_warnings()
    if distributed.is_first() and not sys.stderr.isatty():
        # Before Python's own finder, which it replaces, and after those of other programs.
        usual = [*sys.meta_path, PathFinder].index(PathFinder)
        sys.meta_path.insert(usual, _SlowFinder)
    threading.excepthook = _on_thread_error
    # Paths may hold bytes that are no text, which must be printed all the same.
    reconfigure(sys.stdout, errors="backslashreplace")
    try:
        status = app(arguments, standalone_mode=False)
    except (InputError, OSError) as error:
        distributed.wait_for_others_to_fail(error)
        if debug:
            traceback.print_exc()
        fault = error if isinstance(error, InputError) else _system_fault(error)
        say(f"error: {fault}")
        if isinstance(error, OSError):
            discard_unwritten()
        sys.exit(2)
    except Exception as error:
        distributed.wait_for_others_to_fail(error)
        # One of Typer's own errors, whose class is not public and has moved between its versions.
        if not hasattr(error, "format_message"):
            raise
        if message := error.format_message():  # empty where the help was shown instead
            fault = _usage_fault(message, getattr(error, "ctx", None), named, arguments)
            say(f"error: {fault}")
        sys.exit(2)
    finally:
        if _SlowFinder in sys.meta_path:
            sys.meta_path.remove(_SlowFinder)
    sys.exit(status or 0)


class _SlowFinder(PathFinder):
    """Finds the libraries that take long to import, and reports the import of each.

    Every slow command imports one of them, after it has found the mistakes in a call that can be
    found without. Not used on a terminal, where each verb says what it does.
    """

    @classmethod
    def find_spec(cls, name: str, *where: Any) -> ModuleSpec | None:
        if name not in _SLOW:
            return None
        spec = super().find_spec(name, *where)
        if spec and spec.loader:
            load = spec.loader.exec_module

            def report_and_load(module: ModuleType) -> None:
                _report(f"loading {_SLOW[name]}")
                load(module)

            # Here and not above: `libraries.require` finds a library without importing it.
            spec.loader.exec_module = report_and_load  # type: ignore[method-assign]
        return spec


def _report(what: str) -> None:
    """Log it where logging has been set up, as `serve` does, or print it on stderr."""
    logger = logging.getLogger("splitattn")
    if logger.hasHandlers() and logger.isEnabledFor(logging.INFO):
        logger.info(what)
    else:
        say(what)


def _on_thread_error(fault: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, unless the disk is full.

    TensorBoard writes in a thread, and raises that error again in the main one.
    """
    if not (isinstance(fault.exc_value, OSError) and is_full_disk(fault.exc_value)):
        threading.__excepthook__(fault)


def _usage_fault(message: str, context: Any, named: list[str], arguments: list[str]) -> str:
    """The message for a wrong call of the verb `named`: what is wrong, and which help to read."""
    verbs: list[str] = []
    while context is not None and context.parent is not None:
        verbs.insert(0, str(context.info_name))
        context = context.parent
    verbs = verbs or named  # for a flag without its value, the parser has no context
    message = message[:1].lower() + message[1:].rstrip(".")
    for kind, plain in (("int", "whole number"), ("float", "number")):
        message = re.sub(f"is not a valid {kind}( range)?$", f"is not a {plain}", message)
    message = with_our_name(message, " ".join(verbs), arguments)
    return one_line(f"{message}; see {' '.join(('splitattn', *verbs, '--help'))}")


def _system_fault(error: OSError) -> str:
    """What the system refused, such as a full disk, in its own words."""
    where = error.filename or "the results or a file"
    reason = error.strerror or str(error)
    if isinstance(error, UnsupportedOperation) or not reason:  # what stands for a closed stream
        return one_line(f"cannot read or write {where}: the stream is closed")
    if "temporary directory" in reason:  # of Python's `tempfile`, with the folders that it tried
        return one_line(f"{reason}; set TMPDIR to a folder that you can write to")
    message = write_failure(where, error, "cannot read or write")
    if error.errno == errno.EPIPE:
        message += "; keep the program that reads the stream running, or use --output"
    return one_line(message)
