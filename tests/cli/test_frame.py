"""Imports, help and errors of the command line and the package, without a verb's work."""

import errno
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import UnsupportedOperation
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

import splitattn
from splitattn import __main__ as entry
from splitattn import cli
from splitattn.errors import InputError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=60
    )


def processor_seconds_of_children() -> float:
    """CPU time of all children, which other running programs hardly change."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    "code",
    [
        "import splitattn; dir(splitattn)",
        "import sys, splitattn.cli; sys.argv = ['splitattn', '--help']\n"
        "try: splitattn.cli.main()\n"
        "except SystemExit as end: assert not end.code",
        "import sys, splitattn.cli; sys.argv = ['splitattn', 'predict', '--help']\n"
        "try: splitattn.cli.main()\n"
        "except SystemExit as end: assert not end.code",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(code: str) -> None:
    loaded = run("-c", f"{code}\nimport sys; print('LOADED', *sys.modules)").stdout
    modules = set(loaded.split("LOADED")[1].split())
    assert "splitattn" in modules
    assert not modules & {"torch", "torchvision", "numpy", "PIL", "pyarrow", "safetensors"}


def test_help_and_import_take_a_quarter_of_the_time_of_importing_torch() -> None:
    commands = {
        "torch": ["-c", "import torch"],
        "help": ["-m", "splitattn", "--help"],
        "import": ["-c", "import splitattn"],
    }
    seconds = {}
    for name, command in commands.items():
        before = processor_seconds_of_children()
        run(*command)
        seconds[name] = processor_seconds_of_children() - before
    assert seconds["help"] <= seconds["torch"] / 4, seconds
    assert seconds["import"] <= seconds["torch"] / 4, seconds


def test_public_names_are_there_and_listed() -> None:
    for name in splitattn.__all__:
        assert getattr(splitattn, name).__name__ == name
    assert set(splitattn.__all__) <= set(dir(splitattn))
    assert splitattn.list_models()[0] == "resnest14"
    assert splitattn.list_weights("resnest50")[0].model == "resnest50"


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Resnet'"):
        splitattn.Resnet  # noqa: B018


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["predict", "--help"]])
def test_help_and_version_end_with_status_0(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert not end.value.code
    output = capsys.readouterr()
    assert output.err == ""
    assert (splitattn.__version__ in output.out) == (arguments == ["--version"])


def test_every_verb_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = capsys.readouterr().out
    assert all(verb in listed for verb in ("predict", "evaluate", "train", "models", "weights"))


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ("train . --output run --recipe caf\u00e9", "epochs must be 1 to 100000, got 0"),
        ("predict a.png --weights caf\u00e9", "cafe\u0301 is not a weights file"),
        ("weights card caf\u00e9", "cafe\u0301 has none"),
    ],
)
def test_paths_are_found_however_their_accents_are_composed(
    call: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "cafe\u0301").write_text("epochs = 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(call.split())
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["predictt"], ["--nope"], ["predict", "--nope"], ["predict"]]
)
def test_a_wrong_call_ends_with_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err


def fails_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the verbs of the command line by one, `fail`, that raises `error`."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.callback()
    def options() -> None: ...

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "create_app", lambda _: app)


def test_bad_input_is_reported_in_one_line_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(InputError("size must be odd, got 4"), monkeypatch)
    with pytest.raises(SystemExit) as end:
        cli.main(["fail"])
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "error: size must be odd, got 4\n")


@pytest.mark.parametrize("arguments", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_shows_the_traceback(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(InputError("size must be odd, got 4"), monkeypatch)
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("error: size must be odd, got 4\n")


def test_an_interrupt_ends_with_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(KeyboardInterrupt(), monkeypatch)
    with pytest.raises(SystemExit) as end:
        cli.main(["fail"])
    assert end.value.code == 130


def test_an_interrupt_while_the_command_line_is_imported_ends_with_status_130(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("splitattn.cli.main", interrupted)
    with pytest.raises(SystemExit) as end:
        entry.run()
    assert end.value.code == 130


def test_a_bug_is_not_taken_for_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        cli.main(["fail"])


def test_a_thread_that_finds_the_disk_full_prints_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    full = OSError(errno.ENOSPC, "No space left on device")
    for error in (full, OSError(errno.EIO, "no answer"), ZeroDivisionError("a bug")):
        threading.excepthook(threading.ExceptHookArgs((type(error), error, None, None)))
    said = capsys.readouterr().err
    assert "a bug" in said
    assert "no answer" in said
    assert "No space" not in said


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a.csv"),
            "the disk is full: a.csv (No space left on device); free some space or choose another "
            "place",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a.csv"),
            "cannot read or write a.csv: Permission denied",
        ),
        (
            UnsupportedOperation("not writable"),
            "cannot read or write the results or a file: the stream is closed",
        ),
        (OSError(), "cannot read or write the results or a file: the stream is closed"),
    ],
)
def test_errors_of_the_operating_system_keep_its_wording(
    error: OSError,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "discard_unwritten", lambda: None)
    fails_with(error, monkeypatch)
    with pytest.raises(SystemExit) as end:
        cli.main(["fail"])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def commands_below(command: Any) -> Iterator[Any]:
    yield command
    for each in getattr(command, "commands", {}).values():
        yield from commands_below(each)


def test_help_shows_text_in_brackets() -> None:
    """Rich takes text in brackets for markup and would leave it out."""
    texts = [
        text
        for command in commands_below(typer.main.get_command(cli.create_app()))
        for text in (command.help, *(getattr(each, "help", None) for each in command.params))
        if text
    ]
    assert len(texts) > 100
    assert [Text.from_markup(text).plain for text in texts] == texts
