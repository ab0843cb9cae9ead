"""What is not ours in an exported file never reaches the engine."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper, numpy_helper

from splitattn.engines.onnx_runtime import OnnxEngine
from splitattn.engines.open_vino import OpenVinoEngine
from splitattn.errors import WeightsError
from tests.fuzz.graphs import read_onnx, read_open_vino, seed

KIND = (2, "fp32", True)


class Started(BaseException):
    """An engine has been handed the file."""


@pytest.fixture(autouse=True)
def _engines_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise Started

    monkeypatch.setattr(OnnxEngine, "__init__", started)
    monkeypatch.setattr(OpenVinoEngine, "__init__", started)


def node(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(each for each in model.graph.node if each.op_type == kind)


def attribute(kind: str, name: str, value: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        each = next(each for each in node(model, kind).attribute if each.name == name)
        if each.type == onnx.AttributeProto.INTS:
            each.ints[0] = value
        else:
            each.i = value

    return change


def loop(model: onnx.ModelProto) -> None:
    relu = node(model, "Relu")
    relu.op_type = "Loop"
    relu.attribute.append(helper.make_attribute("body", helper.make_graph([], "b", [], [])))


def weights_twice(model: onnx.ModelProto) -> None:
    first, second = [each for each in model.graph.node if each.op_type == "Conv"][1:3]
    second.input[1] = first.input[1]


def cut(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b""


def huge(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 10**6


def outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def other_type(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[1]
    values = numpy_helper.to_array(tensor).astype("float64")
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (loop, "operator 'Loop'"),
        (weights_twice, "used twice"),
        (cut, "a constant"),
        (huge, "numbers, more than"),
        (outside, "it has data_location, external_data"),
        (other_type, "a constant of type 11"),
        (attribute("Conv", "strides", 0), "windows that no ResNeSt has"),
        (attribute("Conv", "pads", -1), "windows that no ResNeSt has"),
        (attribute("MaxPool", "pads", 2**62), "padding is as large"),
        (attribute("Conv", "group", 0), "weights do not fit"),
        (attribute("Gemm", "transB", 0), "odd dense layer"),
        (lambda model: model.opset_import.add(domain="com.microsoft", version=1), "several kinds"),
        (lambda model: model.graph.node.add(op_type="Relu"), "0 inputs"),
        (lambda model: node(model, "Add").input.append("images"), "3 inputs"),
        (lambda model: node(model, "Relu").attribute.add(name="alpha"), "attribute"),
    ],
)
def test_onnx_that_our_writer_does_not_write_is_refused(
    change: Callable[[onnx.ModelProto], None], reason: str, tmp_path: Path
) -> None:
    content = seed("onnxruntime", *KIND)
    with pytest.raises(Started):
        read_onnx(content, tmp_path)
    model = onnx.load_model_from_string(content)
    change(model)
    with pytest.raises(WeightsError, match=reason) as raised:
        read_onnx(model.SerializeToString(), tmp_path)
    assert "export it again" in str(raised.value)
    assert str(raised.value).isprintable()


def test_unknown_parts_of_onnx_are_refused(tmp_path: Path) -> None:
    """Another reader may know them."""
    with pytest.raises(WeightsError, match="unknown or repeated"):
        read_onnx(seed("onnxruntime", *KIND) + b"\xa2\x06\x03abc", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('type="ReLU"', 'type="Loop"', "operation 'Loop'"),
        ('strides="2, 2"', 'strides="0, 2"', "windows that no ResNeSt has"),
        ('pads_begin="1, 1"', 'pads_begin="-1, 1"', "windows that no ResNeSt has"),
        ('auto_pad="explicit"', 'auto_pad="same_upper"', "auto_pad 'same_upper'"),
        ('auto_broadcast="numpy"', 'auto_broadcast="none"', "auto_broadcast 'none'"),
        ('version="opset8"', 'version="opset1"', "another 'MaxPool'"),
        ('shape="?,3,?,?"', 'shape="1000000,3,?,?"', "numbers, more than"),
        ('shape="?,3,?,?"', 'shape="?,3,?"', "no batch of images"),
        ('offset="0"', 'offset="-8"', "beyond the end"),
        ('offset="0"', f'offset="{10**17}"', "beyond the end"),
        ('element_type="i64"', 'element_type="string"', "type 'string'"),
        ('from-port="0"', 'from-port="7"', "what comes later"),
        ('<layer id="1"', '<layer id="0"', "two layers of one number"),
        ("<layers>", "<!DOCTYPE a><layers>", "more than elements"),
        ("<dim>4</dim>", "<dim>5</dim>", "does not follow from its inputs"),
        ("<layers>", "<layers>" + "<a>" * 20 + "</a>" * 20, "elements in elements"),
    ],
)
def test_open_vino_that_our_writer_does_not_write_is_refused(
    old: str, new: str, reason: str, tmp_path: Path
) -> None:
    content = seed("openvino", *KIND)
    with pytest.raises(Started):
        read_open_vino(content, tmp_path)
    text, end, weights = content.partition(b"</net>\n")
    changed = text.replace(old.encode(), new.encode(), 1)
    assert changed != text
    with pytest.raises(WeightsError, match=reason) as raised:
        read_open_vino(changed + end + weights, tmp_path)
    assert str(raised.value).isprintable()
