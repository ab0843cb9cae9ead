"""`splitattn evaluate`: the same figures in a table and in JSON, whatever the batch size."""

import csv
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitattn.cli import evaluate, main
from splitattn.preprocessing import InputSizeWarning
from splitattn.workflows import NetworkEvaluation
from tests.cli.networks import CLASSES, write_weights
from tests.data.datasets import picture


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set with two of the model's six classes, five images each."""
    for label, name in enumerate((CLASSES[3], CLASSES[5])):
        folder = tmp_path / "data" / "val" / name
        folder.mkdir(parents=True)
        for index in range(5):
            picture(label, index).save(folder / f"{index}.png")
    return tmp_path / "data"


def run(*arguments: object) -> int:
    try:
        main(["evaluate", *map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    assert run(*arguments, "--json", "--workers", 1) == 0
    return json.loads(capsys.readouterr().out)


def test_json_names_figures_classes_and_origin(
    data: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = as_json(capsys, data, "--weights", weights)
    assert result["n"] == 10
    assert result["model"] == "resnest14"
    assert result["weights"] == str(weights)
    assert result["size"] == 32
    assert result["environment"]["onnxruntime"] == version("onnxruntime")
    assert result["environment"]["cores"] >= 1
    assert {row["label"]: row["n"] for row in result["classes"]} == {CLASSES[3]: 5, CLASSES[5]: 5}
    confusion = result["confusion"]
    assert [sum(row) for row in confusion] == [0, 0, 0, 5, 0, 5]
    right = confusion[3][3] + confusion[5][5]
    assert result["top1"] == pytest.approx(10 * right)
    assert result["top1"] <= result["top5"] <= 100


def test_every_batch_size_gives_the_same_result(
    data: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (
        as_json(capsys, data, "--weights", weights, "--batch-size", size) for size in (1, 7)
    )
    assert first.pop("loss") == pytest.approx(second.pop("loss"), rel=1e-5)
    assert first == second


def test_the_table_shows_the_same_figures(
    data: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = as_json(capsys, data, "--weights", weights)
    table = data / "answers.csv"
    assert run(data, "--weights", weights, "--workers", 1, "--answers", table) == 0
    out = capsys.readouterr().out
    first = result["classes"][0]
    assert f"{first['precision']:.1f}" in out
    assert first["recall"] == first["top1"]
    assert f"macro F1 {result['macro_f1']:.2f} %" in out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert sum(row["label"] == row["guess"] for row in rows) * 10 == result["top1"]
    assert all(0 < float(row["probability"]) <= 1 for row in rows)
    assert f"top-1 {result['top1']:.2f} %" in out
    assert f"loss {result['loss']:.4f}" in out
    assert CLASSES[3] in out
    assert ("taken for" in out) == (result["top1"] < 100)


def test_a_result_that_cannot_be_written_does_not_cost_the_others(
    data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, lost = tmp_path / "result.json", tmp_path / f"{'x' * 300}.csv"
    files = ("--output", kept, "--answers", lost)
    assert run(data, "--weights", weights, "--workers", 1, *files) == 2
    out, err = capsys.readouterr()
    assert json.loads(kept.read_text())["n"] == 10
    assert "macro F1" in out
    assert err == f"error: cannot write --answers {lost}: File name too long\n"


def test_long_names_of_classes_stay_whole_in_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = tuple(f"{'long_name_' * 6}{end}" for end in "AB")
    of_network = {"model": "m", "weights": "w", "engine": "e", "data": "d", "split": "val"}
    measured = NetworkEvaluation(
        classes=names,
        confusion=np.array([[3, 1], [2, 4]]),
        top5_by_class=np.array([4, 6]),
        loss=1.0,
        mistakes=(),
        problems=(),
        guesses=np.zeros(10, int),
        size=64,
        **of_network,
    )
    evaluate._print_tables(measured)
    out = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert out.count("A") == out.count("B") == 3  # a row, a label and a guess


def test_another_image_size_causes_a_warning(data: Path, weights: Path) -> None:
    with pytest.warns(InputSizeWarning, match="measured at input size 32, not 48"):
        assert run(data, "--weights", weights, "--size", 48, "--workers", 1) == 0


def test_an_unreadable_image_is_reported_in_one_line_with_status_one(
    data: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = next((data / "val" / CLASSES[3]).iterdir())
    broken.write_bytes(b"nothing")
    assert run(data, "--weights", weights, "--json", "--workers", 1) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 9
    assert err.startswith(f"error: {broken}")
    assert len(err.splitlines()) == 1


def test_classes_that_the_model_lacks_are_refused(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zebra").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "zebra" / "0.png")
    assert run(tmp_path, "--weights", weights) == 2
    assert "the model's 6 classes, got 1, such as 'zebra'" in capsys.readouterr().err


def test_an_exported_file_is_measured_in_its_engine(
    data: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "net.xml"
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["export", "--weights", str(weights), str(path)])
    plain = as_json(capsys, data, "--weights", weights, "--engine", "torch")
    exported = as_json(capsys, data, "--weights", path)
    assert plain["engine"].startswith("torch ")
    assert exported["engine"].startswith("OpenVINO ")
    assert exported["weights"] == str(path)
    assert exported["confusion"] == plain["confusion"]
    assert exported["loss"] == pytest.approx(plain["loss"], rel=1e-5)

    assert run(data, "--weights", path, "--size", 64) == 2
    assert "takes images of 32 pixels, got --size 64" in capsys.readouterr().err
    assert run(data, "--weights", path, "--model", "resnest26") == 2
    assert "belongs to resnest14" in capsys.readouterr().err
