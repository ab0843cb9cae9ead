"""Checks that an OpenVINO file holds only what our writer writes, float or quantized."""

import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from splitattn.engines import structure
from splitattn.engines.structure import Products, Shape, StructureError, expect
from splitattn.errors import WeightsError
from splitattn.files import is_file, open_file
from splitattn.graph.detection import BOXES_OF_A_PLACE
from splitattn.weights.metadata import METADATA_KEY, ModelMetadata

_START = b'<?xml version="1.0"?>\n<net '
_DEEPEST = 8
_MOST_FACTORS = 8
_SIZES = {"f32": 4, "f16": 2, "i8": 1, "u8": 1, "i64": 8}
_NUMBER = re.compile(r"-?[0-9]{1,18}")
# Attributes that OpenVINO may write into a layer's rt_info.
_MARKS = ("decompression", "DisablePrecisionConversion")


@dataclass(frozen=True, kw_only=True)
class _Value:
    """A tensor: its type, its shape, and whether it is constant.

    Attributes:
        numbers: values of a constant of type i64.
        factors: values of a float constant of up to eight numbers.
    """

    kind: str
    shape: Shape
    constant: bool = False
    numbers: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()

    @property
    def weighs(self) -> bool:
        """Whether it is a constant of more than one number and not of type i64, such as weights."""
        return self.constant and self.kind != "i64" and math.prod(self.shape) > 1


Data = Mapping[str, str]


def check_open_vino(path: Path) -> ModelMetadata:
    """Check that an OpenVINO file holds a network of ours, and return its metadata.

    Raises:
        WeightsError: the file has something that our writer does not write.
        OSError: the file, or the `.bin` file beside it, cannot be read.
    """
    with open_file(path) as file:
        content = file.read()
    metadata: ModelMetadata = structure.checked(path, lambda: _check(content, path))
    return metadata


def _check(content: bytes, path: Path) -> ModelMetadata:
    expect(content.startswith(_START), "it is not an OpenVINO network")
    # XML readers treat entities, comments and processing instructions differently.
    expect(
        b"<!" not in content and content.count(b"<?") == 1,
        "it has comments, entities or instructions",
    )
    try:
        net = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise StructureError("it is cut short or not XML") from error
    expect(_depth(net) <= _DEEPEST, "elements nested too deeply")
    texts = [each.get("value") for each in net.findall(f"rt_info/{METADATA_KEY}")]
    metadata = structure.read_metadata(texts[0] if len(texts) == 1 else None)
    expect(net.attrib == {"name": "splitattn", "version": "11"}, "another name or version")
    expect(
        [part.tag for part in net] == ["layers", "edges", "rt_info"],
        "other parts than layers, edges and rt_info",
    )
    layers, edges, _ = net
    weights = path.with_suffix(".bin")
    if not is_file(weights):
        raise WeightsError(f"{path} needs {weights.name} beside it: copy it too, or export again")
    with open_file(weights) as file:
        network = _Network(metadata, _Weights(file, weights.stat().st_size))
        network.run(layers, _edges(edges))
    return metadata


def _depth(element: Element) -> int:
    deepest, below = 0, [element]
    while below and deepest <= _DEEPEST:
        deepest, below = deepest + 1, [child for each in below for child in each]
    return deepest


def _edges(edges: Element) -> dict[tuple[int, int], tuple[int, int]]:
    """The source, as layer and output, of each input, as layer and input."""
    sources: dict[tuple[int, int], tuple[int, int]] = {}
    for edge in edges:
        expect(
            edge.tag == "edge"
            and not len(edge)
            and {*edge.attrib} == {"from-layer", "from-port", "to-layer", "to-port"},
            "an edge unlike ours",
        )
        target = (_whole(edge.get("to-layer")), _whole(edge.get("to-port")))
        expect(target not in sources, "two edges into one input")
        sources[target] = (_whole(edge.get("from-layer")), _whole(edge.get("from-port")))
    return sources


class _Network:
    """Computes the shapes of a file's layers, one after the other.

    Args:
        metadata: of the file.
        weights: the `.bin` file.
    """

    def __init__(self, metadata: ModelMetadata, weights: "_Weights") -> None:
        self._metadata = metadata
        self._weights = weights
        self._products = Products(metadata.task)
        self._images: Shape = ()
        self._outputs: list[Shape] = []
        self._read: Counter[tuple[int, int]] = Counter()

    def run(self, layers: Element, sources: Mapping[tuple[int, int], tuple[int, int]]) -> None:
        """Raise unless all layers are ours and compute the task's outputs from the images."""
        expect(len(layers) <= structure.MOST_NODES, "too many layers")
        values: dict[tuple[int, int], _Value] = {}  # by layer and output
        numbers: set[int] = set()
        used = 0
        most = structure.MOST_USES[self._metadata.task]
        for layer in layers:
            _check_layer(layer)
            number, kind = _whole(layer.get("id")), layer.get("type", "")
            expect(number not in numbers, "two layers with the same id")
            numbers.add(number)
            inputs = []
            for port in _ports(layer, "input"):
                source = sources.get((number, _whole(port.get("id"))))
                expect(source in values, f"{kind} that reads a later output")
                assert source is not None
                inputs.append(values[source])
                used += 1
                if values[source].weighs:
                    # Bounds the computation by the size of the file.
                    self._read[source] += 1
                    expect(
                        self._read[source] <= most,
                        "weights that are used more often than in any ResNeSt",
                    )
            value = self._value(layer, kind, inputs)
            outputs = _ports(layer, "output")
            expect(bool(outputs) == (value is not None), f"{kind} with {len(outputs)} outputs")
            if value is not None:
                _check_stated(outputs[0], value.shape)
                values[number, len(inputs)] = value
        expect(used == len(sources), "edges to inputs that do not exist")
        names = structure.output_names(self._metadata, len(self._outputs))
        expect(len(self._outputs) == len(names), f"other outputs than {', '.join(names)}")
        structure.check_outputs(self._outputs, self._images, self._metadata)

    def _value(self, layer: Element, kind: str, inputs: Sequence[_Value]) -> _Value | None:
        data = layer.find("data")
        fields = {} if data is None else dict(data.attrib)
        if kind == "Parameter":
            expect(not self._images, "several inputs")
            return self._parameter(fields)
        if kind == "Const":
            return self._weights.constant(fields)
        if kind == "Result":
            names = structure.output_names(self._metadata, len(self._outputs) + 1)
            kind = "i64" if names[len(self._outputs) :] == ("selected",) else "f32"
            expect(
                not fields and len(inputs) == 1 and inputs[0].kind == kind, "an output unlike ours"
            )
            self._outputs.append(inputs[0].shape)
            return None
        expect(kind in _OPERATIONS, f"operation {kind!r:.40}")
        row = _OPERATIONS[kind]
        if kind == "AvgPool" and layer.get("version") == "opset16":
            expect(fields.pop("dilations", "") == "1, 1", "average pooling with dilation")
        expect({*fields} == {*row.fields}, f"{kind} with other attributes")
        for name, values in row.fields.items():
            fits = values is None or fields[name] in values
            expect(fits, f"{kind} with {name} {fields[name]!r:.40}")
        expect(len(inputs) in row.inputs, f"{kind} of {len(inputs)} inputs")
        return row.compute(inputs, fields, self._products)

    def _parameter(self, fields: Data) -> _Value:
        expect(
            {*fields} == {"shape", "element_type"} and fields["element_type"] == "f32",
            "an input that is not float32",
        )
        sides = fields["shape"].split(",")
        expect(len(sides) == 4, "its input is not a batch of images")
        batch, channels, *rest = (None if side == "?" else _positive(side) for side in sides)
        self._images = structure.image_shape(batch, channels, rest, self._metadata)
        return _Value(kind="f32", shape=self._images)


class _Weights:
    """The `.bin` file.

    Args:
        file: open for reading.
        size: its length in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def constant(self, fields: Data) -> _Value:
        expect({*fields} == {"element_type", "shape", "offset", "size"}, "a constant unlike ours")
        kind, text = fields["element_type"], fields["shape"]
        expect(kind in _SIZES, f"a constant of type {kind!r:.40}")
        shape = tuple(_positive(side) for side in text.split(", ")) if text else ()
        offset, size = _whole(fields["offset"]), _whole(fields["size"])
        expect(len(shape) <= 5 and size == math.prod(shape) * _SIZES[kind], "a constant cut short")
        expect(0 <= offset <= self._size - size, "a constant beyond the end of its file")
        numbers: tuple[int, ...] = ()
        if kind == "i64":
            expect(size <= 64, "an i64 constant of more than 8 numbers")
            self._file.seek(offset)
            data = self._file.read(size)
            numbers = tuple(
                int.from_bytes(data[i : i + 8], "little", signed=True) for i in range(0, size, 8)
            )
        factors: tuple[float, ...] = ()
        if kind == "f32" and size <= 4 * _MOST_FACTORS:
            self._file.seek(offset)
            factors = struct.unpack(f"<{size // 4}f", self._file.read(size))
        return _Value(kind=kind, shape=shape, constant=True, numbers=numbers, factors=factors)


def _check_layer(layer: Element) -> None:
    """Raise unless the layer has only the attributes and parts that layers have."""
    expect(layer.tag == "layer", f"an element {layer.tag!r:.40} among the layers")
    names, kind = {*layer.attrib} - {"output_names"}, layer.get("type", "")
    expect(names == {"id", "name", "type", "version"}, f"{kind} with other attributes")
    expect(
        layer.get("version") in _VERSIONS.get(kind, ("opset1",)), f"another version of {kind!r:.40}"
    )
    tags = [part.tag for part in layer]
    expect(
        len({*tags}) == len(tags) and {*tags} <= {"data", "rt_info", "input", "output"},
        f"{kind} with other parts",
    )
    for mark in layer.iterfind("rt_info/*"):
        expect(
            mark.tag == "attribute" and mark.get("name") in _MARKS,
            f"an unknown attribute in rt_info of {kind}",
        )


def _ports(layer: Element, side: str) -> list[Element]:
    found = layer.find(side)
    ports = [] if found is None else [*found]
    before = 0 if side == "input" else len(_ports(layer, "input"))
    expected = [str(number) for number in range(before, before + len(ports))]
    expect([port.get("id") for port in ports] == expected, "ports out of order")
    # A detector concatenates the boxes of all anchors; NonMaxSuppression has three outputs.
    most = BOXES_OF_A_PLACE["retinanet"] if side == "input" else 3
    expect(len(ports) <= most, "too many ports")
    return ports


def _check_stated(port: Element, shape: Shape) -> None:
    stated = [_whole(dim.text) for dim in port]
    fits = len(stated) == len(shape) and all(
        length in (-1, own) for length, own in zip(stated, shape, strict=True)
    )
    expect(fits, "a shape that does not follow from its inputs")


def _whole(text: str | None) -> int:
    expect(text is not None and _NUMBER.fullmatch(text), f"not a whole number: {text!r:.40}")
    return int(text or "")


def _positive(text: str) -> int:
    expect((number := _whole(text)) >= 1, f"a length of {text!r:.40}")
    return number


def _pair(text: str) -> tuple[int, ...]:
    return tuple(_whole(side) for side in text.split(", "))


def _windows(fields: Data) -> dict[str, tuple[int, ...]]:
    return {
        "strides": _pair(fields["strides"]),
        "before": _pair(fields["pads_begin"]),
        "after": _pair(fields["pads_end"]),
    }


def _floats(inputs: Sequence[_Value]) -> None:
    expect(all(value.kind == "f32" for value in inputs), "inputs of other types")


def _convolution(inputs: Sequence[_Value], fields: Data, products: Products) -> _Value:
    _floats(inputs)
    x, weight = inputs
    expect(weight.constant and len(weight.shape) in (4, 5), "weights that are not constant")
    *groups, outputs, _, _, _ = weight.shape
    shape = structure.convolution(
        x.shape,
        (math.prod([*groups, outputs]), *weight.shape[-3:]),
        products,
        dilations=_pair(fields["dilations"]),
        groups=math.prod(groups),
        **_windows(fields),
    )
    return _Value(kind="f32", shape=shape)


def _pool(inputs: Sequence[_Value], fields: Data, _: Products) -> _Value:
    _floats(inputs)
    shape = structure.pooling(
        inputs[0].shape,
        _pair(fields["kernel"]),
        ceil=fields["rounding_type"] == "ceil_torch",
        **_windows(fields),
    )
    return _Value(kind="f32", shape=shape)


def _mean(inputs: Sequence[_Value], _: Data, __: Products) -> _Value:
    x, axes = inputs
    _floats([x])
    expect(axes.numbers == (2, 3), "a mean over other axes than height and width")
    return _Value(kind="f32", shape=structure.mean(x.shape))


def _reshape(inputs: Sequence[_Value], _: Data, __: Products) -> _Value:
    x, target = inputs
    _floats([x])
    expect(target.numbers, "a reshape to a computed shape")
    return _Value(kind="f32", shape=structure.reshaped(x.shape, target.numbers))


def _normalize(inputs: Sequence[_Value], fields: Data, _: Products) -> _Value:
    x, axes = inputs
    _floats([x])
    expect(axes.numbers == (2, 3), "a norm over other axes than height and width")
    expect(_EPSILON.fullmatch(fields["eps"]), f"a norm with eps {fields['eps']!r:.40}")
    return _Value(kind="f32", shape=structure.normalized(x.shape))


def _double(inputs: Sequence[_Value], _: Data, __: Products) -> _Value:
    x, scales, *axes = inputs
    _floats([x])
    expect(scales.factors == (1, 1, 2, 2), "a resize by another factor than 2")
    expect(all(each.numbers == (0, 1, 2, 3) for each in axes), "a resize along other axes")
    return _Value(kind="f32", shape=structure.doubled(x.shape))


def _count(inputs: Sequence[_Value], _: Data, __: Products) -> _Value:
    x, axis = inputs
    _floats([x])
    expect(axis.shape == () and len(axis.numbers) == 1, "sums along a computed axis")
    return _Value(kind="f32", shape=structure.counted(x.shape, axis.numbers[0]))


def _transpose(inputs: Sequence[_Value], _: Data, __: Products) -> _Value:
    x, order = inputs
    _floats([x])
    return _Value(kind="f32", shape=structure.transposed(x.shape, order.numbers))


def _matmul(inputs: Sequence[_Value], _: Data, products: Products) -> _Value:
    _floats(inputs)
    x, weight = inputs
    expect(weight.constant, "weights that are not constant")
    return _Value(kind="f32", shape=structure.dense(x.shape, weight.shape, products))


def _like(inputs: Sequence[_Value], _: Data, __: Products) -> _Value:
    _floats(inputs)
    rank = max(len(value.shape) for value in inputs)
    shapes = ((1,) * (rank - len(value.shape)) + value.shape for value in inputs)
    shape = structure.together(*shapes)
    return _Value(kind="f32", shape=shape, constant=all(value.constant for value in inputs))


def _concat(inputs: Sequence[_Value], fields: Data, _: Products) -> _Value:
    _floats(inputs)
    shapes = (value.shape for value in inputs)
    shape = structure.concatenated(*shapes, axis=_whole(fields["axis"]))
    return _Value(kind="f32", shape=shape)


def _shape(inputs: Sequence[_Value], _: Data, __: Products) -> _Value:
    _floats(inputs)
    expect(len(inputs[0].shape) == 4, "a Shape of another tensor than a map")
    # Without values, so that it cannot be the target of a reshape.
    return _Value(kind="i64", shape=(4,))


def _gather(inputs: Sequence[_Value], _: Data, __: Products) -> _Value:
    lengths, sides, axis = inputs
    expect(
        lengths.kind == "i64" and lengths.shape == (4,) and not lengths.constant,
        "a Gather from another tensor than a shape",
    )
    expect(
        sides.numbers == (3, 2, 3, 2) and sides.shape == (1, 1, 4) and axis.numbers == (0,),
        "a Gather of other sides than height and width",
    )
    return _Value(kind="i64", shape=sides.shape)


def _selection(inputs: Sequence[_Value], _: Data, __: Products) -> _Value:
    boxes, scores, most, iou, least = inputs
    _floats([boxes, scores, iou, least])
    shape = structure.selected(
        boxes.shape, scores.shape, most=most.numbers, iou=iou.factors, least=least.factors
    )
    return _Value(kind="i64", shape=shape)


def _convert(inputs: Sequence[_Value], _: Data, __: Products) -> _Value:
    (x,) = inputs
    if x.kind == "i64":
        expect(not x.constant, "a conversion of a constant i64")
        return _Value(kind="f32", shape=x.shape)
    expect(
        x.constant and x.kind in ("f16", "i8", "u8"), "a conversion of other than constant weights"
    )
    return _Value(kind="f32", shape=x.shape, constant=True)


def _quantize(inputs: Sequence[_Value], _: Data, __: Products) -> _Value:
    _floats(inputs)
    x, *bounds = inputs
    expect(all(bound.constant for bound in bounds), "bounds that are not constant")
    for bound in bounds:
        expect(
            bound.shape == () or structure.together(x.shape, bound.shape) == x.shape,
            "bounds that do not fit their input",
        )
    return _Value(kind="f32", shape=x.shape, constant=x.constant)


Compute = Callable[[Sequence[_Value], Data, Products], _Value]
Fields = Mapping[str, tuple[str, ...] | None]


@dataclass(frozen=True, kw_only=True)
class _Operation:
    """One operation, as our writer writes it.

    Attributes:
        inputs: allowed numbers of inputs.
        fields: its attributes, each with its allowed values, or None for geometry.
        compute: checks the inputs and returns the output.
    """

    inputs: range
    fields: Fields
    compute: Compute


_BROADCAST: Fields = {"auto_broadcast": ("numpy",)}
_WINDOWS: Fields = {
    **dict.fromkeys(("strides", "pads_begin", "pads_end")),
    "auto_pad": ("explicit",),
}
_ONE, _TWO = range(1, 2), range(2, 3)
_EPSILON = re.compile(r"(1e-0?5|1\.000000\d*e-0?5|9\.99999\d*e-0?6)")
_VERSIONS = {
    "MaxPool": ("opset8",),
    "AvgPool": ("opset1", "opset14", "opset16"),
    "MVN": ("opset6",),
    "Interpolate": ("opset4", "opset11"),
    "CumSum": ("opset3",),
    "ShapeOf": ("opset3",),
    "Gather": ("opset8",),
    "NonMaxSuppression": ("opset9",),
}
_OPERATIONS: dict[str, _Operation] = {
    **dict.fromkeys(
        ("Convolution", "GroupConvolution"),
        _Operation(inputs=_TWO, fields={**_WINDOWS, "dilations": None}, compute=_convolution),
    ),
    "MaxPool": _Operation(
        inputs=_ONE,
        fields={
            **_WINDOWS,
            "dilations": ("1, 1",),
            "kernel": None,
            "rounding_type": ("floor",),
            "index_element_type": ("i64",),
            "axis": ("0",),
        },
        compute=_pool,
    ),
    "AvgPool": _Operation(
        inputs=_ONE,
        fields={
            **_WINDOWS,
            "kernel": None,
            "exclude-pad": ("true", "false"),
            "rounding_type": ("floor", "ceil_torch"),
        },
        compute=_pool,
    ),
    "ReduceMean": _Operation(inputs=_TWO, fields={"keep_dims": ("true",)}, compute=_mean),
    "Reshape": _Operation(inputs=_TWO, fields={"special_zero": ("true",)}, compute=_reshape),
    "MVN": _Operation(
        inputs=_TWO,
        fields={"eps": None, "normalize_variance": ("true",), "eps_mode": ("INSIDE_SQRT",)},
        compute=_normalize,
    ),
    "Interpolate": _Operation(
        inputs=range(2, 4),
        fields={
            "mode": ("nearest", "linear_onnx"),
            "shape_calculation_mode": ("scales",),
            "coordinate_transformation_mode": ("asymmetric", "half_pixel"),
            "nearest_mode": ("floor", "round_prefer_floor"),
            "antialias": ("false",),
            "pads_begin": ("0, 0, 0, 0",),
            "pads_end": ("0, 0, 0, 0",),
            "cube_coeff": ("-0.75",),
        },
        compute=_double,
    ),
    "CumSum": _Operation(
        inputs=_TWO, fields={"exclusive": ("true",), "reverse": ("false",)}, compute=_count
    ),
    "Transpose": _Operation(inputs=_TWO, fields={}, compute=_transpose),
    "MatMul": _Operation(
        inputs=_TWO,
        fields={"transpose_a": ("false",), "transpose_b": ("true",)},
        compute=_matmul,
    ),
    **dict.fromkeys(
        ("ReLU", "Sigmoid", "Negative", "Exp", "Sqrt"),
        _Operation(inputs=_ONE, fields={}, compute=_like),
    ),
    **dict.fromkeys(
        ("Add", "Subtract", "Multiply", "Maximum", "Minimum"),
        _Operation(inputs=_TWO, fields=_BROADCAST, compute=_like),
    ),
    "Divide": _Operation(
        inputs=_TWO, fields={**_BROADCAST, "m_pythondiv": ("true",)}, compute=_like
    ),
    "Concat": _Operation(inputs=range(2, 65), fields={"axis": ("1", "2")}, compute=_concat),
    "ShapeOf": _Operation(inputs=_ONE, fields={"output_type": ("i64",)}, compute=_shape),
    "Gather": _Operation(inputs=range(3, 4), fields={"batch_dims": ("0",)}, compute=_gather),
    "NonMaxSuppression": _Operation(
        inputs=range(5, 6),
        fields={
            "box_encoding": ("corner",),
            "sort_result_descending": ("false",),
            "output_type": ("i64",),
        },
        compute=_selection,
    ),
    "Convert": _Operation(inputs=_ONE, fields={"destination_type": ("f32",)}, compute=_convert),
    "FakeQuantize": _Operation(
        inputs=range(5, 6), fields={**_BROADCAST, "levels": ("255", "256")}, compute=_quantize
    ),
}
