"""Checks that an ONNX file holds only what our writer writes, float or quantized."""

import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
)

from splitattn.engines import structure
from splitattn.engines.engine import FileSettings
from splitattn.engines.structure import Products, Shape, StructureError, expect
from splitattn.errors import InputError
from splitattn.files import open_file
from splitattn.graph.onnx_model import OPSETS, Network, to_onnx
from splitattn.weights.metadata import METADATA_KEY, ModelMetadata

_MOST_FACTORS = 8  # as a region of an image has
# Attributes of a resize to twice the size, nearest or bilinear.
_DOUBLING: tuple[Mapping[str, bytes], ...] = (
    {
        "mode": b"nearest",
        "coordinate_transformation_mode": b"asymmetric",
        "nearest_mode": b"floor",
    },
    {"mode": b"linear", "coordinate_transformation_mode": b"half_pixel"},
)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_BYTES = (TensorProto.UINT8, TensorProto.INT8)
_SIZES = {
    TensorProto.FLOAT: 4,
    TensorProto.FLOAT16: 2,
    TensorProto.UINT8: 1,
    TensorProto.INT8: 1,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
}


@dataclass(frozen=True, kw_only=True)
class _Value:
    """A tensor: its type, its shape, and the values of a small constant.

    Attributes:
        numbers: values of an int64 constant.
        factors: values of a float constant of up to eight numbers.
    """

    kind: int
    shape: Shape
    constant: bool = False
    numbers: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()


Attributes = Mapping[str, Any]
_FIELDS = {AttributeProto.INT: "i", AttributeProto.INTS: "ints", AttributeProto.STRING: "s"}


def check_onnx(path: Path) -> ModelMetadata:
    """Check that an ONNX file holds a network of ours, and return its metadata.

    Raises:
        WeightsError: the file has something that our writer does not write.
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        content = file.read()
    metadata: ModelMetadata = structure.checked(path, lambda: _check(content))
    return metadata


def check_size(network: Network, settings: FileSettings) -> None:
    """Raise `InputError` if a file of `network` would be refused as too large when it is opened.

    It writes the graph without weights, so it takes little time.
    """
    metadata = settings.metadata
    graph = to_onnx(network, size=settings.size, batch=settings.batch, external={}).graph
    values = _constants(tensor for tensor in graph.initializer if not tensor.external_data)
    for tensor in graph.initializer:
        if tensor.external_data:
            shape = tuple(tensor.dims)
            values[tensor.name] = _Value(kind=tensor.data_type, shape=shape, constant=True)
    try:
        _compute(graph, values, metadata)
    except StructureError as error:
        head, size = metadata.head, metadata.preprocessing.size
        short, long = head.get("short_side", size), head.get("long_side", size)
        batch = settings.batch or structure.TRIED_BATCH
        fix = "take a smaller --batch-size" if settings.batch else "train on smaller images"
        raise InputError(
            f"a file must be small enough to be opened again, and with {batch} images of {short} x "
            f"{long} pixels it has {error}: {fix}"
        ) from error


def _check(content: bytes) -> ModelMetadata:
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError
        raise StructureError("it is not an ONNX file") from error
    model.DiscardUnknownFields()
    # Other readers may understand unknown or repeated fields in another way.
    expect(model.ByteSize() == len(content), "it has unknown or repeated fields")
    texts = {entry.key: entry.value for entry in model.metadata_props}
    metadata = structure.read_metadata(texts.get(METADATA_KEY))
    _only(model, "ir_version", "opset_import", "producer_name", "producer_version", "graph")
    opsets = [(entry.domain, entry.version) for entry in model.opset_import]
    expect(len(opsets) == 1, "several operator sets")
    expect(opsets[0][0] == "" and opsets[0][1] in OPSETS, f"operator set {opsets[0]}")
    expect(3 <= model.ir_version <= 10, f"IR version {model.ir_version}")
    graph = model.graph
    _only(graph, "node", "name", "initializer", "input", "output")
    expect(len(graph.input) == 1, "several inputs")
    names = structure.output_names(metadata, len(graph.output))
    expect(len(graph.output) == len(names), f"other outputs than {', '.join(names)}")
    expect(len(graph.node) <= structure.MOST_NODES, "too many nodes")
    values = _constants(graph.initializer)
    batch, images = _compute(graph, values, metadata)
    shapes = [
        _output(stated, name, batch, values)
        for stated, name in zip(graph.output, names, strict=True)
    ]
    structure.check_outputs(shapes, images, metadata)
    return metadata


def _compute(
    graph: GraphProto, values: dict[str, _Value], metadata: ModelMetadata
) -> tuple[int | None, Shape]:
    """Add the input and the outputs of all nodes to `values`.

    Returns:
        The only batch size that the graph takes, or None for any; and the shape of the images.
    """
    batch, channels, *sides = _lengths(graph.input[0], "images", rank=4)
    images = structure.image_shape(batch, channels, sides, metadata)
    expect("images" not in values, "two tensors of the same name")
    values["images"] = _Value(kind=TensorProto.FLOAT, shape=images)
    _run(graph, values, metadata.task)
    return batch, images


def _only(message: Any, *fields: str) -> None:
    known = {*fields, "metadata_props"} if isinstance(message, ModelProto) else {*fields}
    strange = sorted({field.name for field, _ in message.ListFields()} - known)
    expect(not strange, f"it has {', '.join(strange)}")


def _output(
    value: ValueInfoProto, name: str, batch: int | None, values: Mapping[str, _Value]
) -> Shape:
    """The shape of an output, which must agree with the shape that the file states."""
    kind = TensorProto.INT64 if name == "selected" else TensorProto.FLOAT
    found = values.get(name)
    expect(found and found.kind == kind, f"no {name}")
    assert found is not None
    stated = _lengths(value, name, rank=len(found.shape), kind=kind)
    if name == "selected":
        expect(stated == [None, 3], "an output whose stated shape is wrong")
        return found.shape
    # Only the number of classes, or of sides of a box, must be stated.
    fixed = 1 if len(stated) == 4 else len(stated) - 1
    lengths = (batch, *found.shape[1:])
    expect(
        all(
            a == b or (a is None and i != fixed)
            for i, (a, b) in enumerate(zip(stated, lengths, strict=True))
        ),
        "an output whose stated shape is wrong",
    )
    return found.shape


def _lengths(
    value: ValueInfoProto, name: str, *, rank: int, kind: int = TensorProto.FLOAT
) -> list[int | None]:
    """The stated shape of a tensor; None for a length that may vary."""
    tensor = value.type.tensor_type
    expect(value.name == name and tensor.elem_type == kind, f"no {name} of type {kind}")
    lengths: list[int | None] = []
    for axis in tensor.shape.dim:
        fixed = axis.WhichOneof("value") == "dim_value"
        expect(not fixed or axis.dim_value >= 1, f"{name} of {axis.dim_value}")
        lengths.append(axis.dim_value if fixed else None)
    expect(len(lengths) == rank, f"{name} of {len(lengths)} dimensions")
    return lengths


def _constants(tensors: Iterable[TensorProto]) -> dict[str, _Value]:
    values: dict[str, _Value] = {}
    for tensor in tensors:
        _only(tensor, "name", "data_type", "dims", "raw_data")
        name, kind, shape = tensor.name, tensor.data_type, tuple(tensor.dims)
        expect(name and name not in values, "two tensors of the same name")
        expect(kind in _SIZES, f"a constant of type {kind}")
        expect(len(shape) <= 4 and all(length >= 1 for length in shape), f"a constant of {shape}")
        data = tensor.raw_data
        expect(math.prod(shape) * _SIZES[kind] == len(data), "a constant cut short")
        numbers: tuple[int, ...] = ()
        if kind == TensorProto.INT64:
            steps = range(0, len(data), 8)
            numbers = tuple(int.from_bytes(data[i : i + 8], "little", signed=True) for i in steps)
        factors: tuple[float, ...] = ()
        if kind == TensorProto.FLOAT and len(data) <= _MOST_FACTORS * 4:
            factors = struct.unpack(f"<{len(data) // 4}f", data)
        values[name] = _Value(
            kind=kind, shape=shape, constant=True, numbers=numbers, factors=factors
        )
    return values


def _run(graph: GraphProto, values: dict[str, _Value], task: str) -> None:
    """Add the outputs of all nodes to `values`."""
    products = Products(task)
    most = structure.MOST_USES[task]
    read: Counter[str] = Counter()
    for node in graph.node:
        _only(node, "input", "output", "name", "op_type", "attribute")
        kind = node.op_type
        expect(kind in _OPERATORS, f"operator {kind!r:.40}")
        expect(all(name in values for name in node.input), f"{kind} that reads a later output")
        inputs = [values[name] for name in node.input]
        # Bounds the computation by the size of the file.
        large = {
            n for n, x in zip(node.input, inputs, strict=True) if x.constant and len(x.shape) > 1
        }
        read.update(large)
        expect(
            all(read[name] <= most for name in large),
            "weights that are used more often than in any ResNeSt",
        )
        outputs = _OPERATORS[kind](inputs, _attributes(node), products)
        expect(len(outputs) == len(node.output), f"{kind} with {len(node.output)} outputs")
        for name, value in zip(node.output, outputs, strict=True):
            expect(name and name not in values, "two tensors of the same name")
            values[name] = value


def _attributes(node: NodeProto) -> Attributes:
    found: dict[str, Any] = {}
    for each in node.attribute:
        field = _FIELDS.get(each.type)
        expect(field and each.name not in found, f"attribute {each.name!r:.40} of {node.op_type}")
        _only(each, "name", "type", str(field))
        value = getattr(each, str(field))
        found[each.name] = tuple(value) if field == "ints" else value
    return found


def _take(attributes: Attributes, needed: Sequence[str] = (), optional: Sequence[str] = ()) -> None:
    names = {*attributes}
    expect(
        names >= {*needed} and names <= {*needed, *optional},
        f"attributes {', '.join(sorted(names)) or 'none'}"[:60],
    )


def _windows(attributes: Attributes) -> dict[str, Any]:
    pads, strides = attributes["pads"], attributes["strides"]
    expect(
        isinstance(pads, tuple) and len(pads) == 4 and isinstance(strides, tuple),
        "windows unlike ours",
    )
    return {"strides": strides, "before": pads[:2], "after": pads[2:]}


def _floats(inputs: Sequence[_Value], count: range) -> int:
    """The type of `inputs`, which must be floats of one type; `count` limits their number."""
    kinds = {value.kind for value in inputs}
    expect(len(inputs) in count, f"an operator with {len(inputs)} inputs")
    expect(len(kinds) == 1 and kinds <= {*_FLOATS}, "inputs of other types")
    return inputs[0].kind


def _conv(inputs: Sequence[_Value], attributes: Attributes, products: Products) -> list[_Value]:
    kind = _floats(inputs, range(2, 4))
    _take(attributes, ("kernel_shape", "strides", "pads", "group"), ("dilations",))
    x, weight, *bias = inputs
    expect(weight.constant and all(b.constant for b in bias), "weights that are not constant")
    expect(attributes["kernel_shape"] == weight.shape[2:], "weights of another size")
    expect(all(b.shape == weight.shape[:1] for b in bias), "a bias of another size")
    shape = structure.convolution(
        x.shape,
        weight.shape,
        products,
        dilations=attributes.get("dilations", (1, 1)),
        groups=attributes["group"],
        **_windows(attributes),
    )
    return [_Value(kind=kind, shape=shape)]


def _max_pool(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    kind = _floats(inputs, range(1, 2))
    _take(attributes, ("kernel_shape", "strides", "pads"))
    shape = structure.pooling(inputs[0].shape, attributes["kernel_shape"], **_windows(attributes))
    return [_Value(kind=kind, shape=shape)]


def _average_pool(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    kind = _floats(inputs, range(1, 2))
    _take(attributes, ("kernel_shape", "strides", "pads"), ("ceil_mode", "count_include_pad"))
    for name in ("ceil_mode", "count_include_pad"):
        expect(attributes.get(name, 0) in (0, 1), f"{name} {attributes.get(name)!r:.40}")
    shape = structure.pooling(
        inputs[0].shape,
        attributes["kernel_shape"],
        ceil=attributes.get("ceil_mode") == 1,
        **_windows(attributes),
    )
    return [_Value(kind=kind, shape=shape)]


def _mean(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    kind = _floats(inputs, range(1, 2))
    _take(attributes)
    return [_Value(kind=kind, shape=structure.mean(inputs[0].shape))]


def _flatten(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    kind = _floats(inputs, range(1, 2))
    _take(attributes)
    shape = inputs[0].shape
    expect(len(shape) == 4 and shape[2:] == (1, 1), "a flatten of a map larger than 1 x 1")
    return [_Value(kind=kind, shape=shape[:2])]


def _gemm(inputs: Sequence[_Value], attributes: Attributes, products: Products) -> list[_Value]:
    kind = _floats(inputs, range(3, 4))
    _take(attributes, ("transB",))
    x, weight, bias = inputs
    expect(
        attributes["transB"] == 1 and weight.constant and bias.constant, "a dense layer unlike ours"
    )
    expect(bias.shape == weight.shape[:1], "a bias of another size")
    return [_Value(kind=kind, shape=structure.dense(x.shape, weight.shape, products))]


def _like(least: int, most: int) -> "Operator":
    """An elementwise operator of `least` to `most` inputs."""

    def operator(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
        kind = _floats(inputs, range(least, most + 1))
        _take(attributes)
        return [_Value(kind=kind, shape=structure.together(*(x.shape for x in inputs)))]

    return operator


def _concat(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    kind = _floats(inputs, range(2, 65))
    _take(attributes, ("axis",))
    shapes = (x.shape for x in inputs)
    return [_Value(kind=kind, shape=structure.concatenated(*shapes, axis=attributes["axis"]))]


def _reshape(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    kind = _floats(inputs[:1], range(1, 2))
    _take(attributes)
    expect(len(inputs) == 2 and inputs[1].numbers, "a reshape to a computed shape")
    return [_Value(kind=kind, shape=structure.reshaped(inputs[0].shape, inputs[1].numbers))]


def _instance_norm(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    kind = _floats(inputs, range(3, 4))
    _take(attributes)
    x, *weights = inputs
    shape = structure.normalized(x.shape)
    expect(all(w.constant and w.shape == (shape[1],) for w in weights), "a norm unlike ours")
    return [_Value(kind=kind, shape=shape)]


def _resize(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    expect(attributes in _DOUBLING and len(inputs) == 3, "a resize unlike ours")
    x, region, scales = inputs
    kind = _floats([x], range(1, 2))
    expect(
        region.shape == (8,) and region.constant and region.kind == TensorProto.FLOAT,
        "a resize with another region",
    )
    expect(scales.factors == (1, 1, 2, 2), "a resize by another factor than 2")
    return [_Value(kind=kind, shape=structure.doubled(x.shape))]


def _sums(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    _take(attributes, ("exclusive",))
    expect(attributes["exclusive"] == 1 and len(inputs) == 2, "cumulative sums unlike ours")
    x, axis = inputs
    kind = _floats([x], range(1, 2))
    expect(axis.shape == () and len(axis.numbers) == 1, "sums along a computed axis")
    return [_Value(kind=kind, shape=structure.counted(x.shape, axis.numbers[0]))]


def _transpose(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    kind = _floats(inputs, range(1, 2))
    _take(attributes, ("perm",))
    return [_Value(kind=kind, shape=structure.transposed(inputs[0].shape, attributes["perm"]))]


def _split(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    x, *sizes = inputs
    kind = _floats([x], range(1, 2))
    _take(attributes, ("axis",), () if sizes else ("split",))
    expect(len(sizes) <= 1 and attributes["axis"] == 1, "a split along another axis than channels")
    parts = sizes[0].numbers if sizes else attributes.get("split", ())
    expect(
        len(x.shape) == 4
        and 2 <= len(parts) <= 64
        and len({*parts}) == 1
        and parts[0] >= 1
        and sum(parts) == x.shape[1],
        "a split into unequal parts",
    )
    return [_Value(kind=kind, shape=(x.shape[0], part, *x.shape[2:])) for part in parts]


def _shape(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    _floats(inputs, range(1, 2))
    _take(attributes)
    expect(len(inputs[0].shape) == 4, "a Shape of another tensor than a map")
    # Without values, so that it cannot be the target of a reshape.
    return [_Value(kind=TensorProto.INT64, shape=(4,))]


def _gather(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    _take(attributes)
    expect(len(inputs) == 2, "a Gather with other inputs")
    lengths, sides = inputs
    expect(
        lengths.kind == TensorProto.INT64 and lengths.shape == (4,) and not lengths.constant,
        "a Gather from another tensor than a shape",
    )
    expect(
        sides.numbers == (3, 2, 3, 2) and sides.shape == (1, 1, 4),
        "a Gather of other sides than height and width",
    )
    return [_Value(kind=TensorProto.INT64, shape=sides.shape)]


def _selection(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    _take(attributes)
    expect(len(inputs) == 5, "a box selection without limits")
    boxes, scores, most, iou, least = inputs
    _floats([boxes, scores, iou, least], range(4, 5))
    shape = structure.selected(
        boxes.shape, scores.shape, most=most.numbers, iou=iou.factors, least=least.factors
    )
    return [_Value(kind=TensorProto.INT64, shape=shape)]


def _cast(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    (x,) = inputs if len(inputs) == 1 else (None,)
    expect(x and not x.constant and x.kind in (*_FLOATS, TensorProto.INT64), "a cast unlike ours")
    _take(attributes, ("to",))
    expect(attributes["to"] in _FLOATS, "a cast to another type than floats")
    return [_Value(kind=attributes["to"], shape=inputs[0].shape)]


def _quantize(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    _take(attributes)
    expect(len(inputs) == 3, "a quantization without a zero point")
    x, scale, zero = inputs
    expect(
        x.kind == scale.kind == TensorProto.FLOAT
        and zero.kind in _BYTES
        and scale.shape == zero.shape == ()
        and scale.constant
        and zero.constant,
        "a quantization unlike ours",
    )
    return [_Value(kind=zero.kind, shape=x.shape)]


def _dequantize(inputs: Sequence[_Value], attributes: Attributes, _: Products) -> list[_Value]:
    _take(attributes, (), ("axis",))
    expect(len(inputs) == 3, "a dequantization without a zero point")
    x, scale, zero = inputs
    axis = attributes.get("axis")
    expect(axis in (None, 0), "scales along another axis than outputs")
    expect(
        x.kind in (*_BYTES, TensorProto.INT32)
        and x.kind == zero.kind
        and scale.kind == TensorProto.FLOAT
        and scale.shape == zero.shape
        and scale.shape in ((), (() if axis is None else x.shape[:1]))
        and scale.constant
        and zero.constant,
        "a dequantization unlike ours",
    )
    return [_Value(kind=TensorProto.FLOAT, shape=x.shape, constant=x.constant)]


Operator = Callable[[Sequence[_Value], Attributes, Products], list[_Value]]
_OPERATORS: dict[str, Operator] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _mean,
    "Flatten": _flatten,
    "Gemm": _gemm,
    **dict.fromkeys(("Relu", "Sigmoid", "Neg", "Exp", "Sqrt"), _like(1, 1)),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _like(2, 2)),
    "Min": _like(2, 2),
    **dict.fromkeys(("Max", "Sum"), _like(2, 65)),
    "Concat": _concat,
    "Split": _split,
    "Reshape": _reshape,
    "InstanceNormalization": _instance_norm,
    "Resize": _resize,
    "CumSum": _sums,
    "Transpose": _transpose,
    "Shape": _shape,
    "Gather": _gather,
    "NonMaxSuppression": _selection,
    "Cast": _cast,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
