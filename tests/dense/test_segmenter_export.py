"""A segmenter gives the same class maps in every engine and exported file."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

import splitattn
from splitattn.architectures import ARCHITECTURES
from splitattn.classifier import Classifier
from splitattn.dense.exportable import DenseExportReport, Loss
from splitattn.dense.segmenter import Segmenter, TrainedSegmenter
from splitattn.dense.segmenter_evaluating import SegmentationEvaluation
from splitattn.dense.segmenter_exporting import PixelParity
from splitattn.errors import InputError, WeightsError
from splitattn.exporting import ExportError
from splitattn.weights.checkpoint import read_by_own_keys, write_checkpoint
from splitattn.weights.metadata import ModelMetadata, read_metadata
from splitattn.workflows import export
from tests.dense.datasets import MASK_CLASSES, picture, scene, write_masked, write_masked_splits
from tests.dense.runs import ARCHITECTURE, CHANNELS, MASK_RECIPE, mask_network
from tests.dense.test_detection import status

SIZES = [(64, 64), (128, 96), (90, 61)]


def write_weights(path: Path, head: str = "fpn") -> Path:
    """Write the weights of a segmenter whose tensors are all random."""
    network = mask_network(head)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    metadata = ModelMetadata(
        model="small",
        task="segmentation",
        classes=MASK_CLASSES,
        preprocessing=MASK_RECIPE.preprocessing,
        head={"name": head, "channels": CHANNELS, "short_side": 64, "long_side": 256},
    )
    write_checkpoint(path, network.state_dict(), metadata)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a.safetensors, and a.onnx and a.xml exported from it."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
        write_weights(folder / "a.safetensors")
        for name in ("a.onnx", "a.xml"):
            export(folder / name, weights=folder / "a.safetensors")
        yield folder


def images() -> list[Image.Image]:
    return [picture(scene(i, size), size, i) for i, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[np.ndarray]:
    """The class maps that PyTorch gives for `images`."""
    segmenter = Segmenter(folder / "a.safetensors", engine="torch")
    assert segmenter.engine == "torch"
    maps = [each.class_map for each in segmenter.predict(images())]
    assert all(len(np.unique(each)) > 1 for each in maps)
    return maps


@pytest.mark.parametrize(
    ("name", "engine", "runs_in"),
    [
        ("a.safetensors", "onnxruntime", "ONNX Runtime"),
        ("a.safetensors", "openvino", "OpenVINO"),
        ("a.safetensors", "auto", "OpenVINO"),
        ("a.onnx", "auto", "ONNX Runtime"),
        ("a.xml", "openvino", "OpenVINO"),
    ],
)
def test_every_engine_and_file_answers_as_pytorch_does(
    folder: Path, expected: list[np.ndarray], name: str, engine: str, runs_in: str
) -> None:
    segmenter = Segmenter(folder / name, engine=engine)
    assert runs_in in segmenter.engine
    assert segmenter.classes == MASK_CLASSES
    for found, truth in zip(segmenter.predict(images()), expected, strict=True):
        assert found.class_map.shape == truth.shape
        # Where two classes are nearly equal, rounding decides.
        assert (found.class_map == truth).mean() > 0.999


def test_the_report_says_how_equal_they_are(folder: Path) -> None:
    for name in ("a.onnx", "a.xml"):
        report = json.loads((folder / f"{name}.parity.json").read_text())
        assert report["pixels"]["same"] >= 99.9
        assert 0 < report["pixels"]["probability"] < 1e-3
        assert report["pixels"]["images"] == 5
        assert report["precision"] == "fp32"


def test_half_precision_is_smaller_and_nearly_the_same(folder: Path, tmp_path: Path) -> None:
    report = export(tmp_path / "h.onnx", weights=folder / "a.safetensors", precision="fp16")
    assert isinstance(report, DenseExportReport)
    assert report.passed
    assert report.size < 0.6 * (folder / "a.onnx").stat().st_size
    assert report.parity.same >= 99


def test_a_file_that_answers_otherwise_is_discarded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = TrainedSegmenter.read

    def broken(weights: Any) -> Any:
        opened = read(weights)
        bias = opened.tensors["head.classifier.bias"]
        other = replace(opened, tensors={**opened.tensors, "head.classifier.bias": bias[::-1] * 9})
        object.__setattr__(other, "reference", opened.reference)
        return other

    monkeypatch.setattr(TrainedSegmenter, "read", broken)
    with pytest.raises(
        ExportError, match=r"99.9 % of the pixels .* within 0.001 .* got .* within 0\.\d+ of"
    ):
        export(tmp_path / "a.onnx", weights=folder / "a.safetensors")
    assert not [*tmp_path.iterdir()]


def test_commands_take_a_file(
    folder: Path, expected: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images()[1].save(tmp_path / "photo.png")
    arguments = ["predict", str(tmp_path / "photo.png"), "--format", "json"]
    assert status([*arguments, "--weights", str(folder / "a.onnx")]) == 0
    answer = json.loads(capsys.readouterr().out)
    shares = {each["label"]: each["share"] for each in answer["classes"]}
    for number, name in enumerate(MASK_CLASSES):
        share = float((expected[1] == number).mean())
        assert shares.get(name, 0) == pytest.approx(share, abs=2e-3)
    data = write_masked(tmp_path / "data", "val", 2)
    found = splitattn.evaluate(str(data), weights=folder / "a.onnx")
    again = splitattn.evaluate(str(data), weights=folder / "a.safetensors", engine="torch")
    assert isinstance(found, SegmentationEvaluation)
    assert isinstance(again, SegmentationEvaluation)
    assert "ONNX Runtime" in found.engine
    assert found.figures == pytest.approx(again.figures, abs=0.5)
    output = tmp_path / "b.onnx"
    options = ["--weights", str(folder / "a.safetensors"), "--output", str(output)]
    assert status(["export", str(output), *options[:2]]) == 0
    assert "pixels in 5 images are the same" in capsys.readouterr().out


def test_eight_bits_are_compared_by_miou(folder: Path, tmp_path: Path) -> None:
    data = write_masked_splits(tmp_path / "data", train=4, val=2)
    report = export(
        tmp_path / "q.onnx",
        weights=folder / "a.safetensors",
        precision="int8",
        calibration=str(data),
    )
    assert isinstance(report, DenseExportReport)
    assert report.agreement is not None
    assert report.agreement.images == 2
    exact = splitattn.evaluate(str(data), weights=folder / "a.onnx")
    assert isinstance(exact, SegmentationEvaluation)
    assert report.agreement.exact == pytest.approx(exact.figures["miou"], abs=0.5)
    assert report.size < 0.4 * (folder / "a.onnx").stat().st_size


@pytest.mark.parametrize(
    ("precision", "same", "probability", "miou", "exact", "passes"),
    [
        ("fp32", 100.0, 1e-4, None, None, True),
        ("fp32", 98.0, 0.0, None, None, False),
        ("fp32", 100.0, 2e-3, None, None, False),
        ("fp32", 100.0, float("nan"), None, None, False),
        ("fp16", 99.0, 0.04, None, None, True),
        ("int8", 60.0, 0.2, 49.1, 50.0, True),
        ("int8", 100.0, 0.0, 40.0, 50.0, False),
        ("int8", 100.0, 0.0, 0.0, 0.0, False),
    ],
)
def test_reports_say_which_files_may_be_used(
    precision: str,
    same: float,
    probability: float,
    miou: float | None,
    exact: float | None,
    passes: bool,
) -> None:
    report = DenseExportReport(
        path=Path("a"),
        model="small",
        format="onnx",
        precision=precision,
        engine="x",
        size=1,
        parity=PixelParity(images=1, pixels=100, same=same, probability=probability),
        agreement=None
        if miou is None or exact is None
        else Loss(figure="mIoU", value=miou, exact=exact, images=4, unreadable=0),
    )
    assert report.passed is passes
    if not passes:
        assert f"{report.agreement or report.parity}" in report.fault


@pytest.mark.parametrize("readable", [True, False])
def test_eight_bits_that_cost_much_or_cannot_be_measured_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, readable: bool
) -> None:
    data = write_masked_splits(tmp_path / "data", train=4, val=2)
    if readable:
        monkeypatch.setattr("splitattn.dense.exportable.MOST_LOST", -100)
        rule = r"mIoU may fall by -100 points at most, got mIoU .* on 2 images"
    else:
        for path in (data / "val" / "images").iterdir():
            path.write_bytes(path.read_bytes()[:1000])
        rule = r"mIoU must be more than 0 .* on 0 images \(2 more cannot be read\)"
    with pytest.raises(ExportError, match=rule):
        export(
            tmp_path / "q.onnx",
            weights=folder / "a.safetensors",
            precision="int8",
            calibration=str(data),
        )
    assert [*tmp_path.iterdir()] == [data]


def test_other_heads_run_in_pytorch_alone(folder: Path, tmp_path: Path) -> None:
    del folder
    path = write_weights(tmp_path / "a.safetensors", "fcn")
    assert Segmenter(path).engine == "torch"
    with pytest.raises(InputError, match="a segmenter with head fcn runs in engine torch, got"):
        Segmenter(path, engine="onnxruntime")
    with pytest.raises(InputError, match="its dilated backbone has no folded form"):
        export(tmp_path / "a.onnx", weights=path)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"batch_size": 2}, "a segmenter's file takes any batch, got batch size 2"),
        ({"model": "resnest14"}, "is for segmentation and says its model"),
        ({"precision": "int8"}, "int8 needs images to calibrate on"),
    ],
)
def test_impossible_exports_are_refused(
    folder: Path, tmp_path: Path, options: dict[str, Any], rule: str
) -> None:
    with pytest.raises(InputError, match=rule):
        export(tmp_path / "a.onnx", weights=folder / "a.safetensors", **options)
    with pytest.raises(InputError, match="exported to openvino or onnx, got torch_export"):
        export(tmp_path / "a.pt2", weights=folder / "a.safetensors")


def test_tensors_that_do_not_fit_are_named(folder: Path, tmp_path: Path) -> None:
    path = folder / "a.safetensors"
    metadata = read_metadata(path)
    assert metadata is not None
    tensors = read_by_own_keys(path)
    tensors["head.fuse.0.weight"] = torch.zeros(CHANNELS, CHANNELS, 1, 1)
    write_checkpoint(tmp_path / "a.safetensors", tensors, metadata)
    with pytest.raises(WeightsError, match=r"head\.fuse\.0\.weight must be \(64, 64, 3, 3\), got"):
        Segmenter(tmp_path / "a.safetensors", engine="onnxruntime")


def test_a_file_of_another_task_is_refused(folder: Path) -> None:
    with pytest.raises(WeightsError, match="is for segmentation and labels no image"):
        Classifier(weights=folder / "a.onnx")
    from splitattn.dense.detector import Detector

    with pytest.raises(
        WeightsError, match=r"must be a detector, it is for segmentation: use splitattn\.Seg"
    ):
        Detector(weights=folder / "a.onnx")


@pytest.mark.parametrize("change", ["mode", "scale", "output"])
def test_files_that_were_changed_are_refused(folder: Path, tmp_path: Path, change: str) -> None:
    model = onnx.load(folder / "a.onnx")
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    if change == "mode":
        resize.attribute[0].s = b"cubic"
    elif change == "scale":
        scales = next(c for c in model.graph.initializer if c.name == resize.input[2])
        scales.raw_data = np.array([1, 1, 2, 3], "<f4").tobytes()
    else:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(WeightsError, match=r"b\.onnx is damaged, or splitattn export did not"):
        Segmenter(tmp_path / "b.onnx")


def test_an_exported_file_has_its_task_and_metadata(folder: Path) -> None:
    from splitattn.opening import task_of

    assert task_of(folder / "a.onnx") == task_of(folder / "a.xml") == "segmentation"
    own = read_metadata(folder / "a.safetensors")
    assert own is not None
    model = onnx.load(folder / "a.onnx")
    text = {entry.key: entry.value for entry in model.metadata_props}["splitattn"]
    assert json.loads(text) == json.loads(json.dumps(asdict(own)))
