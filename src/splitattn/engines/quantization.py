"""Eight-bit integers: networks calibrated on real images, and what that costs in accuracy.

Weights are rounded per output channel, activations per tensor, by the ranges that they take on the
calibration images. Where eight bits cost more than they save, numbers stay floats.
"""

import contextlib
import io
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from splitattn.data.loading import eval_loader
from splitattn.data.sources import LabelledImages, open_data
from splitattn.engines.engine import Runtime
from splitattn.errors import DataError, ImageError
from splitattn.evaluation import with_classes_of_model
from splitattn.files import is_folder
from splitattn.images.decode import decode
from splitattn.images.paths import expand
from splitattn.images.preprocess import normalize, preprocess
from splitattn.libraries import telemetry_off
from splitattn.preprocessing import Preprocessing
from splitattn.weights.metadata import ModelMetadata

CALIBRATION_IMAGES = 300
_SEED = 0

# Which parts of a network, as `find_parts` tells them apart, stay floats.
FLOAT_PARTS: dict[str, tuple[str, ...]] = {
    "onnx": ("attention",),
    "openvino": ("attention", "blend"),
}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a quantized network compares with the one that it was made from.

    Attributes:
        n: images that both have labelled.
        same_labels: images that both label alike, in percent.
        top1, reference_top1: of the quantized network and of the other, in percent; None if the
            images come without labels that the model knows.
    """

    n: int
    same_labels: float
    top1: float | None
    reference_top1: float | None

    def __str__(self) -> str:
        line = f"{self.same_labels:.2f} % of {self.n} images labelled alike"
        if self.top1 is None or self.reference_top1 is None:
            return line
        lost = self.reference_top1 - self.top1
        return f"top-1 {self.reference_top1:.2f} % -> {self.top1:.2f} % ({-lost:+.2f}), {line}"


def calibration_images(data: str) -> LabelledImages:
    """The training images of `data`, or those of any folder; labels need not mean anything.

    Raises:
        DataError: there are none.
    """
    return _images(data, "train")


def comparison_images(data: str, metadata: ModelMetadata) -> tuple[LabelledImages, bool]:
    """The validation images of `data`, or those of any folder, and whether their labels count.

    Raises:
        DataError: there are none.
    """
    images = _images(data, "val")
    try:
        return with_classes_of_model(
            images, metadata.classes, num_classes=len(metadata.classes)
        ), True
    except DataError:
        return images, False


def _images(data: str, split: str) -> LabelledImages:
    try:
        return open_data(data, split)
    except DataError:
        found = list(expand([data])) if is_folder(data) else []
        if found in ([], [data]):
            raise
        return LabelledImages(
            origin=data, classes=("",), images=found, labels=[0] * len(found), names=found
        )


def sampled(data: LabelledImages, preprocessing: Preprocessing, count: int) -> list[Tensor]:
    """`count` readable images, always the same ones: uint8 pixels (3, size, size) each.

    There are fewer if `data` has fewer.

    Raises:
        DataError: none of them can be read.
    """
    order = random.Random(_SEED).sample(range(len(data)), len(data))
    pixels: list[Tensor] = []
    problem = ""
    for index in order:
        if len(pixels) == count:
            break
        try:
            image = decode(data.images[index], name=data.names[index])
        except ImageError as error:
            problem = problem or str(error)
            continue
        pixels.append(preprocess(image, preprocessing))
    if not pixels:
        raise DataError(f"calibration needs readable images, got none; the first: {problem}")
    return pixels


def compare(
    reference: Runtime,
    candidate: Runtime,
    data: LabelledImages,
    preprocessing: Preprocessing,
    *,
    labelled: bool,
    batch_size: int = 32,
    workers: int = 0,
    on_images: Callable[[int], None] = lambda _: None,
) -> Agreement:
    """Label every image of `data` with both networks.

    Args:
        labelled: the labels of `data` are indices of the networks' outputs.
        on_images: told how many more images are done, for a progress bar.

    Raises:
        DataError: no image can be read.
    """
    n = same = right = reference_right = 0
    for batch in eval_loader(data, preprocessing, batch_size=batch_size, workers=workers):
        if len(batch.labels):
            expected, got = (
                runtime.run(batch.images).argmax(1) for runtime in (reference, candidate)
            )
            n += len(batch.labels)
            same += int((got == expected).sum())
            right += int((got == batch.labels).sum())
            reference_right += int((expected == batch.labels).sum())
        on_images(len(batch.labels) + len(batch.problems))
    if not n:
        raise DataError(f"a comparison needs readable images, got none in {data.origin}")
    return Agreement(
        n=n,
        same_labels=100 * same / n,
        top1=100 * right / n if labelled else None,
        reference_top1=100 * reference_right / n if labelled else None,
    )


def quantized_onnx(
    graph: Any,
    pixels: Sequence[Tensor],
    preprocessing: Preprocessing,
    *,
    float_parts: Sequence[str] = FLOAT_PARTS["onnx"],
) -> Any:
    """An `onnx.ModelProto` in eight bits, as pairs of QuantizeLinear and DequantizeLinear.

    Args:
        graph: an `onnx.ModelProto`, which stays as it is.
        pixels: of the calibration images, as `sampled` gives them.
        float_parts: what stays in floats; see `find_parts`. With none, ONNX Runtime decides
            everything, as it does for other projects' networks.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    from splitattn.engines.onnx_eight_bits import for_eight_bits

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(pixels)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._left, None)
            return None if image is None else {"images": _input(image, preprocessing)}

    graph = for_eight_bits(graph) if float_parts else deepcopy(graph)
    # PyTorch's exporter has folded and inferred what the pre-processing would; without this mark
    # each quantization would print advice to do it.
    add_pre_process_metadata(graph)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_static(
            graph,
            path,
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            # Where there is VNNI, products of these two do not saturate.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_names(float_parts, find_parts(_onnx_nodes(graph))),
        )
        return onnx.load(path)


def quantized_openvino(
    graph: Any,
    pixels: Sequence[Tensor],
    preprocessing: Preprocessing,
    *,
    float_parts: Sequence[str] = FLOAT_PARTS["openvino"],
) -> Any:
    """An `openvino.Model` in eight bits, by NNCF.

    Args:
        graph: an `openvino.Model`, which stays as it is.
        pixels: of the calibration images, as `sampled` gives them.
        float_parts: what stays in floats; see `find_parts`. With none, NNCF decides everything, as
            it does for other projects' networks.
    """
    from splitattn.engines.open_vino import core, floor_averages

    core()  # before those that NNCF makes and drops
    parts = find_parts(_openvino_nodes(graph))
    if float_parts:
        graph = graph.clone()
        floor_averages(graph)
    with telemetry_off():
        import nncf

    # Not by NNCF's own function, which also silences every handler that listens to it.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars, on the way of results
        quantized = nncf.quantize(
            graph,
            nncf.Dataset(pixels, lambda image: _input(image, preprocessing)),
            subset_size=len(pixels),
            ignored_scope=nncf.IgnoredScope(names=_names(float_parts, parts), validate=False),
        )
    if "blend" in float_parts and "pools" not in float_parts:
        _round_for_all(quantized, parts["pools"])
    return quantized


def _round_for_all(graph: Any, readers: set[str]) -> None:
    """Whatever `readers` read rounded to eight bits, let all others read as well: rounded, clipped.

    The blend then calculates with floats, but of splits that each branch's convolution has written
    as bytes, a quarter of the memory. (Of a grouped convolution NNCF rounds the parts, after they
    were floats.) What it gains and costs is in docs/log.md.
    """
    for operation in graph.get_ops():
        if operation.get_friendly_name() not in readers:
            continue
        rounded = operation.input_value(0)
        if rounded.get_node().get_type_name() != "FakeQuantize":
            continue
        exact = rounded.get_node().input_value(0)
        for other in exact.get_target_inputs():
            if other.get_node().get_type_name() != "FakeQuantize":
                other.replace_source_output(rounded)
    graph.validate_nodes_and_infer_types()


def _input(image: Tensor, preprocessing: Preprocessing) -> NDArray[np.float32]:
    return np.ascontiguousarray(normalize(image[None], preprocessing).numpy())


@dataclass(frozen=True, kw_only=True)
class Node:
    """An operation of a graph.

    Attributes:
        name: its own.
        kind: what ONNX and OpenVINO call it.
        inputs: names of the operations whose results it takes; constants are none.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]


# Averages over a whole map; nothing else has these names in our graphs.
_POOLS = {"ReduceMean", "GlobalAveragePool"}
_DIFFERENCES = {"Sub", "Subtract"}
# What else these take is a shape.
_RESHAPES = {"Reshape", "Squeeze", "Unsqueeze", "Flatten"}


def find_parts(nodes: Iterable[Node]) -> dict[str, set[str]]:
    """The parts of a network that may need more than eight bits, by the names of their operations.

    They are found by what depends on what, so that neither the engine's names nor the form of the
    rewrite matter:

    - "pools": averages over whole maps that attention begins with.
    - "attention": all that depends on those and on nothing else, up to where it meets maps again.
    - "blend": where it meets them, with the differences of splits that it weights and the sums that
      follow.
    - "first", "last": the first convolution, and the classifier.

    Args:
        nodes: in an order in which each comes after those it depends on.
    """
    nodes = [
        replace(node, inputs=node.inputs[:1]) if node.kind in _RESHAPES else node for node in nodes
    ]
    kinds = {node.name: node.kind for node in nodes}
    used = {name for node in nodes for name in node.inputs}
    pooled: set[str] = set()
    for node in nodes:
        if node.kind in _POOLS or (node.inputs and pooled.issuperset(node.inputs)):
            pooled.add(node.name)
    # The classifier too depends on an average alone; but nothing comes after it.
    head = {node.name for node in nodes if node.name in pooled and node.name not in used}
    for node in reversed(nodes):
        if node.name in head:
            head.update(name for name in node.inputs if name in pooled)
    gated = pooled - head
    pools = {name for name in gated if kinds[name] in _POOLS}
    blend: set[str] = set()
    for node in nodes:
        if node.name in pooled:
            continue
        if gated.intersection(node.inputs):
            differences = {name for name in node.inputs if kinds.get(name) in _DIFFERENCES}
            blend |= {node.name} | differences
        elif node.kind == "Add" and blend.intersection(node.inputs):
            blend.add(node.name)
    convolutions = [node.name for node in nodes if node.kind in ("Conv", "Convolution")]
    classifier = {node.name for node in nodes if node.kind in ("Gemm", "MatMul")} & head
    return {
        "pools": pools,
        "attention": gated - pools,
        "blend": blend,
        "first": set(convolutions[:1]),
        "last": classifier,
    }


def _names(chosen: Sequence[str], parts: Mapping[str, set[str]]) -> list[str]:
    return sorted(set().union(*(parts[part] for part in chosen)))


def _onnx_nodes(graph: Any) -> Iterator[Node]:
    maker = {output: node.name for node in graph.graph.node for output in node.output}
    for node in graph.graph.node:
        inputs = tuple(maker[name] for name in node.input if name in maker)
        yield Node(name=node.name, kind=node.op_type, inputs=inputs)


def _openvino_nodes(graph: Any) -> Iterator[Node]:
    constant: set[str] = set()
    for operation in graph.get_ordered_ops():
        name = operation.get_friendly_name()
        makers = [value.get_node().get_friendly_name() for value in operation.input_values()]
        inputs = tuple(maker for maker in makers if maker not in constant)
        if operation.get_type_name() == "Constant" or (makers and not inputs):
            constant.add(name)
            continue
        yield Node(name=name, kind=operation.get_type_name(), inputs=inputs)
