"""Detectors find the same objects in every engine and exported file."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from splitattn import workflows
from splitattn.architectures import ARCHITECTURES
from splitattn.classifier import Classifier
from splitattn.dense.detector import Detector, TrainedDetector
from splitattn.dense.exportable import DenseExportReport, Loss
from splitattn.dense.exporting import BoxParity, DetectorExport
from splitattn.dense.finding import padded, select
from splitattn.dense.found import FoundObjects
from splitattn.engines.table import find_engine
from splitattn.errors import DataError, InputError, WeightsError
from splitattn.exporting import ExportError
from splitattn.graph.detection import places
from splitattn.training.loop import train
from splitattn.weights.checkpoint import read_by_own_keys, write_checkpoint
from splitattn.weights.metadata import read_metadata
from tests.dense.datasets import picture, write_coco
from tests.dense.runs import ARCHITECTURE, RECIPE, make_run, make_task, network
from tests.examples import blocks

PICTURE = picture([(10, 16, 46, 54, 2), (76, 30, 114, 66, 0)], (128, 96), 77)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The output folder of a short training of a detector."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
        recipe = replace(RECIPE, epochs=1)
        train(network(), make_task(folder, train=24), make_run(folder / "run", recipe))
        yield folder / "run"


@pytest.fixture(scope="module")
def plain(run: Path) -> FoundObjects:
    found = Detector(run, engine="torch").find(PICTURE)
    assert len(found) > 20
    return found


def check_same(found: FoundObjects, plain: FoundObjects, pixels: float, score: float) -> None:
    np.testing.assert_array_equal(found.labels, plain.labels)
    np.testing.assert_allclose(found.scores, plain.scores, atol=score)
    np.testing.assert_allclose(found.boxes, plain.boxes, atol=pixels)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_find_what_torchvision_finds(engine: str, run: Path, plain: FoundObjects) -> None:
    detector = Detector(run, engine=engine)
    assert detector.engine.lower().replace(" ", "").startswith(engine)
    check_same(detector.find(PICTURE), plain, 1e-3, 1e-5)


@pytest.mark.parametrize(
    ("name", "precision"), [("net.onnx", "fp32"), ("net.xml", "fp32"), ("half.onnx", "fp16")]
)
def test_files_find_what_the_detector_finds(
    name: str, precision: str, run: Path, plain: FoundObjects, tmp_path: Path
) -> None:
    path = tmp_path / name
    report = workflows.export(path, weights=run, precision=precision)
    assert isinstance(report, DenseExportReport)
    assert report.passed
    assert (report.parity.images, report.parity.objects, report.parity.same) == (5, 100, 100)
    assert report.parity.selected == 100
    assert report.parity.kept > 20
    stored = json.loads(path.with_name(f"{name}.parity.json").read_text())
    assert stored == json.loads(json.dumps(report.as_dict()))
    detector = Detector(path)
    assert (detector.classes, detector.model) == (Detector(run).classes, "small")
    close = (1e-3, 1e-5) if precision == "fp32" else (0.2, 2e-3)
    best = plain.above(float(np.median(plain.scores)))
    check_same(detector.find(PICTURE, float(np.median(plain.scores)) - 1e-6), best, *close)
    with pytest.raises(WeightsError, match="is for detection and labels no image"):
        Classifier(weights=path)
    if name == "net.onnx":
        page = Path(__file__).parents[2] / "docs" / "howto" / "detect.md"
        _, example, _ = blocks(page.read_text(encoding="utf-8"), "py")
        found: dict[str, np.ndarray] = {}
        exec(example.replace("detector.onnx", str(path)), {}, found)
        assert found["boxes"].shape == (2, sum(places(256, 320)), 4)
        assert found["selected"].shape[1] == 3
    other = "openvino" if name.endswith("onnx") else "onnxruntime"
    with pytest.raises(InputError, match="leave out --engine"):
        Detector(path, engine=other)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("head", ["fcos", "retinanet"])
def test_the_file_keeps_the_boxes_that_the_detector_keeps(
    engine: str, head: str, run: Path, tmp_path: Path
) -> None:
    """The file's own node selects them, also for each image of a batch."""
    source = run / "model.safetensors"
    if head == "retinanet":
        source = tmp_path / "a.safetensors"
        metadata = read_metadata(run / "model.safetensors")
        assert metadata is not None
        detector = network(head)
        torch.nn.init.constant_(detector.head.classification_head.cls_logits.bias, -2)  # type: ignore[union-attr, arg-type]
        metadata = replace(metadata, head={**metadata.head, "name": head})
        write_checkpoint(source, detector.state_dict(), metadata)
    export = DetectorExport(TrainedDetector.read(source))
    row = find_engine(engine)
    loaded = row.load_module().load(export.network(row.form), size=None, device="cpu")
    pixels = np.asarray(PICTURE.resize((96, 64)))
    ours, files = export.kept(loaded, pixels)
    assert len(ours) > 20
    assert ours == files
    images = padded(pixels, export.trained.metadata.preprocessing)
    *_, rows = loaded.outputs(np.concatenate([images, images]))
    np.testing.assert_array_equal(rows[rows[:, 0] == 0, 1:], rows[rows[:, 0] == 1, 1:])
    assert {*rows[:, 0].tolist()} == {0, 1}


def test_int8_is_measured_on_other_images_than_it_is_calibrated_on(
    run: Path, tmp_path: Path
) -> None:
    """Training images give the ranges; the loss of AP is measured on validation images."""
    data = run.parent / "data"
    report = workflows.export(
        tmp_path / "q.onnx", weights=run, precision="int8", calibration=str(data)
    )
    assert isinstance(report, DenseExportReport)
    assert report.agreement is not None
    assert report.agreement.images == 4
    measured = workflows.evaluate(str(data), weights=tmp_path / "q.onnx")
    assert measured.figures["ap"] == report.agreement.value  # type: ignore[union-attr]
    assert report.size < 0.5 * (run / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"batch_size": 2}, "takes any batch"),
        ({"format": "torch_export", "path": "net.pt2"}, "openvino or onnx, got torch_export"),
        ({"precision": "int8"}, "int8 needs images to calibrate on"),
        ({"model": "small"}, "leave out --model"),
        ({"path": "net.gguf"}, "must end in one of"),
    ],
)
def test_impossible_export_options_are_refused(
    options: dict[str, object], rule: str, run: Path, tmp_path: Path
) -> None:
    options = {"path": "net.onnx", "weights": run, **options}
    path = tmp_path / str(options.pop("path"))
    with pytest.raises(InputError, match=rule):
        workflows.export(path, **options)  # type: ignore[arg-type]
    assert not [*tmp_path.iterdir()]


def test_a_head_of_two_stages_is_refused(run: Path, tmp_path: Path) -> None:
    source = run / "model.safetensors"
    metadata = read_metadata(source)
    assert metadata is not None
    metadata = replace(metadata, head={**metadata.head, "name": "faster_rcnn"})
    write_checkpoint(tmp_path / "a.safetensors", read_by_own_keys(source), metadata)
    with pytest.raises(InputError, match="second stage depends on what the first stage finds"):
        workflows.export(tmp_path / "a.onnx", weights=tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "precision"), [("net.onnx", "fp32"), ("net.xml", "fp16"), ("net.onnx", "int8")]
)
def test_too_large_files_are_refused_before_work_is_done(
    name: str, precision: str, run: Path, tmp_path: Path
) -> None:
    source, steps = run / "model.safetensors", list[str]()
    metadata = read_metadata(source)
    assert metadata is not None
    metadata = replace(metadata, head={**metadata.head, "short_side": 4100, "long_side": 6100})
    write_checkpoint(tmp_path / "a.safetensors", read_by_own_keys(source), metadata)
    rule = (
        r"2 images of 4100 x 6100 pixels it has a tensor of [\d,]+ numbers, more than 134,217,728:"
    )
    with pytest.raises(InputError, match=rule):
        workflows.export(
            tmp_path / name,
            weights=tmp_path / "a.safetensors",
            precision=precision,
            calibration=str(run.parent / "data"),
            on_step=steps.append,
        )
    assert not steps
    assert [*tmp_path.iterdir()] == [tmp_path / "a.safetensors"]


@pytest.mark.parametrize("by", [0.06, 5])
def test_a_file_that_finds_something_else_does_not_appear(
    by: float, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shift of 0.06 pixels is refused too, although the boxes still overlap almost fully."""

    def off(*arguments: object, **options: object) -> FoundObjects:
        found = select(*arguments, **options)  # type: ignore[arg-type]
        return replace(found, boxes=found.boxes + np.float32(by))

    monkeypatch.setattr("splitattn.dense.finding.select", off)
    rule = r"net\.onnx was not written: in ONNX .* 99 % of the boxes must be the same.*got 0\.0 %"
    with pytest.raises(ExportError, match=rule):
        workflows.export(tmp_path / "net.onnx", weights=run)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("precision", "change", "fault"),
    [
        ("fp32", {}, ""),
        ("fp32", {"same": 98.9}, "99 % of the boxes must be the same"),
        ("fp32", {"score": 2e-3}, "within 0.05 pixels and 0.001 of the score"),
        ("fp32", {"pixels": 0.06}, "within 0.05 pixels and 0.001 of the score"),
        ("fp32", {"score": float("nan")}, "0.001 of the score"),
        ("fp32", {"objects": 0}, "99 % of the boxes"),
        ("fp32", {"selected": 98.9}, "the file must select 99 % of the boxes that are kept, and"),
        ("int8", {"selected": 98.9}, "the file must select 99 % of the boxes that are kept, got"),
        # No boxes are kept, so there are none to compare.
        ("fp32", {"selected": 0.0, "kept": 0}, ""),
        ("fp16", {"same": 95.0, "score": 0.04, "pixels": 0.9}, ""),
        ("int8", {"same": 60.0}, ""),
        ("int8", {"ap": 47.9}, "AP may fall by 2 points at most, got AP 47.90 % on 4 images"),
        ("int8", {"ap": float("nan")}, "AP may fall by 2 points"),
        ("int8", {"ap": 0.0, "exact": 0.0}, "AP must be more than 0 in fp32"),
    ],
)
def test_reports_say_which_files_may_be_used(
    precision: str, change: dict[str, float], fault: str
) -> None:
    parity = {"images": 5, "objects": 100, "same": 100.0, "pixels": 0.0, "score": 0.0}
    parity |= {"kept": 9, "selected": 100.0}
    parity |= {key: value for key, value in change.items() if key in parity}
    value, exact = change.get("ap", 48.1), change.get("exact", 50.0)
    loss = Loss(figure="AP", value=value, exact=exact, images=4, unreadable=0)
    report = DenseExportReport(
        path=Path("a"),
        model="small",
        format="onnx",
        precision=precision,
        engine="x",
        size=1,
        parity=BoxParity(**parity),  # type: ignore[arg-type]
        agreement=loss if precision == "int8" else None,
    )
    assert report.passed is not bool(fault)
    if fault:
        assert fault in report.fault


def test_evaluate_measures_a_detector_on_any_split(run: Path, tmp_path: Path) -> None:
    measured = workflows.evaluate(str(run.parent / "data"), weights=run, engine="torch")
    metadata = read_metadata(run / "model.safetensors")
    assert metadata is not None
    figures = measured.figures  # type: ignore[union-attr]
    assert {**figures, "n": 4} == metadata.metrics
    for wrong in ({"model": "small"}, {"size": 64}):
        (name,) = wrong
        with pytest.raises(InputError, match=f"{name} is for classification: leave it out for"):
            workflows.evaluate(str(run.parent / "data"), weights=run, **wrong)  # type: ignore[arg-type]
    path = write_coco(tmp_path, "val", 1)
    content = path.read_text().replace('"blue"', '"cyan"')
    path.write_text(content)
    with pytest.raises(DataError, match="must have the detector's classes, got 1 others: cyan"):
        workflows.evaluate(str(tmp_path), weights=run)
    path.write_text(content.replace('"cyan"', '"blue"'))
    (tmp_path / "images" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError):
        workflows.evaluate(str(tmp_path), weights=run)


def test_the_best_box_of_each_class_wins() -> None:
    """Equals torchvision's non-maximum suppression, on random boxes of several classes."""
    random = np.random.default_rng(0)
    near = random.uniform(0, 80, (400, 2))
    boxes = np.concatenate([near, near + random.uniform(2, 40, (400, 2))], 1).astype(np.float32)
    scores = random.uniform(0, 1, (400, 3)).astype(np.float32)
    found = select(boxes, scores, [300, 100], (100, 90), score=0.6, iou=0.5)
    place, label = np.nonzero(scores > 0.6)
    cut = torch.from_numpy(boxes[place].clip(0, [90, 100, 90, 100]).astype(np.float32))
    values = torch.from_numpy(scores[place, label])
    kept = batched_nms(cut, values, torch.from_numpy(label), 0.5)[:100]
    np.testing.assert_array_equal(found.boxes, cut[kept])
    np.testing.assert_array_equal(found.scores, values[kept])
    np.testing.assert_array_equal(found.labels, label[kept])
    assert not len(select(boxes, scores, [300, 100], (100, 90), score=1, iou=0.5))


def test_eight_bits_are_refused_where_nothing_can_be_measured(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "val"):
        write_coco(data, split, 2)
    path = data / "val.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(ExportError, match=r"AP must be more than 0 in fp32, got AP 0\.00 % on 2"):
        workflows.export(tmp_path / "q.onnx", weights=run, precision="int8", calibration=str(data))
    assert [*tmp_path.iterdir()] == [data]
