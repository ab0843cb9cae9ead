"""`splitattn train`: one command from images to a file that `predict` takes."""

import json
import os
import re
from pathlib import Path

import pytest

from splitattn.cli import main
from splitattn.weights.checkpoint import read_tensors
from tests.data.datasets import picture, write_image_folder

SMALL = [
    *("--model=resnest14", "--recipe=plain"),
    *("--set=epochs=2", "--set=batch_size=8", "--set=train_size=32", "--set=test_size=32"),
    *("--set=warmup_epochs=1", "--workers=0"),
]


def run(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_train_then_predict_with_the_names_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_image_folder(tmp_path / "data", train=6, val=2)
    (tmp_path / "names.txt").write_text("sea\nmeadow\nfire\n")
    names = f"--class-names={tmp_path / 'names.txt'}"
    output = tmp_path / "out"
    assert run("train", data, "--output", output, *SMALL, names) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{output / 'model.safetensors'}: top-1 ")
    assert out.endswith(f"of 6 images; {output / 'report.html'} shows how\n")
    assert [line.split()[:2] for line in err.splitlines()] == [["epoch", "1/2"], ["epoch", "2/2"]]

    picture(1, 5).save(tmp_path / "photo.png")
    weights = ("--weights", output / "model.safetensors")
    assert run("predict", tmp_path / "photo.png", *weights, "--format", "json") == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["model"] == "resnest14"
    labels = {prediction["label"] for prediction in json.loads(line)["predictions"]}
    assert labels == {"sea", "meadow", "fire"}

    assert run("train", data, "--output", output, *SMALL, names) == 2
    assert "add --resume" in capsys.readouterr().err
    before = (output / "model.safetensors").read_bytes()
    timms_name = "--model=timm/resnest14d"
    assert run("train", data, "--output", output, *SMALL, names, timms_name, "--resume") == 0
    assert (output / "model.safetensors").read_bytes() == before

    frozen = ("--output", tmp_path / "tuned", *SMALL, names, "--set=frozen_stages=1")
    capsys.readouterr()
    assert run("train", data, *frozen, "--resume") == 2
    assert "frozen_stages must be 0 without weights, got 1" in capsys.readouterr().err
    assert run("train", data, *frozen, *weights) == 0
    # Resuming needs no weights to start from: the checkpoint has all.
    assert run("train", data, *frozen, "--resume") == 0


def test_every_verb_accepts_names_that_are_not_utf8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / os.fsdecode(b"d\xe9j\xe0")
    data = write_image_folder(folder / "data", train=4, val=1)
    for split in ("train", "val"):
        (data / split / "red").rename(data / split / os.fsdecode(b"r\xf6t"))
    output, table = folder / os.fsdecode(b"\xf6ut"), folder / os.fsdecode(b"\xe9.csv")
    assert run("train", data, "--output", output, *SMALL, "--set=batch_size=4") == 0
    assert "no curves for TensorBoard" in caplog.text
    assert "r\\udcf6t" in (output / "report.html").read_text()
    assert run("evaluate", data, "--weights", output, "--answers", table, "--json") == 0
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["label"] for row in measured["classes"]] == ["blue", "green", "r\udcf6t"]
    assert table.read_text().count("r\\udcf6t/0.png,r\\udcf6t,") == 1
    exported = folder / os.fsdecode(b"\xf6.onnx")
    assert run("export", exported, "--weights", output) == 0
    capsys.readouterr()
    assert run("evaluate", data, "--weights", exported, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["loss"] == pytest.approx(measured["loss"], rel=1e-5)
    # `weights convert` reads the file through PyTorch, which is another code path.
    converted = folder / os.fsdecode(b"\xf6.safetensors")
    assert run("weights", "convert", output, converted, "--to", "official") == 0
    own, others = (read_tensors(path).tensors for path in (output / "model.safetensors", converted))
    assert own.keys() == others.keys()
    assert all(value.equal(others[key]) for key, value in own.items())
    capsys.readouterr().out.encode()  # fails if stdout holds lone surrogates


def test_a_learning_rate_is_suggested_and_nothing_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from splitattn.training import range_test

    monkeypatch.setattr(range_test, "_STEPS", 12)
    data = write_image_folder(tmp_path / "data", train=6, val=2)
    output = tmp_path / "out"
    assert run("train", data, "--output", output, *SMALL, "--find-lr") == 0
    out, err = capsys.readouterr()
    lines = r"(step 1?1 of 12 at most: rate \d\.\de[+-]\d\d, loss \d+\.\d{3}\n)+"
    assert re.fullmatch(lines, err), err
    assert out.startswith("--set learning_rate=")
    assert out.endswith(f"lowest loss, see {output / 'learning_rate.png'}\n")
    rate = float(out.split()[1].removeprefix("learning_rate="))
    assert 1e-5 <= rate <= 10
    assert len(list(output.iterdir())) == 2
    assert run("train", data, "--output", output, *SMALL, "--find-lr", "--resume") == 2
    assert "--find-lr starts anew: leave out --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe=modren"], "did you mean 'modern'"),
        (["--set=epoch=3"], "did you mean 'epochs'"),
        (["--model=resnet50"], "did you mean 'resnest50'"),
        (["--model=resnest50d.in21k"], "did you mean 'in1k'"),
        (["--device=quantum"], "device 'quantum' cannot be used"),
    ],
)
def test_impossible_arguments_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    data = write_image_folder(tmp_path / "data", train=2, val=1)
    assert run("train", data, "--output", tmp_path / "out", *SMALL, *arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
