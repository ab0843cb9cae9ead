"""`splitattn features`."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from splitattn.classifier import Classifier
from splitattn.cli import main
from splitattn.engines.onnx_runtime import OnnxEngine
from tests.cli.networks import write_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["features", *map(str, arguments), "--engine", "onnxruntime"])
    return int(end.value.code or 0)


def test_each_image_has_a_line_of_features(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, missing = tmp_path / "chelsea.png", tmp_path / "missing.png"
    Image.fromarray(skimage.data.chelsea()).save(path)
    assert call(path, missing, path, "--weights", weights) == 1
    captured = capsys.readouterr()
    assert captured.err.endswith("1 of 3 images have no features\n")
    first, error, second = map(json.loads, captured.out.splitlines())
    expected = Classifier(weights=weights, engine="onnxruntime").features(path)
    np.testing.assert_allclose(first["features"], expected, rtol=1e-6)
    assert first == second
    assert first.keys() == {"path", "features", "model", "weights"}
    assert error["path"] == str(missing)
    assert "no such file" in error["error"]
    lines, arrays = tmp_path / "f.jsonl", tmp_path / "f.npz"
    for output in (lines, arrays):
        assert call(path, path, "--weights", weights, "--output", output) == 0
    assert [json.loads(line) for line in lines.read_text().splitlines()] == [first, second]
    with np.load(arrays) as stored:  # an image that is given twice has two rows
        assert stored["paths"].tolist() == [str(path)] * 2
        np.testing.assert_array_equal(stored["features"], [expected] * 2)


def test_a_file_without_an_ending_has_lines_as_stdout_has(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chelsea.png"
    Image.fromarray(skimage.data.chelsea()).save(path)
    assert call(path, "--weights", weights) == 0
    assert call(path, "--weights", weights, "--output", tmp_path / "found") == 0
    assert (tmp_path / "found").read_text() == capsys.readouterr().out


def test_a_picture_on_stdin_has_features(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    path = tmp_path / "chelsea.png"
    Image.fromarray(skimage.data.chelsea()).save(path)
    stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(path.read_bytes())))
    monkeypatch.setattr("sys.stdin", stream)
    assert call("-", path, "--weights", weights) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["path"], first["features"]) == ("-", second["features"])


def test_features_that_are_not_finite_are_an_error_of_their_image(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = OnnxEngine.run

    def overflowing(self: OnnxEngine, *arguments: Any) -> Any:
        found = run(self, *arguments)
        found[1, 0], found[2, 0] = np.nan, np.inf
        return found

    monkeypatch.setattr(OnnxEngine, "run", overflowing)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.new("RGB", (8, 8), "red").save(path)
    assert call(*paths, "--weights", weights) == 1
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert ["error" in line for line in lines] == [False, True, True]
    for path, line in zip(paths[1:], lines[1:], strict=True):
        assert line["error"].startswith(f"{path}: the network gives NaN or infinite numbers")
    assert call(*paths, "--weights", weights, "--output", tmp_path / "f.npz") == 1
    with np.load(tmp_path / "f.npz") as stored:
        assert stored["paths"].tolist() == [str(paths[0])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "features needs images, got none"),
        (["x.png", "--output", "x.csv"], ".npz, .json, .jsonl or have no ending, got x.csv"),
        (["x.png", "--weights", "x.onnx"], "'x.onnx' is neither a tag of any model nor a file"),
        (["x.png", "--output", "x.npz"], "features needs images that can be read, got none"),
    ],
)
def test_a_wrong_call_is_reported_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
