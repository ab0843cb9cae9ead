"""Running a network needs no PyTorch: `pip install .` is enough.

Each test runs the command line in a process that can import neither PyTorch nor the libraries of
other extras, whether they are installed or not.
"""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitattn.images.samples import sample_photographs
from tests.fuzz.dense_graphs import dense_seed

PHOTOGRAPHS = sample_photographs()
EMBEDDED = "resnest26_tiny"

WITHOUT = """
import sys

MISSING = {"torch", "torchvision", "pyarrow", "timm", "nncf", "openvino"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import importlib.util
find_spec = importlib.util.find_spec

def hidden(name, package=None):
    try:
        return find_spec(name, package)
    except ModuleNotFoundError:
        return None

importlib.util.find_spec = hidden
from splitattn.cli import main
main(sys.argv[1:])
"""


def splitattn(*arguments: object, status: int = 0, folder: Path | None = None) -> tuple[str, str]:
    """Run the command line; returns its stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=100,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_predict_labels_photographs() -> None:
    out, err = splitattn("predict", *PHOTOGRAPHS, "--format", "json", "--topk", 2)
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["path"] for answer in answers] == list(map(str, PHOTOGRAPHS))
    assert all(len(answer["predictions"]) == 2 for answer in answers)
    labels = {Path(a["path"]).stem: a["predictions"][0]["label"] for a in answers}
    assert labels["coffee"] == "espresso"
    assert err == "loading ONNX Runtime\n"


def test_features_of_photographs_go_to_numpy_arrays(tmp_path: Path) -> None:
    splitattn("features", *PHOTOGRAPHS, "missing.jpg", "--output", tmp_path / "f.npz", status=1)
    with np.load(tmp_path / "f.npz") as stored:
        assert stored["paths"].tolist() == list(map(str, PHOTOGRAPHS))
        assert stored["features"].shape == (len(PHOTOGRAPHS), 1536)
        assert stored["features"].dtype == np.float32


def test_predict_finds_objects_with_an_exported_detector(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(dense_seed("onnxruntime", "detection"))
    options = ("--weights", path, "--score", 0.01, "--draw", tmp_path / "drawn")
    out, err = splitattn("predict", PHOTOGRAPHS[0], *options, "--format", "json")
    answer = json.loads(out)
    assert answer["objects"]
    assert {each["label"] for each in answer["objects"]} <= {"cat", "dog", "mug"}
    assert [*(tmp_path / "drawn").iterdir()]
    assert err == f"loading ONNX Runtime\n{tmp_path / 'drawn'}: 1 picture\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set with two classes of the embedded model, in ImageFolder layout."""
    for split in ("train", "val"):
        for label, stem in (("espresso", "coffee"), ("Egyptian cat", "chelsea")):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            photograph = next(path for path in PHOTOGRAPHS if path.stem == stem)
            for i in range(3):
                Image.open(photograph).rotate(i).save(folder / f"{i}.png")
    return tmp_path / "data"


def test_evaluate_measures_a_folder(data: Path) -> None:
    out, _ = splitattn("evaluate", data, "--json")
    measured = json.loads(out)
    assert (measured["n"], measured["model"]) == (6, EMBEDDED)
    assert measured["engine"].startswith("ONNX Runtime ")
    assert measured["environment"]["threads"] is None, (
        "without PyTorch, the number of threads is unknown"
    )
    assert measured["top1"] >= 50


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_export_writes_onnx_that_predict_runs(precision: str, tmp_path: Path) -> None:
    path, images = tmp_path / "net.onnx", tmp_path / "images"
    coffee = next(photograph for photograph in PHOTOGRAPHS if photograph.stem == "coffee")
    images.mkdir()
    for i in range(6):  # the network is certain of these, so rounding keeps the label
        Image.open(coffee).rotate(i).save(images / f"{i}.png")
    calibration = ("--calibration", images) if precision == "int8" else ()
    out, _ = splitattn("export", path, "--precision", precision, *calibration)
    assert re.search(rf"net\.onnx: {EMBEDDED} in {precision}, .* measured in ONNX Runtime", out)
    out, _ = splitattn("predict", coffee, "--weights", path, "--topk", 1)
    assert out.endswith("%  espresso\n")


def test_models_and_weights_are_listed_verified_and_described() -> None:
    assert "resnest269" in splitattn("models")[0]
    assert "resnest269:in1k" in splitattn("weights")[0]
    assert f"{EMBEDDED}:distilled_in1k: ok, sha256 " in splitattn("weights", "verify", EMBEDDED)[0]
    assert f"# {EMBEDDED}" in splitattn("weights", "card", EMBEDDED)[0]


@pytest.mark.parametrize(
    ("arguments", "packages"),
    [
        (("predict", PHOTOGRAPHS[0], "--engine", "torch"), "torch torchvision"),
        (("predict", PHOTOGRAPHS[0], "--engine", "openvino"), "openvino"),
        (("train", "data", "--output", "run"), "torch torchvision"),
        (("bench",), "torch torchvision"),
        (("evaluate", "shards/val.parquet"), "pyarrow"),
        (("export", "net.xml"), "openvino"),
        (("export", "net.pt2"), "torch torchvision"),
        (("weights", "convert", "w.pth", "v.pth", "--to", "timm"), "torch torchvision"),
    ],
)
def test_commands_that_need_more_say_what_to_install(
    arguments: tuple[object, ...], packages: str, tmp_path: Path
) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "val.parquet").write_bytes(b"PAR1")
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", bytes(100))
    out, err = splitattn(*arguments, status=2, folder=tmp_path)
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.endswith(f"pip install {packages}\n")
