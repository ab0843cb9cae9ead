"""Exported files: their outputs, their metadata, and exports that are refused."""

import json
import math
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from splitattn import libraries
from splitattn.agreement import Agreement
from splitattn.classifier import Classifier
from splitattn.create import create_model
from splitattn.data.calibration import calibration_images
from splitattn.differences import Difference, Parity
from splitattn.engines.engine import Engine, FileSettings, softmax
from splitattn.engines.onnx_runtime import OnnxEngine
from splitattn.engines.open_vino import OpenVinoEngine, ov
from splitattn.engines.table import file_engine, formats
from splitattn.errors import InputError, WeightsError
from splitattn.exporting import ExportError, ExportReport, export_network
from splitattn.images.decode import decode
from splitattn.images.preprocess import normalize, preprocess
from splitattn.images.samples import sample_photographs
from splitattn.nn.resnest import ResNeSt
from splitattn.opening import open_exported, open_weights
from splitattn.transforms import transform
from splitattn.weights.metadata import METADATA_KEY, ModelMetadata
from splitattn.workflows import export
from tests.cli.networks import write_weights
from tests.data.datasets import CLASSES as COLORS
from tests.data.datasets import write_image_folder
from tests.engines.networks import (
    CLASSES,
    METADATA,
    PREPROCESSING,
    network,
    photographs,
    plain_logits,
    plain_probabilities,
    trained,
)
from tests.nn.networks import small

# Older versions of torch.export recorded the parity of half the size of the example image.
PROGRAMS_OF_ANY_SIZE = tuple(map(int, version("torch").split(".")[:2])) >= (2, 13)
Exported = Callable[..., tuple[Path, ExportReport]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A function that exports for any image size, each format and precision only once."""
    done: dict[tuple[str, str], tuple[Path, ExportReport]] = {}

    def get(format: str, precision: str = "fp32") -> tuple[Path, ExportReport]:
        if (format, precision) not in done:
            path = tmp_path_factory.mktemp(format) / f"net{formats()[format].suffix}"
            any_size = format != "torch_export" or PROGRAMS_OF_ANY_SIZE
            report = export_network(trained(), path, precision=precision, dynamic_size=any_size)
            done[format, precision] = path, report
        return done[format, precision]

    return get


def opened(path: Path, *, trusted: bool = False) -> tuple[Engine, ModelMetadata]:
    row = file_engine(path)
    assert row is not None
    return open_exported(row, path, trusted=trusted)


SLOW = pytest.mark.slow
CASES = [
    ("onnx", "fp32", 1e-5),
    ("openvino", "fp32", 1e-5),
    ("torch_export", "fp32", 1e-5),
    ("onnx", "fp16", 1e-2),
    ("openvino", "fp16", 1e-2),
    pytest.param("torch_export", "fp16", 1e-2, marks=SLOW),
]


@pytest.mark.parametrize(("format", "precision", "tolerance"), CASES)
def test_an_exported_network_computes_what_the_network_computes(
    format: str, precision: str, tolerance: float, exported: Exported
) -> None:
    path, report = exported(format, precision)
    rows = report.parity.differences
    sizes = [(row.batch_size, row.image_size) for row in rows]
    any_size = format != "torch_export" or PROGRAMS_OF_ANY_SIZE
    assert sizes == [(n, size) for size in (40, 73)[: 1 + any_size] for n in (1, 4)]
    assert report.passed
    assert all(row.absolute <= tolerance and row.same_labels == 100 for row in rows)
    stored = json.loads(path.with_name(f"{path.name}.parity.json").read_text("utf-8"))
    assert stored == json.loads(json.dumps(report.as_dict()))
    assert stored["environment"]["onnxruntime"] == version("onnxruntime")
    files = {file.name for file in path.parent.iterdir()}
    assert files == {path.name, f"{path.name}.parity.json"} | (
        {"net.bin"} if format == "openvino" else set()
    )
    # Another size and batch; logits of floats.
    images = torch.randn(3, 3, 56, 49) if any_size else torch.randn(3, 3, 40, 40)
    with torch.inference_mode():
        expected = network()(images).numpy()
    outputs = opened(path, trusted=True)[0].logits(images.numpy())
    np.testing.assert_allclose(outputs, expected, atol=abs(expected).max() * tolerance, rtol=0)


def test_half_precision_takes_about_half_the_bytes(exported: Exported) -> None:
    for format in ("onnx", "openvino"):
        sizes = [exported(format, precision)[1].size for precision in ("fp32", "fp16")]
        assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("format", list(formats()))
def test_a_file_for_one_batch_size_is_run_with_any(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{formats()[format].suffix}"
    report = export_network(trained(), path, batch_size=2)
    assert report.passed
    engine, _ = opened(path, trusted=True)
    assert engine.batch == 2
    outputs = softmax(engine.run(photographs(), PREPROCESSING))
    np.testing.assert_allclose(outputs, plain_probabilities(), atol=1e-5, rtol=0)


def test_an_onnx_file_names_its_axes_and_no_path_of_this_machine(exported: Exported) -> None:
    path, _ = exported("onnx")
    graph = onnx.load(path).graph

    def axes(value: onnx.ValueInfoProto) -> list[str | int]:
        return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]

    assert [(value.name, axes(value)) for value in graph.input] == [
        ("images", ["batch", 3, "height", "width"])
    ]
    assert [(value.name, axes(value)) for value in graph.output] == [
        ("logits", ["batch", len(CLASSES)])
    ]
    assert {node.op_type for node in graph.node}.isdisjoint({"BatchNormalization", "Gather"})
    assert str(Path(__file__).parents[1]).encode() not in path.read_bytes()


def test_the_opset_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export_network(trained(), path, opset=17)
    assert [entry.version for entry in onnx.load(path).opset_import] == [17]
    with pytest.raises(InputError, match=r"--opset belongs to ONNX files, got 17 for net\.xml"):
        export_network(trained(), tmp_path / "net.xml", opset=17)
    assert {file.name for file in tmp_path.iterdir()} == {"net.onnx", "net.onnx.parity.json"}


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_file_alone_is_enough_to_predict(format: str, exported: Exported) -> None:
    path, _ = exported(format)
    assert opened(path)[1] == METADATA
    classifier = Classifier(weights=path)
    assert (classifier.model, classifier.weights) == ("resnest14", str(path))
    assert classifier.classes == CLASSES
    for image, row in zip(sample_photographs(), plain_probabilities(), strict=True):
        best = classifier.predict(image, topk=1)[0]
        assert (best.index, best.label) == (row.argmax(), CLASSES[row.argmax()])
        assert best.probability == pytest.approx(row.max(), abs=1e-5)


def test_export_finds_the_weights_that_a_person_means(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "small.safetensors")
    report = export(tmp_path / "net.onnx", weights=weights)
    assert (report.model, report.format, report.precision) == ("resnest14", "onnx", "fp32")
    photograph = sample_photographs()[0]
    best = [
        Classifier(weights=path, engine="onnxruntime").predict(photograph)[0].label
        for path in (weights, tmp_path / "net.onnx")
    ]
    assert best[0] == best[1]


def test_a_program_carries_its_metadata_and_is_not_loaded(exported: Exported) -> None:
    path, _ = exported("torch_export")
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(f"/{METADATA_KEY}.json")]
        assert archive.read(name).decode() == METADATA.to_json()
    with pytest.raises(WeightsError, match="could run code when it is loaded") as raised:
        Classifier(weights=path)
    assert str(raised.value).isprintable()


def test_the_wrong_engine_device_or_model_for_a_file_is_reported_in_one_line(
    exported: Exported,
) -> None:
    path, _ = exported("openvino")
    for arguments, complaint in (
        ({"engine": "torch"}, "runs in engine openvino, got 'torch'"),
        ({"engine": "steam"}, "engine must be one of .*, got 'steam'"),
        ({"device": "cuda"}, "engine openvino runs on cpu, got device 'cuda'"),
        ({"model": "resnest50"}, "belongs to resnest14, not to resnest50"),
    ):
        with pytest.raises(InputError, match=complaint) as raised:
            Classifier(weights=path, **arguments)
        assert str(raised.value).isprintable()


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch_export"])
def test_an_exported_file_is_no_weights(format: str, exported: Exported) -> None:
    path, _ = exported(format)
    for use in (
        lambda: open_weights(weights=path),
        lambda: open_weights("resnest14", path),
        lambda: create_model("resnest14", weights=path),
        lambda: transform("resnest14", weights=path),
    ):
        with pytest.raises(WeightsError, match="pass the weights it was exported from"):
            use()


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_damaged_files_are_reported_in_one_line(
    suffix: str, exported: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, _ = exported("onnx" if suffix == ".onnx" else "openvino")
    whole = path.read_bytes()
    bad = tmp_path / f"bad{suffix}"
    weights = path.with_suffix(".bin").read_bytes() if suffix == ".xml" else b""
    for content in (b"", b"\0" * 100, b"<net", b"no network", whole[: len(whole) // 2]):
        bad.write_bytes(content)
        bad.with_suffix(".bin").write_bytes(weights)
        with pytest.raises(WeightsError, match=rf"bad{suffix} ") as raised:
            opened(bad)
        assert str(raised.value).isprintable()
    bad.unlink()
    with pytest.raises(WeightsError, match="cannot read weights"):
        opened(bad)
    assert capfd.readouterr() == ("", ""), "the libraries must print nothing"


def test_an_ir_without_its_weights_says_what_is_missing(exported: Exported, tmp_path: Path) -> None:
    path, _ = exported("openvino")
    alone = tmp_path / "alone.xml"
    alone.write_bytes(path.read_bytes())
    with pytest.raises(WeightsError, match=r"alone\.xml needs alone\.bin beside it"):
        opened(alone)
    alone.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"alone\.xml is damaged"):
        opened(alone)


def test_graphs_that_do_not_fit_their_metadata_are_refused(
    exported: Exported, tmp_path: Path
) -> None:
    graph = onnx.load(exported("onnx")[0])
    path = tmp_path / "liar.onnx"
    for properties, complaint in (
        ({}, "has no splitattn metadata"),
        ({METADATA_KEY: "[]"}, "malformed metadata"),
        ({METADATA_KEY: METADATA.to_json().replace('"tabby", ', "")}, "has 5 classes, but"),
    ):
        onnx.helper.set_model_props(graph, properties)
        onnx.save(graph, path)
        with pytest.raises(WeightsError, match=complaint) as raised:
            opened(path)
        assert str(raised.value).isprintable()
    onnx.helper.set_model_props(graph, {METADATA_KEY: METADATA.to_json()})
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1000
    onnx.save(graph, path)
    with pytest.raises(WeightsError, match="does not take images of 40 pixels"):
        opened(path)


def test_a_file_with_other_outputs_than_the_network_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = trained()
    other = trained(network(seed=2)).fold("branches")
    monkeypatch.setattr("splitattn.opening.TrainedNetwork.fold", lambda *_: other)
    old = {"net.xml": "the old graph", "net.bin": "its weights", "net.xml.parity.json": "{}"}
    for name, content in old.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ExportError, match=r"net\.xml was not written: .* within 0\.0001") as raised:
        export_network(honest, tmp_path / "net.xml")
    assert str(raised.value).isprintable()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == old


def test_a_file_that_takes_no_other_size_is_not_written_as_dynamic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = OpenVinoEngine._infer

    def stubborn(engine: OpenVinoEngine, images: NDArray[np.float32]) -> NDArray[np.float32]:
        assert images.shape[-1] % 2 == 0, "Guard failed:\nimages.size()[3] % 2 == 0"
        return infer(engine, images)

    monkeypatch.setattr(OpenVinoEngine, "_infer", stubborn)
    with pytest.raises(ExportError, match="not take images of 73 pixels") as raised:
        export_network(trained(), tmp_path / "net.xml", dynamic_size=True)
    assert str(raised.value).isprintable()
    assert list(tmp_path.iterdir()) == []
    export_network(trained(), tmp_path / "net.xml")


def test_a_writer_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object, path: Path, __: FileSettings) -> None:
        path.write_text("half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr("splitattn.engines.open_vino.write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_network(trained(), tmp_path / "net.xml")
    assert list(tmp_path.iterdir()) == []


def report(absolute: float, agreement: Agreement | None = None) -> ExportReport:
    """A report on three batches, of which the second differs by `absolute`."""
    differences = tuple(
        Difference(batch_size=1, image_size=32, absolute=most, relative=0.0, same_labels=100.0)
        for most in (0.0, absolute, 0.0)
    )
    return ExportReport(
        path=Path("net.onnx"),
        model="resnest14",
        format="onnx",
        precision="int8" if agreement else "fp32",
        engine="none",
        size=1,
        parity=Parity(differences=differences),
        agreement=agreement,
    )


@pytest.mark.parametrize(("absolute", "passed"), [(1e-6, True), (1e-3, False), (math.nan, False)])
def test_every_batch_must_pass(absolute: float, passed: bool) -> None:
    assert report(absolute).passed == passed
    assert f"got {absolute:.2g}" in report(absolute).fault


@pytest.mark.parametrize(("same_labels", "passed"), [(90.0, True), (89.9, False)])
def test_int8_passes_by_its_labels(same_labels: float, passed: bool) -> None:
    agreement = Agreement(n=1000, same_labels=same_labels, top1=None, reference_top1=None)
    assert report(0.3, agreement).passed == passed
    assert f"got {same_labels:.2f} %" in report(0.3, agreement).fault


TINY = replace(METADATA, preprocessing=replace(PREPROCESSING, size=32))


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        ("net.pth", {}, r"must end in one of \.xml, \.onnx, \.pt2, got .*net\.pth"),
        ("net.onnx", {"format": "tflite"}, "format must be one of .*, got 'tflite'"),
        ("net.onnx", {"format": "openvino"}, r"format openvino must end in \.xml, got"),
        ("net.onnx", {"precision": "fp8"}, "precision must be one of fp32, fp16, int8, got 'fp8'"),
        (
            "net.pt2",
            {"precision": "int8"},
            "torch_export must be fp32 or fp16, got int8; use openvino or onnx",
        ),
        ("net.xml", {"precision": "int8"}, "int8 needs images to calibrate on: pass --calibration"),
        ("net.onnx", {"batch_size": 0}, "batch size must be at least 1, got 0"),
        (
            "net.xml",
            {"batch_size": 10**6},
            "with 1000000 images of 40 x 40 pixels it has a tensor of 4,800,000,000 numbers, .*: "
            "take a smaller --batch-size",
        ),
        ("net.onnx", {"opset": 7}, "opset must be 11 to 20 for fp32, got 7"),
        (
            "net.onnx",
            {"opset": 12, "precision": "int8", "calibration": "data"},
            "opset must be 13 to 20 for int8, got 12",
        ),
        ("no/folder/net.xml", {}, "cannot write .*net.xml: there is no folder .*folder"),
        ("folder.xml", {}, "an exported network is a file, got .*, a folder"),
        ("net.xml", {"calibration": "nowhere"}, "data must be a folder"),
        ("net.pt2", {"dynamic_size": True, "network": TINY}, "more than 32 pixels, got 32"),
    ],
)
def test_arguments_that_do_not_go_together_are_reported_in_one_line(
    name: str, arguments: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.xml").mkdir()
    metadata = arguments.pop("network", METADATA)
    with pytest.raises(InputError, match=complaint) as raised:
        export_network(trained(metadata=metadata), tmp_path / name, **arguments)
    assert str(raised.value).isprintable()


def test_somebody_elses_weights_are_not_replaced(tmp_path: Path) -> None:
    """An OpenVINO network is two files, but only the first is named."""
    other = tmp_path / "net.bin"
    other.write_bytes(b"other")
    with pytest.raises(InputError, match=r"weights of net\.xml would replace .*net\.bin"):
        export_network(trained(), tmp_path / "net.xml")
    assert other.read_bytes() == b"other"


def test_a_missing_library_is_reported_in_one_line_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda _: None)
    for name, library in (("net.onnx", "onnx"), ("net.xml", "openvino")):
        with pytest.raises(InputError, match=rf"pip install .*{library}"):
            export_network(trained(), tmp_path / name)


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_image_folder(tmp_path_factory.mktemp("data"), train=4, val=4))


def knowing(data: str) -> ResNeSt:
    """A network that recognizes the colors: its classifier finds the nearest mean of a class."""
    images = calibration_images(data)
    pixels = np.stack([preprocess(decode(path), PREPROCESSING) for path in images.images])
    model = ResNeSt(small(), num_classes=0).eval()
    model.load_state_dict(
        {k: v for k, v in network().state_dict().items() if not k.startswith("fc.")}
    )
    with torch.no_grad():
        features = model(torch.from_numpy(normalize(pixels, PREPROCESSING)))
        labels = torch.tensor(images.labels)
        centers = torch.stack([features[labels == label].mean(0) for label in range(3)])
        direction = centers - centers.mean(0)
        model.fc = torch.nn.Linear(features.shape[1], 3)
        model.fc.weight.copy_(direction * (20 / direction.square().sum(1).mean()))
        model.fc.bias.copy_(-(model.fc.weight * (centers + centers.mean(0)) / 2).sum(1))
    model.num_classes = 3
    return model


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_int8_keeps_labels_and_says_so(suffix: str, colors: str, tmp_path: Path) -> None:
    model = knowing(colors)
    path = tmp_path / f"net{suffix}"
    report = export_network(
        trained(model.requires_grad_(False), replace(METADATA, classes=COLORS)),
        path,
        precision="int8",
        calibration=colors,
    )
    assert report.agreement == Agreement(n=12, same_labels=100, top1=100, reference_top1=100)
    assert report.passed
    bytes_of_weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    weights = path.with_suffix(".bin") if suffix == ".xml" else path
    assert weights.stat().st_size < 0.6 * bytes_of_weights
    stored = json.loads((tmp_path / f"net{suffix}.parity.json").read_text("utf-8"))
    assert stored["agreement"]["top1"] == 100
    red = next(Path(colors).glob("val/red/*"))
    assert Classifier(weights=path).predict(red, topk=1)[0].label == "red"


def written(path: Path, model: ResNeSt) -> Path:
    """Write an int8 file without checking whether it keeps the labels."""
    row = file_engine(path)
    assert row is not None
    settings = FileSettings(metadata=METADATA, precision="int8", calibration=list(photographs()))
    row.load_file_module().write(trained(model).fold("branches"), path, settings)
    return path


@pytest.mark.parametrize(("radix", "cardinality"), [(1, 2), (2, 1), (4, 1)])
def test_int8_in_onnx_leaves_only_attention_in_floats(
    radix: int, cardinality: int, tmp_path: Path
) -> None:
    model = network(radix, cardinality)
    graph = onnx.load(written(tmp_path / "net.onnx", model)).graph
    kinds = {output: node.op_type for node in graph.node for output in node.output}
    attention = [
        node
        for node in graph.node
        if ".attention" in node.name and "quantize" not in node.op_type.lower()
    ]
    dense = [node for node in attention if node.op_type == "Conv"]
    assert len(dense) == 4 * cardinality * (1 + max(radix - 1, 1))
    for node in dense:
        assert node.input[1] not in kinds, (
            "attention must keep float weights, which no node dequantizes"
        )
    for node in graph.node:
        if "quantize" not in node.op_type.lower() and node not in attention:
            # Nodes outside attention must read only dequantized values.
            read = {kinds[name] for name in node.input if name in kinds}
            assert read == {"DequantizeLinear"}, node.name
            assert node.op_type not in ("ReduceMean", "Sub"), "this operator has no int8 kernel"
    weights = [
        onnx.numpy_helper.to_array(each)
        for each in graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 4
    ]
    # Seven bits, because products of 8 bits by 8 overflow 16 bits on processors without VNNI.
    assert 32 < max(abs(each.astype(int)).max() for each in weights) <= 64
    outputs = softmax(OnnxEngine(tmp_path / "net.onnx").run(photographs(), PREPROCESSING))
    assert 1e-4 < abs(outputs - softmax(plain_logits(model=model))).max() < 0.15


@pytest.mark.parametrize(("radix", "cardinality"), [(2, 1), (4, 2)])
def test_int8_in_openvino_rounds_splits_once_and_attention_never(
    radix: int, cardinality: int, tmp_path: Path
) -> None:
    model = network(radix, cardinality, layers=(2, 1, 1, 1))
    path = written(tmp_path / "net.xml", model)
    operations = ov.Core().read_model(path).get_ordered_ops()
    pools = [
        each
        for each in operations
        if each.get_type_name() == "ReduceMean" and ".attention.pool" in each.get_friendly_name()
    ]
    splits = [each.input_value(0).get_node() for each in pools]
    assert [split.get_type_name() for split in splits] == ["FakeQuantize"] * (
        5 * radix * cardinality
    )
    for split in splits:
        (reader,) = split.input_value(0).get_target_inputs()
        assert reader.get_node().get_friendly_name() == split.get_friendly_name(), (
            "only the quantizer may read the split before quantization"
        )
    names = {split.get_friendly_name() for split in splits}
    for operation in operations:
        if ".attention" in operation.get_friendly_name():
            for value in operation.input_values():
                maker = value.get_node()
                assert maker.get_type_name() != "FakeQuantize" or (
                    maker.get_friendly_name() in names
                ), operation.get_friendly_name()
    roundings = Counter(
        each.get_attributes()["rounding_type"]
        for each in operations
        if each.get_type_name() == "AvgPool" and each.get_attributes()["kernel"] == [2, 2]
    )
    # Of the maps of 10, 5 and 3 pixels, pooling by 2 divides only the first evenly.
    assert roundings["floor"] == 1
    assert roundings.total() == 3
    outputs = softmax(OpenVinoEngine(path).run(photographs(), PREPROCESSING))
    assert 1e-4 < abs(outputs - softmax(plain_logits(model=model))).max() < 0.15
