"""The folded network as an ONNX model, written node by node.

Nodes and their outputs are named after their part of the network: "stem.0", "layer1.0.conv1.a",
"layer1.0.attention.fc1", "layer1.0.blend", "layer1.0.shortcut", "classifier". Splits are named
"a", "b", ..., and cardinal groups, if there are several, "group1", "group2", ... `parts` sorts
nodes by these names.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from splitattn.errors import InputError
from splitattn.graph.detection import FoldedDetector
from splitattn.graph.folding import FoldedNetwork
from splitattn.graph.onnx_detector import write_detector
from splitattn.graph.onnx_network import MAPS, write_network
from splitattn.graph.onnx_segmenter import write_segmenter
from splitattn.graph.onnx_writer import Writer, rename
from splitattn.graph.segmentation import FoldedSegmenter

OPSETS = range(11, 21)
# The lowest with int8 scales per channel. ONNX Runtime 1.16 and OpenCV 4.8 read it.
OPSET = 13

# The networks that `to_onnx` writes.
Network = FoldedNetwork | FoldedDetector | FoldedSegmenter

PARTS = ("stem", "pools", "attention", "blend", "classifier", "maps", "norms", "decode")


def to_onnx(
    network: Network,
    *,
    size: int | None,
    batch: int | None = None,
    opset: int = OPSET,
    half: bool = False,
    eight_bit: bool = False,
    average_pools: bool = False,
    outputs: Sequence[str] | None = None,
    external: dict[str, NDArray[Any]] | None = None,
) -> ModelProto:
    """Write the network as an `onnx.ModelProto`; its input and outputs are float32.

    The input "images" is (B, in_chans, H, W), normalized. `outputs` chooses from:

    - "logits", (B, classes).
    - "features", (B, channels): the mean over pixels of the last map.
    - "stem", "layer1", ..., "layer4": feature maps 0 to 4. "stem" comes before max pooling.
    - "class_maps", (B, classes, H / 32, W / 32): each place's contribution to each logit. Their
      mean over places plus the classifier's bias is the logit.
    - "shares", (B, blocks, max(R - 1, 1)): the mean over channels of the share of each split but
      the last, or with radix 1 of the gate.

    A detector outputs "boxes", "scores" and, if it selects, "selected"; see `write_detector`. A
    segmenter outputs "logits" of pixels; see `write_segmenter`.

    Args:
        size: H = W of the images, in pixels; None for any.
        batch: B; None for any.
        opset: version of ONNX's operators, 11 to 20. The IR version is the lowest that has it.
        half: compute in float16.
        eight_bit: write operations for which ONNX Runtime has fast int8 kernels; the function is
            the same. All average poolings of whole windows become depthwise convolutions, and a
            blend of two splits is g a + (1 - g) b instead of b + g (a - b).
        average_pools: write average pooling with zero padding (avd) as AveragePool. By default it
            is a depthwise convolution with equal weights, because OpenCV's average pooling does
            not count the zeros (seen in 4.8).
        outputs: names of the outputs, in this order; None takes the network's.
        external: a dictionary that receives the weights, by name; the model is then written
            without them. For an engine that takes both in memory, so that nothing is copied.

    Raises:
        InputError: an argument is outside its range, or the network has no such output.
    """
    if opset not in OPSETS:
        raise InputError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, got {opset}")
    for name, value in (("size", size), ("batch", batch)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, or None for any, got {value}")
    asked = _checked_outputs(network, outputs) if isinstance(network, FoldedNetwork) else ()
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        helper.make_graph([], "splitattn", [], []),
        producer_name="splitattn",
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports),
    )
    graph = model.graph
    shape = (network.in_chans, size or "height", size or "width")
    graph.input.append(_float32("images", batch, *shape))
    writer = Writer(
        graph,
        opset=opset,
        half=half,
        eight_bit=eight_bit,
        average_pools=average_pools,
        external=external,
    )
    if isinstance(network, FoldedDetector):
        rows = helper.make_tensor_value_info("selected", TensorProto.INT64, ["kept", 3])
        outputs_of_a_detector = [
            _float32("boxes", batch, "places", 4),
            _float32("scores", batch, "places", network.num_classes),
            *([rows] if network.selects else []),
        ]
        written = write_detector(writer, network, size)
        for output, own in zip(outputs_of_a_detector, written, strict=True):
            graph.output.append(output)
            rename(graph.node, own, output.name)
        return model
    if isinstance(network, FoldedSegmenter):
        logits = write_segmenter(writer, network, size)
        graph.output.append(
            _float32(
                "logits", batch, logits.channels, logits.side or "rows", logits.side or "columns"
            )
        )
        rename(graph.node, logits.name, "logits")
        return model
    found = write_network(writer, network, size, asked)
    for name in asked:
        tensor = found[name]
        sides: tuple[int | None, ...] = (tensor.side, tensor.side)
        if name == "shares":
            sides = (max(network.radix - 1, 1),)
        elif name in ("features", "logits"):
            sides = ()
        graph.output.append(_float32(name, batch, tensor.channels, *sides))
        if half:
            writer.node("Cast", name, tensor.name, to=TensorProto.FLOAT)
        else:
            rename(graph.node, tensor.name, name)
    return model


def parts(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of the nodes in each part that may have to stay float in int8, in the given order.

    - "stem": the convolutions before the first block.
    - "pools": the global average poolings at the start of the attention.
    - "attention": the rest of the attention, up to the shares of the splits.
    - "blend": the weighted sums of the splits.
    - "classifier": the last dense layer.
    - "maps": the classifier at each place, for class maps.
    - "norms": the group norms of a detector.
    - "decode": the operations from a detector's last convolutions to boxes and scores.

    Args:
        names: of nodes that `to_onnx` wrote, or of an engine's operations whose names begin with a
            node's name.
    """
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in names:
        part = _part(name)
        if part:
            found[part].append(name)
    return found


def _part(name: str) -> str | None:
    for start, part in (
        ("stem.", "stem"),
        ("classifier", "classifier"),
        ("class_maps", "maps"),
        ("decode.", "decode"),
    ):
        if name.startswith(start):
            return part
    for mark, part in (
        (".attention.pool", "pools"),
        (".attention.", "attention"),
        (".blend", "blend"),
        (".norm", "norms"),
    ):
        if mark in name:
            return part
    return None


def _checked_outputs(network: FoldedNetwork, outputs: Sequence[str] | None) -> tuple[str, ...]:
    own = [*MAPS[: 1 + len(network.stages)], *["shares"] * (network.radix > 0), "features"]
    if network.classifier:
        own += ["class_maps", "logits"]
    asked = (network.outputs or own[-1:]) if outputs is None else outputs
    if not asked or len({*asked}) < len(asked) or not {*asked}.issubset(own):
        raise InputError(
            f"outputs must be one or more of {', '.join(own)}, none of them twice, "
            f"got {asked!r:.60}"
        )
    return tuple(asked)


def _float32(name: str, batch: int | None, *shape: int | str | None) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch or "batch", *shape])
