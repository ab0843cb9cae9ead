"""`splitattn explain`."""

import errno
import io
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from splitattn.cli import main
from tests.cli.networks import CLASSES, write_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "chelsea.png"
    Image.fromarray(skimage.data.chelsea()).save(path)
    return path


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["explain", *map(str, arguments), "--engine", "onnxruntime"])
    return int(end.value.code or 0)


def test_each_image_has_a_picture_and_a_line(
    weights: Path, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, missing = tmp_path / "why", tmp_path / "missing.png"
    options = ("--weights", weights, "--label", "mug", "--output", folder)
    assert call(photograph, missing, photograph, *options) == 1
    streams = capsys.readouterr()
    lines = streams.out.splitlines()
    assert len(lines) == 2
    assert all(line.split(" %  ")[1] == f"mug  {photograph}" for line in lines)
    assert "missing.png: no such file" in streams.err
    assert "1 of 3 images could not be explained" in streams.err
    assert sorted(path.name for path in folder.iterdir()) == ["chelsea-2.jpg", "chelsea.jpg"]
    with Image.open(folder / "chelsea.jpg") as picture:
        assert picture.width == 640


def test_on_a_terminal_lines_do_not_end_up_in_the_bar(
    weights: Path, photograph: Path, tmp_path: Path
) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "splitattn", "explain", photograph, photograph]
    options = ["--weights", weights, "--output", tmp_path / "why", "--engine", "onnxruntime"]
    process = subprocess.Popen(
        [*map(str, command), *map(str, options)],
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(theirs)
    screen = b""
    with suppress(OSError):  # Linux raises this at the end of a pseudo-terminal
        while part := os.read(ours, 1 << 16):
            screen += part
    os.close(ours)
    assert process.wait() == 0
    lines = [line for line in screen.decode().splitlines() if " %  " in line]
    assert len(lines) == 2
    for line in lines:
        _, _, shown = line.partition(" %  ")[0].rpartition("\x1b[2K")
        assert "━" not in shown


def test_a_page_holds_all_images(
    weights: Path, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "why.html"
    options = ("--weights", weights, "--method", "cam", "--output", page)
    assert call(photograph, photograph, *options) == 0
    shown = page.read_text(encoding="utf-8")
    assert shown.count("<section>") == shown.count(f"<h2>{photograph}</h2>") == 2
    assert capsys.readouterr().out.splitlines()[0].split(" %  ")[1].split("  ")[0] in CLASSES


def test_the_page_is_written_even_if_stdout_fails(
    weights: Path,
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(text: str, _: Path | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", text)

    monkeypatch.setattr("splitattn.cli.explain.write_output", full)
    page = tmp_path / "why.html"
    assert call(photograph, photograph, "--weights", weights, "--output", page) == 2
    assert page.read_text(encoding="utf-8").count("<section>") == 2
    assert "No space left" in capsys.readouterr().err


def test_a_picture_on_stdin_is_explained(
    weights: Path, photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "why"
    stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(photograph.read_bytes())))
    monkeypatch.setattr("sys.stdin", stream)
    assert call("-", photograph, "--weights", weights, "--output", folder) == 0
    pictures = [path.read_bytes() for path in folder.iterdir()]
    assert len(pictures) == 2
    assert pictures[0] == pictures[1]


def test_an_old_page_is_kept_when_nothing_could_be_explained(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "why.html"
    page.write_text("old")
    options = ("--weights", weights, "--output", page)
    assert call(tmp_path / "missing.png", *options) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert call("-", *options) == 2
    assert page.read_text() == "old"
    assert call(tmp_path / "missing.png", *options[:2], "--output", tmp_path / "why") == 1
    assert not (tmp_path / "why").exists()


def test_wrong_calls_are_refused_before_anything_is_written(
    weights: Path, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(photograph) == 2
    assert "explain needs --output" in capsys.readouterr().err
    page = tmp_path / "why.html"
    assert call(photograph, "--weights", weights, "--label", "mugg", "--output", page) == 2
    assert "did you mean 'mug'?" in capsys.readouterr().err
    assert call(photograph, "--weights", weights, "--output", tmp_path) == 2
    assert "--output must be a new or empty folder" in capsys.readouterr().err
    picture = tmp_path / "why.jpg"
    assert call(photograph, "--weights", weights, "--output", picture) == 2
    assert "--output must be a folder, got" in capsys.readouterr().err
    assert not page.exists()
    assert not picture.exists()
