"""Exported files: what they compute, what they say about themselves, and what is refused."""

import json
import math
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from splitattn import libraries
from splitattn.classifier import Classifier
from splitattn.engines import export as exporting
from splitattn.engines import onnx_runtime
from splitattn.engines.engine import EngineRuntime
from splitattn.engines.export import SUFFIXES, ExportError, ExportReport, export
from splitattn.engines.exported import load_exported
from splitattn.engines.onnx_eight_bits import for_eight_bits
from splitattn.engines.onnx_runtime import OnnxEngine
from splitattn.engines.open_vino import OpenVinoEngine, convert, floor_averages, ov
from splitattn.engines.pytorch import Exportable, plain_engine
from splitattn.engines.quantization import (
    Agreement,
    _onnx_nodes,
    _openvino_nodes,
    calibration_images,
    find_parts,
    quantized_onnx,
    quantized_openvino,
)
from splitattn.errors import InputError, WeightsError
from splitattn.images.decode import decode
from splitattn.images.preprocess import normalize, preprocess
from splitattn.images.samples import sample_photographs
from splitattn.nn.fusion import Form, fuse
from splitattn.nn.parity import Difference, Parity
from splitattn.nn.resnest import ResNeSt
from splitattn.weights.metadata import METADATA_KEY
from tests.data.datasets import CLASSES as COLORS
from tests.data.datasets import write_image_folder
from tests.engines.networks import CLASSES, METADATA, PREPROCESSING, network, photographs
from tests.nn.networks import small

TINY = replace(METADATA, preprocessing=replace(PREPROCESSING, size=32))
# Before, torch.export recorded that half of an image is odd, or even, as that of its example is.
PROGRAMS_OF_ANY_SIZE = tuple(map(int, version("torch").split(".")[:2])) >= (2, 13)
Exported = Callable[..., tuple[Path, ExportReport]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Each file is made once: `exported("onnx")`, for any image size, in a folder of its own."""
    done: dict[tuple[str, str], tuple[Path, ExportReport]] = {}

    def get(format: str, precision: str = "fp32") -> tuple[Path, ExportReport]:
        if (format, precision) not in done:
            path = tmp_path_factory.mktemp(format) / f"net{SUFFIXES[format]}"
            any_size = format != "torch_export" or PROGRAMS_OF_ANY_SIZE
            report = export(
                network(), path, metadata=METADATA, precision=precision, dynamic_size=any_size
            )
            done[format, precision] = path, report
        return done[format, precision]

    return get


def plain_probabilities() -> torch.Tensor:
    return EngineRuntime(plain_engine(network()), PREPROCESSING).run(photographs())


def logits_of(path: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        if path.suffix == ".onnx":
            return OnnxEngine(path)(images)
        if path.suffix == ".xml":
            return OpenVinoEngine(path)(images)
        return torch.export.load(path).module()(images)


SLOW = pytest.mark.slow
CASES = [
    ("onnx", "fp32", 1e-5),
    ("openvino", "fp32", 1e-5),
    ("torch_export", "fp32", 1e-5),
    ("openvino", "fp16", 1e-2),
    pytest.param("onnx", "fp16", 1e-2, marks=SLOW),
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
    assert sizes == [(n, size) for size in (40, 73)[: 1 + any_size] for n in (1, 2, 5)]
    assert report.passed
    assert all(row.absolute <= tolerance and row.same_labels == 1 for row in rows)
    stored = json.loads(path.with_name(f"{path.name}.parity.json").read_text("utf-8"))
    assert stored == json.loads(json.dumps(report.as_dict()))
    assert stored["environment"]["torch"] == version("torch")
    files = {file.name for file in path.parent.iterdir()}
    assert files == {path.name, f"{path.name}.parity.json"} | (
        {"net.bin"} if format == "openvino" else set()
    )
    # Of another size and batch, from floats to logits.
    images = torch.randn(3, 3, 56, 49) if any_size else torch.randn(3, 3, 40, 40)
    expected = network()(images)
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(
        logits_of(path, images), expected.detach(), atol=scale * tolerance, rtol=0
    )


def test_half_precision_takes_half_the_room(exported: Exported) -> None:
    sizes = [exported("openvino", precision)[1].size for precision in ("fp32", "fp16")]
    assert sizes[1] < 0.65 * sizes[0]


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
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_file_alone_is_enough_to_predict(format: str, exported: Exported) -> None:
    path, _ = exported(format)
    assert load_exported(path).metadata == METADATA
    classifier = Classifier(weights=path)
    assert (classifier.model, classifier.weights) == ("resnest14", str(path))
    assert classifier.classes == CLASSES
    expected = plain_probabilities()
    for image, row in zip(sample_photographs(), expected, strict=True):
        best = classifier.predict(image, topk=1)[0]
        assert (best.index, best.label) == (row.argmax(), CLASSES[row.argmax()])
        assert best.probability == pytest.approx(row.max().item(), abs=1e-5)


def test_a_program_carries_its_metadata_and_is_not_loaded(exported: Exported) -> None:
    path, _ = exported("torch_export")
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(f"/{METADATA_KEY}.json")]
        assert archive.read(name).decode() == METADATA.to_json()
    with pytest.raises(WeightsError, match="could run code when it is loaded") as raised:
        Classifier(weights=path)
    assert str(raised.value).isprintable()


def test_the_wrong_engine_device_or_model_for_a_file_is_one_line(exported: Exported) -> None:
    path, _ = exported("openvino")
    for arguments, complaint in (
        ({"engine": "torch"}, "runs in engine openvino, got 'torch'"),
        ({"engine": "steam"}, "runs in engine openvino, got 'steam'"),
        ({"device": "cuda"}, "engine openvino runs on cpu, got device 'cuda'"),
        ({"model": "resnest50"}, "belongs to resnest14, not to resnest50"),
    ):
        with pytest.raises(InputError, match=complaint) as raised:
            Classifier(weights=path, **arguments)
        assert str(raised.value).isprintable()


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_damaged_files_are_one_line(
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
            load_exported(bad)
        assert str(raised.value).isprintable()
    bad.unlink()
    with pytest.raises(WeightsError, match="cannot read weights"):
        load_exported(bad)
    assert capfd.readouterr() == ("", ""), "the libraries print nothing of their own"


def test_an_ir_without_its_weights_says_what_is_missing(exported: Exported, tmp_path: Path) -> None:
    path, _ = exported("openvino")
    alone = tmp_path / "alone.xml"
    alone.write_bytes(path.read_bytes())
    with pytest.raises(WeightsError, match=r"alone\.xml needs alone\.bin beside it"):
        load_exported(alone)
    alone.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"alone\.xml is damaged"):
        load_exported(alone)


def test_graphs_that_say_something_else_than_they_do_are_refused(
    exported: Exported, tmp_path: Path
) -> None:
    graph = onnx.load(exported("onnx")[0])
    path = tmp_path / "liar.onnx"
    for properties, complaint in (
        ({}, "does not say what its outputs mean"),
        ({METADATA_KEY: "[]"}, "malformed metadata"),
        ({METADATA_KEY: METADATA.to_json().replace('"tabby", ', "")}, "it names 5 and gives"),
    ):
        onnx.helper.set_model_props(graph, properties)
        onnx.save(graph, path)
        with pytest.raises(WeightsError, match=complaint) as raised:
            load_exported(path)
        assert str(raised.value).isprintable()
    onnx.helper.set_model_props(graph, {METADATA_KEY: METADATA.to_json()})
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1000
    onnx.save(graph, path)
    with pytest.raises(WeightsError, match="does not take images of 40 pixels"):
        load_exported(path)


def test_what_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "fuse", lambda _, target: fuse(network(seed=2), target=target))
    old = {"net.xml": "the old graph", "net.bin": "its weights", "net.xml.parity.json": "{}"}
    for name, content in old.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ExportError, match=r"net\.xml was not written: .* within 0\.0001") as raised:
        export(network(), tmp_path / "net.xml", metadata=METADATA)
    assert str(raised.value).isprintable()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == old


def test_what_takes_no_other_size_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = EngineRuntime.run

    def stubborn(runtime: EngineRuntime, batch: torch.Tensor) -> torch.Tensor:
        if runtime.name.startswith("OpenVINO"):
            assert batch.shape[-1] % 2 == 0, "Guard failed:\nimages.size()[3] % 2 == 0"
        return run(runtime, batch)

    monkeypatch.setattr(EngineRuntime, "run", stubborn)
    with pytest.raises(ExportError, match="not take images of 73 pixels") as raised:
        export(network(), tmp_path / "net.xml", metadata=METADATA, dynamic_size=True)
    assert str(raised.value).isprintable()
    assert list(tmp_path.iterdir()) == []
    export(network(), tmp_path / "net.xml", metadata=METADATA)


def test_a_converter_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object, path: Path, __: str) -> None:
        path.write_text("half of it")
        raise KeyboardInterrupt

    monkeypatch.setitem(exporting._WRITERS, "openvino", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(network(), tmp_path / "net.xml", metadata=METADATA)
    assert list(tmp_path.iterdir()) == []


def report(absolute: float, agreement: Agreement | None = None) -> ExportReport:
    """Of three batches, of which the second differs by `absolute`."""
    differences = tuple(
        Difference(batch_size=1, image_size=32, absolute=most, relative=0.0, same_labels=1.0)
        for most in (0.0, absolute, 0.0)
    )
    return ExportReport(
        path=Path("net.onnx"),
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
    assert f"got {absolute:.2g}" in str(exporting._failure(report(absolute)))


@pytest.mark.parametrize(("same_labels", "passed"), [(90.0, True), (89.9, False)])
def test_labels_decide_about_eight_bits(same_labels: float, passed: bool) -> None:
    agreement = Agreement(n=1000, same_labels=same_labels, top1=None, reference_top1=None)
    assert report(0.3, agreement).passed == passed
    assert f"got {same_labels:.2f} %" in str(exporting._failure(report(0.3, agreement)))


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        ("net.pth", {}, r"must end in one of \.onnx, \.xml, \.pt2, got .*net\.pth"),
        ("net.onnx", {"format": "tflite"}, "format must be one of .*, got 'tflite'"),
        ("net.onnx", {"format": "openvino"}, r"format openvino must end in \.xml, got"),
        ("net.onnx", {"precision": "fp8"}, "precision must be one of fp32, fp16, int8, got 'fp8'"),
        ("net.pt2", {"precision": "int8"}, "torch_export must be fp32 or fp16, got int8"),
        ("net.xml", {"precision": "int8"}, "int8 needs images to calibrate on, got none"),
        ("no/folder/net.xml", {}, "cannot write .*net.xml: No such file or directory"),
        ("folder.xml", {}, "an exported network is a file, got .*, a folder"),
        ("net.xml", {"calibration": "nowhere"}, "data must be a folder"),
        ("net.pt2", {"dynamic_size": True, "metadata": TINY}, "more than 32 pixels, got 32"),
    ],
)
def test_arguments_that_do_not_go_together_are_one_line(
    name: str, arguments: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.xml").mkdir()
    with pytest.raises(InputError, match=complaint) as raised:
        export(network(), tmp_path / name, **{"metadata": METADATA} | arguments)
    assert str(raised.value).isprintable()


def test_somebody_elses_weights_are_not_replaced(tmp_path: Path) -> None:
    """A network in OpenVINO is two files, of which a person names one."""
    other = tmp_path / "net.bin"
    other.write_bytes(b"other")
    with pytest.raises(InputError, match=r"weights of net\.xml would replace .*net\.bin"):
        export(network(), tmp_path / "net.xml", metadata=METADATA)
    assert other.read_bytes() == b"other"


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda _: None)
    for name, arguments, extra in (
        ("net.onnx", {}, "onnx"),
        ("net.xml", {}, "openvino"),
    ):
        with pytest.raises(InputError, match=rf"pip install 'splitattn\[{extra}\]'"):
            export(network(), tmp_path / name, metadata=METADATA, **arguments)
    (tmp_path / "net.onnx").touch()
    with pytest.raises(InputError, match=r"needs onnxruntime, .*'splitattn\[onnx\]'"):
        load_exported(tmp_path / "net.onnx")


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_image_folder(tmp_path_factory.mktemp("data"), train=4, val=4))


def test_int8_in_openvino_keeps_labels_and_says_so(colors: str, tmp_path: Path) -> None:
    metadata = replace(METADATA, classes=COLORS)
    model = knowing(colors)
    path = tmp_path / "net.xml"
    report = export(model, path, metadata=metadata, precision="int8", calibration=colors)
    assert report.agreement == Agreement(n=12, same_labels=100, top1=100, reference_top1=100)
    assert report.passed
    kinds = [operation.get_type_name() for operation in ov.Core().read_model(path).get_ops()]
    assert kinds.count("FakeQuantize") > 20
    assert path.with_suffix(".bin").stat().st_size < 0.5 * 4 * sum(
        parameter.numel() for parameter in model.parameters()
    )
    stored = json.loads((tmp_path / "net.xml.parity.json").read_text("utf-8"))
    assert stored["agreement"]["top1"] == 100
    red = next(Path(colors).glob("val/red/*"))
    assert Classifier(weights=path).predict(red, topk=1)[0].label == "red"


def knowing(data: str) -> ResNeSt:
    """A network that knows the colors apart: its classifier looks for the nearest class's mean."""
    images = calibration_images(data)
    pixels = torch.stack([preprocess(decode(path), PREPROCESSING) for path in images.images])
    model = ResNeSt(small(), num_classes=0).eval()
    model.load_state_dict(
        {k: v for k, v in network().state_dict().items() if not k.startswith("fc.")}
    )
    with torch.no_grad():
        features = model(normalize(pixels, PREPROCESSING))
        labels = torch.tensor(images.labels)
        centers = torch.stack([features[labels == label].mean(0) for label in range(3)])
        direction = centers - centers.mean(0)
        model.fc = torch.nn.Linear(features.shape[1], 3)
        model.fc.weight.copy_(direction * (20 / direction.square().sum(1).mean()))
        model.fc.bias.copy_(-(model.fc.weight * (centers + centers.mean(0)) / 2).sum(1))
    model.num_classes = 3
    return model


@pytest.mark.parametrize(("radix", "cardinality"), [(1, 2), (2, 1), (4, 1)])
def test_int8_in_onnx_leaves_attention_alone_in_floats(radix: int, cardinality: int) -> None:
    model = network(radix, cardinality)
    graph = onnx_runtime.convert(Exportable(fuse(model, target="onnxruntime")), size=40)
    before = graph.SerializeToString()
    suited = for_eight_bits(graph)
    assert graph.SerializeToString() == before
    attention = find_parts(_onnx_nodes(suited))["attention"]
    quantized = quantized_onnx(graph, list(photographs()), PREPROCESSING)
    kinds = {output: node.op_type for node in quantized.graph.node for output in node.output}
    dense = [
        node for node in quantized.graph.node if node.name in attention and node.op_type == "Conv"
    ]
    assert len(dense) == 4 * cardinality * (1 + max(radix - 1, 1))
    for node in dense:
        assert node.input[1] not in kinds, "weights in eight bits would be dequantized"
    for node in quantized.graph.node:
        if "quantize" not in node.op_type.lower() and node.name not in attention:
            # What eight bits calculate reads bytes, and nothing but bytes.
            read = {kinds[name] for name in node.input if name in kinds}
            assert read == {"DequantizeLinear"}, node.name
            assert node.op_type not in ("ReduceMean", "Sub"), "it has no eight bits"
    expected = EngineRuntime(plain_engine(model), PREPROCESSING).run(photographs())
    got = EngineRuntime(OnnxEngine(quantized.SerializeToString()), PREPROCESSING).run(photographs())
    assert 1e-4 < (got - expected).abs().max() < 0.15


@pytest.mark.parametrize(
    ("radix", "form", "any_size"),
    [(2, "branches", False), (2, "branches", True), (2, "grouped", False), (4, "branches", False)],
)
def test_operations_for_eight_bits_compute_the_same(radix: int, form: Form, any_size: bool) -> None:
    fused = Exportable(fuse(network(radix, layers=(2, 1, 1, 1)), form=form))
    graph = onnx_runtime.convert(fused, size=40, dynamic_size=any_size)
    suited = for_eight_bits(graph)
    given, left = (Counter(node.op_type for node in each.graph.node) for each in (graph, suited))
    # Shortcuts from maps of odd sides, or of unknown ones, have windows that stick out.
    assert given["AveragePool"] >= 6
    assert left["AveragePool"] == (3 if any_size else 2)
    assert left["GlobalAveragePool"] == given["ReduceMean"]
    assert not left["ReduceMean"]
    if radix == 2:
        assert (given["Mul"], left["Mul"]) == (5, 10)
    for images in (photographs(), photographs()[:1, :, 1:, 5:] if any_size else photographs()[:1]):
        inputs = normalize(images, PREPROCESSING)
        expected, got = (OnnxEngine(each.SerializeToString())(inputs) for each in (graph, suited))
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_onnx_networks_without_float_parts_are_left_to_onnx_runtime() -> None:
    graph = onnx_runtime.convert(Exportable(fuse(network(), target="onnxruntime")), size=40)
    quantized = quantized_onnx(graph, list(photographs()), PREPROCESSING, float_parts=())
    assert "ReduceMean" in {node.op_type for node in quantized.graph.node}


@pytest.mark.parametrize(("radix", "cardinality"), [(2, 1), (4, 2)])
def test_int8_in_openvino_rounds_splits_once_and_attention_never(
    radix: int, cardinality: int
) -> None:
    model = network(radix, cardinality, layers=(2, 1, 1, 1))
    graph = convert(Exportable(fuse(model, target="openvino")), size=40)
    parts = find_parts(_openvino_nodes(graph))
    quantized = quantized_openvino(graph, list(photographs()), PREPROCESSING)
    operations = {each.get_friendly_name(): each for each in quantized.get_ops()}
    splits = [operations[name].input_value(0).get_node() for name in parts["pools"]]
    assert [split.get_type_name() for split in splits] == ["FakeQuantize"] * (
        5 * radix * cardinality
    )
    for split in splits:
        (reader,) = split.input_value(0).get_target_inputs()
        assert reader.get_node() is split, "nothing must read a split as it was before"
    for name in parts["attention"] | parts["blend"]:
        for value in operations[name].input_values():
            maker = value.get_node()
            assert maker.get_type_name() != "FakeQuantize" or maker in splits, name
    sides = {10: "floor", 5: "ceil_torch", 3: "ceil_torch"}
    assert shortcut_averages(quantized) == sides
    assert shortcut_averages(graph) == dict.fromkeys(sides, "ceil_torch"), "it stays as it is"
    expected = EngineRuntime(plain_engine(model), PREPROCESSING).run(photographs())
    got = EngineRuntime(OpenVinoEngine(quantized), PREPROCESSING).run(photographs())
    assert 1e-4 < (got - expected).abs().max() < 0.15


def test_openvino_networks_without_float_parts_are_left_to_nncf() -> None:
    graph = convert(Exportable(fuse(network(), target="openvino")), size=40)
    quantized = quantized_openvino(graph, list(photographs()), PREPROCESSING, float_parts=())
    assert set(shortcut_averages(quantized).values()) == {"ceil_torch"}


def shortcut_averages(graph: ov.Model) -> dict[int, str]:
    """How they round, by the side of the maps that they take."""
    averages = [each for each in graph.get_ops() if each.get_type_name() == "AvgPool"]
    return {
        each.input_value(0).get_partial_shape()[2].get_length(): each.get_attributes()[
            "rounding_type"
        ]
        for each in averages
        if each.get_attributes()["kernel"] == [2, 2]
    }


@pytest.mark.parametrize(
    ("side", "dynamic", "padding", "rounding"),
    [
        (40, False, 0, "floor"),
        (39, False, 0, "ceil"),
        (40, True, 0, "ceil"),
        (40, False, 1, "ceil"),
    ],
)
def test_averages_round_down_where_up_is_the_same(
    side: int, dynamic: bool, padding: int, rounding: str
) -> None:
    average = torch.nn.AvgPool2d(2, ceil_mode=True, padding=padding, count_include_pad=False)
    graph = convert(Exportable(average), size=side, dynamic_size=dynamic)
    floor_averages(graph)
    (kept,) = (each for each in graph.get_ops() if each.get_type_name() == "AvgPool")
    assert kept.get_attributes()["rounding_type"].startswith(rounding)
    maps = photographs()[:, :, :side, :side].float()
    assert torch.allclose(OpenVinoEngine(graph)(maps), average(maps), atol=1e-3)


@pytest.mark.parametrize(("radix", "cardinality"), [(1, 1), (4, 2)])
def test_the_parts_of_a_graph_are_found_whatever_the_radix(radix: int, cardinality: int) -> None:
    graph = convert(Exportable(fuse(network(radix, cardinality), target="openvino")), size=40)
    kinds = {
        operation.get_friendly_name(): operation.get_type_name()
        for operation in graph.get_ordered_ops()
    }
    parts = {
        part: [kinds[name] for name in names]
        for part, names in find_parts(_openvino_nodes(graph)).items()
    }
    blocks = 4
    dense_layers = blocks * cardinality * (1 + max(radix - 1, 1))
    assert parts["attention"].count("Convolution") == dense_layers
    assert parts["pools"] == ["ReduceMean"] * blocks * cardinality * radix
    assert parts["blend"].count("Multiply") == blocks * cardinality * radix
    assert parts["blend"].count("Add") == blocks * cardinality * (radix - 1)
    assert parts["first"] == ["Convolution"]
    assert parts["last"] == ["MatMul"]
