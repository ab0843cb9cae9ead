"""Files with parts that our exports do not have are refused before an engine gets them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from splitattn.engines.onnx_runtime import OnnxEngine
from splitattn.engines.open_vino import OpenVinoEngine
from splitattn.errors import WeightsError
from splitattn.graph.onnx_writer import rename
from tests.fuzz.dense_graphs import dense_seed
from tests.fuzz.graphs import read_onnx, read_open_vino, seed

KIND = (2, "fp32", True)


class Started(BaseException):
    """Raised when an engine gets the file."""


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


def second_output(name: str) -> Callable[[onnx.ModelProto], None]:
    """A change that gives an early feature map out as the output `name`."""

    def change(model: onnx.ModelProto) -> None:
        conv, relu = node(model, "Conv"), node(model, "Relu")
        bias = next(each for each in model.graph.initializer if each.name == conv.input[2])
        rename(model.graph.node, relu.output[0], name)
        shape = ["batch", bias.dims[0], "height", "width"]
        model.graph.output.append(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        )

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (second_output("class_maps"), "class maps of"),
        (second_output("layer4"), "class_maps"),
        (loop, "operator 'Loop'"),
        (weights_twice, "more often than"),
        (cut, "a constant"),
        (huge, "numbers, more than"),
        (outside, "it has data_location, external_data"),
        (other_type, "a constant of type 11"),
        (attribute("Conv", "strides", 0), "windows that no ResNeSt has"),
        (attribute("Conv", "pads", -1), "windows that no ResNeSt has"),
        (attribute("MaxPool", "pads", 2**62), "padding is as large"),
        (attribute("Conv", "group", 0), "weights do not fit"),
        (attribute("Gemm", "transB", 0), "dense layer unlike ours"),
        (
            lambda model: model.opset_import.add(domain="com.microsoft", version=1),
            "several operator sets",
        ),
        (lambda model: model.graph.node.add(op_type="Relu"), "with 0 inputs"),
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
    """Readers other than ours may use them."""
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
        ('version="opset8"', 'version="opset1"', "another version of 'MaxPool'"),
        ('shape="?,3,?,?"', 'shape="1000000,3,?,?"', "numbers, more than"),
        ('shape="?,3,?,?"', 'shape="?,3,?"', "not a batch of images"),
        ('offset="0"', 'offset="-8"', "beyond the end"),
        ('offset="0"', f'offset="{10**17}"', "beyond the end"),
        ('element_type="i64"', 'element_type="string"', "type 'string'"),
        ('from-port="0"', 'from-port="7"', "reads a later output"),
        ('<layer id="1"', '<layer id="0"', "two layers with the same id"),
        ("<layers>", "<!DOCTYPE a><layers>", "comments, entities"),
        ("<dim>4</dim>", "<dim>5</dim>", "does not follow from its inputs"),
        ("<layers>", "<layers>" + "<a>" * 20 + "</a>" * 20, "nested too deeply"),
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


def text_attribute(model: onnx.ModelProto) -> None:
    each = next(each for each in node(model, "Resize").attribute if each.name == "mode")
    each.s = b"cubic"


def numbers(name: str, values: list[int]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.array(values), name))

    return change


def larger(model: onnx.ModelProto) -> None:
    tensor = next(each for each in model.graph.initializer if each.name == "doubled.scales")
    tensor.raw_data = np.array([1, 1, 2, 4000], np.float32).tobytes()


def six_times(model: onnx.ModelProto) -> None:
    convs = [each for each in model.graph.node if each.op_type == "Conv"]
    head = [each for each in convs if each.input[1] == "head.class_tower.0.weight"]
    assert len(head) == 5
    next(each for each in convs if each.input[1] == "pyramid.p6.weight").input[1] = head[0].input[1]


def one_output(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def shape_as_target(model: onnx.ModelProto) -> None:
    """Reshape to a shape computed from the image, which could be any shape for other images."""
    (shape,) = node(model, "Shape").output
    flat = next(each for each in model.graph.node if each.op_type == "Reshape")
    model.graph.node.insert(
        0, model.graph.node.pop([*model.graph.node].index(node(model, "Shape")))
    )
    flat.input[1] = shape


def selected_of_four(model: onnx.ModelProto) -> None:
    model.graph.output[2].type.tensor_type.shape.dim[1].dim_value = 4


def limit(name: str, value: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == name)
        tensor.raw_data = np.array([value], np.float32).tobytes()

    return change


def swapped_outputs(model: onnx.ModelProto) -> None:
    boxes, scores, _ = model.graph.output
    boxes.name, scores.name = "scores", "boxes"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (text_attribute, "a resize unlike ours"),
        (larger, "another factor than 2"),
        (six_times, "more often than"),
        (one_output, "other outputs than boxes, scores, selected"),
        (swapped_outputs, "no boxes of type 1"),
        (selected_of_four, "stated shape is wrong"),
        (shape_as_target, "a reshape to a computed shape"),
        (limit("decode.selected.least", -1), "a box selection with other limits"),
        (limit("decode.selected.iou", 1), "a box selection with other limits"),
        (numbers("decode.selected.most", [2**40]), "a box selection with other limits"),
        (numbers("decode.image.sides", [[[3, 2, 3, 1]]]), "other sides than height and width"),
        (lambda model: node(model, "NonMaxSuppression").input.pop(), "without limits"),
        (numbers("groups.32", [0, 48, -1, 0]), "into unequal parts"),
        (numbers("groups.32", [0, 32, -1, 7]), "a reshape that no detector has"),
        (numbers("decode.flat.4", [1, 4, -1]), "a reshape that no detector has"),
        (numbers("decode.flat.4", [0, 2, -1]), "shapes that do not fit each other"),
        (attribute("Transpose", "perm", 2), "a transpose that no detector has"),
        (attribute("CumSum", "exclusive", 0), "cumulative sums unlike ours"),
        (lambda model: node(model, "Sqrt").input.append("images"), "2 inputs"),
        (huge, "numbers, more than"),
    ],
)
def test_onnx_of_detectors_is_read_as_strictly(
    change: Callable[[onnx.ModelProto], None], reason: str, tmp_path: Path
) -> None:
    content = dense_seed("onnxruntime", "detection")
    with pytest.raises(Started):
        read_onnx(content, tmp_path)
    model = onnx.load_model_from_string(content)
    change(model)
    with pytest.raises(WeightsError, match=reason):
        read_onnx(model.SerializeToString(), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('mode="nearest"', 'mode="cubic"', "mode 'cubic'"),
        ('eps_mode="INSIDE_SQRT"', 'eps_mode="OUTSIDE_SQRT"', "eps_mode"),
        ('exclusive="true"', 'exclusive="false"', "exclusive 'false'"),
        ('type="Transpose"', 'type="TopK"', "operation 'TopK'"),
        ('box_encoding="corner"', 'box_encoding="center"', "box_encoding 'center'"),
        ('output_type="i64"', 'output_type="i32"', "output_type 'i32'"),
        ('version="opset11"', 'version="opset1"', "another version of 'Interpolate'"),
        ("short_side&quot;: 48", "short_side&quot;: 40000", "short_side of 40000"),
        (
            "48, &quot;long_side&quot;: 80",
            "8000, &quot;long_side&quot;: 8000",
            "numbers, more than",
        ),
        ("&quot;detection&quot;", "&quot;walking&quot;", "its task is 'walking'"),
    ],
)
def test_open_vino_of_detectors_is_read_as_strictly(
    old: str, new: str, reason: str, tmp_path: Path
) -> None:
    content = dense_seed("openvino", "detection")
    with pytest.raises(Started):
        read_open_vino(content, tmp_path)
    text, end, weights = content.partition(b"</net>\n")
    changed = text.replace(old.encode(), new.encode(), 1)
    assert changed != text
    with pytest.raises(WeightsError, match=reason):
        read_open_vino(changed + end + weights, tmp_path)
