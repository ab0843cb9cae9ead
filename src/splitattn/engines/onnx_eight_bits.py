"""ONNX graphs rewritten for eight bits, before `quantization` chooses the ranges of numbers."""

from copy import deepcopy
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

_ONE = "one"


def for_eight_bits(graph: ModelProto) -> ModelProto:
    """The same function, in operations that ONNX Runtime has fast eight-bit kernels for.

    - ReduceMean has none; GlobalAveragePool has one.
    - Nor has Sub: b + g (a - b), the blend of two splits, becomes g a + (1 - g) b.
    - AveragePool's is slow; a depthwise convolution with equal weights is fast. It stays where the
      last window may stick out of the map.

    What each gains is in docs/log.md.

    Args:
        graph: one of ours, fused; it stays as it is.
    """
    suited = deepcopy(graph)
    _pool_whole_maps(suited.graph)
    _blend_by_products(suited.graph)
    _convolve_averages(suited.graph)
    _drop_unread(suited.graph)
    return suited


def _pool_whole_maps(graph: GraphProto) -> None:
    constants = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "ReduceMean":
            # Ours are all of maps (B, C, H, W), to (B, C, 1, 1).
            axes = numpy_helper.to_array(constants[node.input[1]])
            assert sorted(axis % 4 for axis in axes) == [2, 3], node.name
            assert _attributes(node).get("keepdims", 1), node.name
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


def _blend_by_products(graph: GraphProto) -> None:
    makers = {name: node for node in graph.node for name in node.output}
    nodes = []
    for node in graph.node:
        blend = _weighted_difference(node, makers)
        if blend is None:
            nodes.append(node)
            continue
        first, last, gate = blend
        rest, weighted_first, weighted_last = (
            f"{node.name}_{part}" for part in ("rest", "first", "last")
        )
        nodes += [
            helper.make_node("Sub", [_ONE, gate], [rest], rest),
            helper.make_node("Mul", [first, gate], [weighted_first], weighted_first),
            helper.make_node("Mul", [last, rest], [weighted_last], weighted_last),
            helper.make_node("Add", [weighted_first, weighted_last], node.output, node.name),
        ]
    graph.initializer.append(numpy_helper.from_array(np.float32(1), _ONE))
    del graph.node[:]
    graph.node.extend(nodes)


def _weighted_difference(
    node: NodeProto, makers: dict[str, NodeProto]
) -> tuple[str, str, str] | None:
    """a, b and g, if `node` adds b and g (a - b)."""
    if node.op_type != "Add":
        return None
    for last, product in (node.input, node.input[::-1]):
        multiply = makers.get(product)
        if multiply is None or multiply.op_type != "Mul":
            continue
        for difference, gate in (multiply.input, multiply.input[::-1]):
            subtract = makers.get(difference)
            if subtract is not None and subtract.op_type == "Sub" and subtract.input[1] == last:
                return subtract.input[0], last, gate
    return None


def _convolve_averages(graph: GraphProto) -> None:
    """Averages over windows that all hold the same number of values."""
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]  # 0 if unknown
        for value in graph.value_info
    }
    for node in graph.node:
        if node.op_type != "AveragePool":
            continue
        given = _attributes(node)
        window, strides = given["kernel_shape"], given["strides"]
        pads = given.get("pads", [0, 0, 0, 0])
        assert given.get("auto_pad", b"NOTSET") == b"NOTSET", node.name
        assert set(given.get("dilations", [1])) == {1}, node.name
        _, channels, *sides = shapes[node.input[0]]
        if any(pads) and not given.get("count_include_pad"):
            continue
        # Where a size is rounded up, the last window may stick out.
        if given.get("ceil_mode") and any(
            not side or (side + before + after - kernel) % step
            for side, before, after, kernel, step in zip(
                sides, pads[:2], pads[2:], window, strides, strict=True
            )
        ):
            continue
        weights = np.full((channels, 1, *window), 1 / np.prod(window), np.float32)
        graph.initializer.append(numpy_helper.from_array(weights, f"{node.name}_weights"))
        node.op_type = "Conv"
        node.input.append(f"{node.name}_weights")
        del node.attribute[:]
        settings = {"kernel_shape": window, "strides": strides, "pads": pads, "group": channels}
        node.attribute.extend(helper.make_attribute(*each) for each in settings.items())


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _drop_unread(graph: GraphProto) -> None:
    """What nothing reads any more; ONNX Runtime would print a warning for each constant."""
    read = {output.name for output in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            read.update(node.input)
            nodes.append(node)
    constants = [each for each in graph.initializer if each.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(constants)
