"""Exported networks, damaged in ways that leave them readable as ONNX or XML.

Flipped bits hardly ever get past a parser. This damage replaces operators, attributes, shapes,
types and connections, as an attacker would.
"""

import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from splitattn.architectures import Architecture
from splitattn.engines.engine import FileSettings
from splitattn.engines.table import find_engine
from splitattn.nn.resnest import ResNeSt
from splitattn.opening import TrainedNetwork, open_exported
from tests.fuzz.dense_graphs import DENSE, METADATA, beside, dense_seed
from tests.nn.networks import randomize_norms

# An OpenVINO network is two files. As one input, the second is appended to the first.
_END = b"</net>\n"
_WHOLE = (
    -1,
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    64,
    1_000_000,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    -(2**63),
)
_WORDS = (
    *map(str, _WHOLE),
    *("", "nan", "1e400", "1,1,1,1", "-1,-1", "2, 2", "true", "false", "same_upper", "ceil", "?"),
    *("f16", "i64", "boolean", "string", "u1", "nf4", "undefined", "dynamic", "x" * 5_000, "255"),
)
_ONNX_OPERATORS = (
    *("Conv", "Relu", "Add", "Mul", "Sub", "Div", "Sum", "Max", "Exp", "Neg", "Sigmoid", "Concat"),
    *("Split", "GlobalAveragePool", "AveragePool", "MaxPool", "Flatten", "Gemm", "Cast", "Loop"),
    *("QuantizeLinear", "DequantizeLinear", "Identity", "Reshape", "Resize", "Tile", "Expand"),
    *("InstanceNormalization", "CumSum", "Transpose", "Sqrt", "NonMaxSuppression"),
    *(
        "Range",
        "LSTM",
        "Einsum",
        "If",
        "Scan",
        "MaxUnpool",
        "ConvTranspose",
        "Unique",
        "QLinearConv",
    ),
)
_OPEN_VINO_OPERATIONS = (
    *("Convolution", "GroupConvolution", "ReLU", "Add", "Multiply", "Subtract", "Divide", "Exp"),
    *("Sigmoid", "Maximum", "Negative", "Concat", "ReduceMean", "Reshape", "MatMul", "Convert"),
    *("AvgPool", "MaxPool", "FakeQuantize", "Const", "Result", "Parameter", "Loop", "If", "Range"),
    *("TensorIterator", "ReadValue", "Assign", "Broadcast", "Tile", "OneHot", "NonMaxSuppression"),
    *("Interpolate", "Einsum", "LSTMSequence", "StridedSlice", "Gather", "TopK", "Eye", "Split"),
    *("MVN", "CumSum", "Transpose", "Sqrt", "VariadicSplit"),
)


@cache
def seed(engine: str, radix: int, precision: str, dynamic: bool) -> bytes:
    """The exported file or files of a tiny network, as one input."""
    row = find_engine(engine)
    pixels = list(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8))
    shape = Architecture(layers=(1, 1, 1, 1), radix=radix, planes=4, stem_width=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNeSt(shape, num_classes=3).eval()
        randomize_norms(model)
    network = TrainedNetwork(
        architecture=shape,
        tensors={key: value.numpy() for key, value in model.state_dict().items()},
        metadata=METADATA,
        weights="none",
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"net{row.suffix}"
        settings = FileSettings(
            metadata=METADATA, precision=precision, dynamic_size=dynamic, calibration=pixels
        )
        row.load_file_module().write(network.fold(row.form), path, settings)
        return b"".join(file.read_bytes() for file in (path, *beside(path)))


_SEEDS = ((2, "fp32", True), (4, "fp16", False), (2, "int8", False))


def onnx_seeds() -> list[bytes]:
    return _all_seeds("onnxruntime")


def open_vino_seeds() -> list[bytes]:
    return _all_seeds("openvino")


def _all_seeds(engine: str) -> list[bytes]:
    classifiers = (seed(engine, *kind) for kind in _SEEDS)
    return [*classifiers, *(dense_seed(engine, task) for task in DENSE)]


def read_onnx(content: bytes, folder: Path) -> None:
    path = folder / "net.onnx"
    path.write_bytes(content)
    open_exported(find_engine("onnxruntime"), path)


def read_open_vino(content: bytes, folder: Path) -> None:
    path = folder / "net.xml"
    text, end, weights = content.partition(_END)
    path.write_bytes(text + end)
    path.with_suffix(".bin").write_bytes(weights)
    open_exported(find_engine("openvino"), path)


def damaged_onnx(seeds: Sequence[bytes], dice: random.Random) -> bytes:
    """One of `seeds` with one to three parts replaced."""
    model = onnx.ModelProto()
    model.ParseFromString(dice.choice(seeds))
    for _ in range(dice.choice((1, 1, 2, 3))):
        dice.choice(_ONNX_DAMAGES)(model, dice)
    return model.SerializeToString()


def _attribute(model: onnx.ModelProto, dice: random.Random) -> None:
    node = dice.choice([node for node in model.graph.node if node.attribute])
    each = dice.choice(node.attribute)
    small = dice.random() < 0.6
    value = dice.choice((0, 1, 2, 3, 4)) if small else dice.choice(_WHOLE)
    if each.type == onnx.AttributeProto.INT:
        each.i = value
    elif dice.random() < 0.2:
        del each.ints[dice.randint(0, len(each.ints)) :]
    elif dice.random() < 0.2:
        each.ints.append(value)
    elif each.ints:
        each.ints[dice.randrange(len(each.ints))] = value


def _no_attribute(model: onnx.ModelProto, dice: random.Random) -> None:
    node = dice.choice([node for node in model.graph.node if node.attribute])
    del node.attribute[dice.randrange(len(node.attribute))]


def _operator(model: onnx.ModelProto, dice: random.Random) -> None:
    node = dice.choice(model.graph.node)
    node.op_type = dice.choice(_ONNX_OPERATORS)
    if dice.random() < 0.5:
        del node.attribute[:]


def _input(model: onnx.ModelProto, dice: random.Random) -> None:
    names = [name for node in model.graph.node for name in node.output]
    names += [tensor.name for tensor in model.graph.initializer]
    node = dice.choice(model.graph.node)
    if dice.random() < 0.2:
        node.input.append(dice.choice(names))
    elif dice.random() < 0.2:
        del node.input[-1:]
    elif node.input:
        node.input[dice.randrange(len(node.input))] = dice.choice((*names, ""))


def _constant(model: onnx.ModelProto, dice: random.Random) -> None:
    tensor = dice.choice(model.graph.initializer)
    match dice.randrange(4):
        case 0 if tensor.dims:
            tensor.dims[dice.randrange(len(tensor.dims))] = dice.choice(_WHOLE)
        case 1:
            tensor.data_type = dice.randrange(24)
        case 2 if len(tensor.dims) > 1:
            dims = [*tensor.dims]
            dice.shuffle(dims)
            tensor.dims[:] = dims
        case _ if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).copy()
            values.reshape(-1)[:1] = dice.choice((np.nan, np.inf, 0, -1, 1e38))
            tensor.raw_data = values.tobytes()
        case _:
            tensor.raw_data = tensor.raw_data[: dice.randrange(len(tensor.raw_data) + 1)]


def _node(model: onnx.ModelProto, dice: random.Random) -> None:
    where = dice.randrange(len(model.graph.node))
    if dice.random() < 0.5:
        del model.graph.node[where]
    else:
        copy = model.graph.node.add()
        copy.CopyFrom(model.graph.node[where])
        if dice.random() < 0.7:
            copy.output[0] += ".copy"


def _frame(model: onnx.ModelProto, dice: random.Random) -> None:
    shape = model.graph.input[0].type.tensor_type.shape.dim
    match dice.randrange(5):
        case 0:
            dice.choice(shape).dim_value = dice.choice((0, 1, 2, 32, 33, 64, 100_000, 2**40, -1))
        case 1:
            model.opset_import[0].version = dice.choice((1, 5, 11, 12, 13, 19, 20, 21, 25, 10**6))
        case 2:
            model.graph.output[0].name = dice.choice(model.graph.node).output[0]
        case 3:
            model.ir_version = dice.choice((0, 1, 3, 8, 10, 13, 10**9))
        case _:
            model.graph.input[0].type.tensor_type.elem_type = dice.randrange(24)


_ONNX_DAMAGES: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    *(_attribute, _attribute, _no_attribute, _operator, _input, _input, _constant, _constant),
    *(_node, _frame),
)


def damaged_open_vino(seeds: Sequence[bytes], dice: random.Random) -> bytes:
    """One of `seeds` with one to three values, connections or layers replaced."""
    content, end, weights = dice.choice(seeds).partition(_END)
    text = content.decode()
    for _ in range(dice.choice((1, 1, 2, 3))):
        pattern, values = dice.choice(_OPEN_VINO_DAMAGES)
        places = [match.span(1) for match in re.finditer(pattern, text)]
        if places:
            first, last = dice.choice(places)
            text = text[:first] + dice.choice(values or (text[first:last] * 2, "")) + text[last:]
    if dice.random() < 0.1:
        weights = weights[: dice.randrange(len(weights))]
    return text.encode() + end + weights


_OPEN_VINO_DAMAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r'<data[^>]*?="([^"]*)"', _WORDS),
    (r'(?:strides|dilations|pads_\w+|kernel)="([^"]*)"', ("0, 0", "1, 1", "2, 2", "3, 3", "1, 7")),
    (r' shape="([^"]*)"', ("1", "", "8, 8, 1, 1", "3", "2, 2, 2, 2", "1000000, 1000000")),
    (r' (?:offset|size)="([^"]*)"', ("0", "1", "4", "64", "-8", str(2**40), str(2**63))),
    (r"<dim>([^<]*)</dim>", _WORDS),
    (r'(?:from|to)-(?:layer|port)="([^"]*)"', tuple(map(str, (*range(60), 2**31)))),
    (r' type="([^"]*)" version', _OPEN_VINO_OPERATIONS),
    (r' version="(opset[^"]*)"', tuple(f"opset{number}" for number in (0, 1, 3, 8, 13, 16, 99))),
    (r' (?:name|id|precision|element_type|levels)="([^"]*)"', _WORDS),
    (r"(\t\t<layer .*?</layer>\n)", ()),
    (r"((?s:\t\t<layer .*?</layer>\n))", ()),
    (r"(\t\t<edge .*?/>\n)", ()),
    (r"((?s:<(?:data|input|output|rt_info)[ >].*?>))", ()),
)
