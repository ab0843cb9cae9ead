"""Every example in README.md is run."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import readme_pictures
import timm
import typer.main

from splitattn.cli import create_app
from tests.examples import blocks, furnish

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICK_START, *SHELL = (block.splitlines() for block in blocks(README, "sh"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples use."""
    folder = tmp_path_factory.mktemp("desk")
    furnish(folder, README)
    return folder


@pytest.mark.parametrize("example", blocks(README, "python"))
def test_python_examples_do_what_they_say(
    example: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    patterns = []
    if "topk=3" in example:
        patterns += [r" *\d+\.\d%  [A-Za-z].*"] * 3
    if "on_epoch" in example:
        patterns += [r"epoch 1/2  \d+ px  loss .*", r"epoch 2/2  \d+ px  loss .*"]
        patterns += [r"\d+\.\d % of 4 images", "model.onnx fp32 passed"]
    patterns += map(re.escape, re.findall(r"^print\(.*\)  # (.*)$", example, re.MULTILINE))
    assert len(printed) == len(patterns)
    assert all(map(re.fullmatch, patterns, printed))
    if "splitattn.export" in example:
        assert (desk / "model.onnx.parity.json").is_file()


def labels_a_photo(output: str, _: Path) -> None:
    name, *guesses = output.splitlines()
    assert name == "photo.jpg"
    assert len(guesses) == 5
    assert all(re.fullmatch(r" *\d+\.\d\d %  [A-Za-z].*", guess) for guess in guesses)


def writes_a_csv_row_per_photo(output: str, desk: Path) -> None:
    assert output == ""
    with (desk / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["photos/coffee.jpg", "photos/trip/chelsea.jpg"]
    assert all(row["label"] and 0 < float(row["probability"]) <= 1 for row in rows)


def prints_an_object_per_photo(output: str, _: Path) -> None:
    answers = [json.loads(line) for line in output.splitlines()]
    assert {a["path"] for a in answers} == {"photos/coffee.jpg", "photos/trip/chelsea.jpg"}
    assert all(len(answer["predictions"]) == 5 for answer in answers)


def exports(output: str, desk: Path) -> None:
    assert re.search(r"^model\.onnx: resnest26_tiny in fp32, .* MiB", output, re.MULTILINE)
    assert (desk / "model.onnx").is_file()
    assert (desk / "model.onnx.parity.json").is_file()


def measures_every_image(_: str, desk: Path) -> None:
    measured = json.loads((desk / "measured.json").read_text(encoding="utf-8"))
    assert measured["n"] == 4
    assert measured["problems"] == []
    assert 0 <= measured["top1"] <= measured["top5"] <= 100


def trains(output: str, desk: Path) -> None:
    assert re.fullmatch(
        r"scratch/model\.safetensors: top-1 .* of 4 images; scratch/report\.html shows how\n",
        output,
    )
    lines = (desk / "scratch" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in lines].count("epoch") == 2
    left = {"model.safetensors", "best.safetensors", "report.html", "recipe.toml", "last.pt"}
    assert left <= {path.name for path in (desk / "scratch").iterdir()}


def tunes(output: str, _: Path) -> None:
    assert output.startswith("tuned/model.safetensors: top-1 ")


def labels_with_the_trained_classes(output: str, _: Path) -> None:
    assert {line.split("%  ")[1] for line in output.splitlines()[1:]} == {"espresso", "tabby"}


def converts(output: str, desk: Path) -> None:
    """timm builds the network of the file's name, and all keys fit."""
    assert output.startswith("resnest14d.pth: resnest14, keys as before, ")
    path = str(desk / "resnest14d.pth")
    timm.create_model("resnest14d", num_classes=2, checkpoint_path=path)


def lists(*names: str) -> Callable[[str, Path], None]:
    def check(output: str, _: Path) -> None:
        assert all(name in output for name in names)

    return check


SHOWS = {
    "splitattn predict photo.jpg": labels_a_photo,
    "splitattn predict photos/ --topk 1 --format csv --output labels.csv": (
        writes_a_csv_row_per_photo
    ),
    "find photos -name '*.jpg' | splitattn predict - --format json": prints_an_object_per_photo,
    "splitattn evaluate dataset/ --weights tuned --json > measured.json": measures_every_image,
    "splitattn train dataset/ --output tuned --set epochs=2 --set batch_size=4": tunes,
    "splitattn predict photo.jpg --weights tuned": labels_with_the_trained_classes,
    "splitattn export model.onnx": exports,
    "splitattn predict photo.jpg --weights model.onnx": labels_a_photo,
    "splitattn train dataset/ --output scratch --model resnest14 --recipe quick.toml": trains,
    "splitattn train dataset/ --output scratch --model resnest14 --recipe quick.toml --resume": (
        trains
    ),
    "splitattn weights convert scratch/model.safetensors resnest14d.pth --to timm": converts,
    "splitattn models": lists("resnest50_fast_4s2x40d", "27,483,240"),
    "splitattn weights": lists("resnest269:in1k", "84.54"),
}


@pytest.mark.timeout(600)  # ten commands, one after another
@pytest.mark.parametrize("lines", SHELL)
def test_shell_examples_do_what_they_say(lines: list[str], desk: Path) -> None:
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "SPLITATTN_OFFLINE": "1",
        "SPLITATTN_CACHE": str(desk / "cache"),
        "COLUMNS": "200",
    }
    for line in lines:
        done = subprocess.run(
            line, shell=True, cwd=desk, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        SHOWS[line](done.stdout, desk)


def test_quick_start_is_two_scripts_that_any_shell_can_read() -> None:
    assert QUICK_START == ["scripts/demo.sh", "scripts/test.sh"]
    for script in (ROOT / "scripts").glob("*.sh"):
        assert os.access(script, os.X_OK), script
        subprocess.run(["sh", "-n", script], check=True)


def test_the_terminal_shows_what_the_demo_prints() -> None:
    stored, drawn = (
        "".join(re.findall(r">([^<]+)</text>", picture))
        for picture in (
            (ROOT / "docs" / "charts" / "terminal.svg").read_text(encoding="utf-8"),
            readme_pictures.drawn_terminal(),
        )
    )
    assert stored == drawn, "run python scripts/readme_pictures.py terminal"
    assert all(name in stored for name in readme_pictures.demo_photographs())


@pytest.mark.parametrize("command", re.findall(r"\| `splitattn ([^`]+)` \|", README))
def test_commands_of_the_table_have_known_options_and_values(command: str) -> None:
    """Commands are only parsed, since they need data that is not here."""
    verb, *arguments = shlex.split(command)
    typer.main.get_command(create_app()).commands[verb].make_context(verb, arguments)


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!http)[^)#]+)\)", README))
def test_links_into_the_repository_lead_somewhere(target: str) -> None:
    assert (ROOT / target).is_file()
