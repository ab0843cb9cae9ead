"""The folded network as an ONNX model, written node by node.

A node is called after its part of the network, and so is its output: "stem.0", "layer1.0.conv1.a",
"layer1.0.attention.fc1", "layer1.0.blend", "layer1.0.shortcut", "classifier". Splits are counted
"a", "b", ..., and cardinal groups "group1", "group2", ... where there are several. `parts` sorts
nodes by these names.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from string import ascii_lowercase
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from splitattn.errors import InputError
from splitattn.graph.folding import (
    Attention,
    AveragePool,
    Block,
    Branch,
    Convolution,
    FoldedNetwork,
    SplitAttention,
)

OPSETS = range(11, 21)
# Read by ONNX Runtime 1.16 and OpenCV 4.8, and the lowest that has eight bits per channel.
OPSET = 13

# The feature maps, by index.
MAPS = ("stem", "layer1", "layer2", "layer3", "layer4")

PARTS = ("stem", "pools", "attention", "blend", "classifier")


def to_onnx(
    network: FoldedNetwork,
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
    """The network as an `onnx.ModelProto`, with float32 at both ends.

    Its input "images" is (B, in_chans, H, W), normalized. Outputs are called as in `outputs`:

    - "logits", (B, classes).
    - "features", (B, channels): the mean over pixels of the last map.
    - "stem", "layer1", ..., "layer4": feature maps 0 to 4. "stem" comes before max pooling.

    Args:
        size: H and W of the images, in pixels; None takes any.
        batch: B; None takes any.
        opset: version of ONNX's operators, 11 to 20. The IR version is the lowest that has it.
        half: compute in float16.
        eight_bit: write the form that ONNX Runtime has fast eight-bit kernels for. The function is
            the same. Averages over whole windows are depthwise convolutions as well; a blend of
            two splits is g a + (1 - g) b instead of b + g (a - b).
        average_pools: write averages that count zeros beyond the map (avd) as AveragePool. By
            default they are depthwise convolutions with equal weights, because OpenCV's average
            pooling does not count these zeros (seen in 4.8).
        outputs: what to give, in this order; None gives the logits, or the features where there is
            no classifier.
        external: takes the weights, by name, which the model then lacks: for an engine that is
            handed both, so that nothing is copied.

    Raises:
        InputError: an argument is outside its range, or the network has no such output.
    """
    if opset not in OPSETS:
        raise InputError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, got {opset}")
    for name, value in (("size", size), ("batch", batch)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, or None for any, got {value}")
    asked = _checked_outputs(network, outputs)
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
    writer = _Writer(
        graph,
        opset=opset,
        half=half,
        eight_bit=eight_bit,
        average_pools=average_pools,
        external=external,
    )
    found = _write_network(writer, network, size, asked)
    for name in asked:
        tensor = found[name]
        sides = () if name in ("features", "logits") else (tensor.side, tensor.side)
        graph.output.append(_float32(name, batch, tensor.channels, *sides))
        if half:
            writer.node("Cast", name, tensor.name, to=TensorProto.FLOAT)
        else:
            _rename(graph.node, tensor.name, name)
    return model


def parts(names: Iterable[str]) -> dict[str, list[str]]:
    """The nodes of the parts that may need more than eight bits, in the order of `names`.

    - "stem": the convolutions before the first block.
    - "pools": the averages over whole maps that attention begins with.
    - "attention": all from there to the shares of the splits.
    - "blend": where the shares meet the splits.
    - "classifier": the last dense layer.

    Args:
        names: of nodes of a model that `to_onnx` has written, or of operations that an engine has
            made of them, if their names begin with a node's.
    """
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in names:
        part = _part(name)
        if part:
            found[part].append(name)
    return found


def _part(name: str) -> str | None:
    if name.startswith(("stem.", "classifier")):
        return "stem" if name.startswith("stem.") else "classifier"
    for mark, part in (
        (".attention.pool", "pools"),
        (".attention.", "attention"),
        (".blend", "blend"),
    ):
        if mark in name:
            return part
    return None


def _checked_outputs(network: FoldedNetwork, outputs: Sequence[str] | None) -> tuple[str, ...]:
    own = [*MAPS[: 1 + len(network.stages)], "features", *["logits"] * bool(network.classifier)]
    asked = own[-1:] if outputs is None else outputs
    if not asked or len({*asked}) < len(asked) or not {*asked}.issubset(own):
        raise InputError(
            f"outputs must be one or more of {', '.join(own)}, none of them twice, "
            f"got {asked!r:.60}"
        )
    return tuple(asked)


def _float32(name: str, batch: int | None, *shape: int | str | None) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch or "batch", *shape])


def _rename(nodes: Iterable[NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the graph: (B, channels, side, side); side is None where it is not known."""

    name: str
    channels: int
    side: int | None


class _Writer:
    """Adds nodes and constants to a graph; each method gives what it has added."""

    def __init__(
        self,
        graph: GraphProto,
        *,
        opset: int,
        half: bool,
        eight_bit: bool,
        average_pools: bool,
        external: dict[str, NDArray[Any]] | None,
    ) -> None:
        self._graph = graph
        self._opset = opset
        self.half = half
        self.eight_bit = eight_bit
        self._average_pools = average_pools
        self._external = external

    def node(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        """A node of that name, whose only output has the same name."""
        self._graph.node.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, values: NDArray[Any]) -> str:
        # Not by numpy_helper, which would copy the weights twice more.
        constant = self._graph.initializer.add()
        constant.name = name
        constant.data_type = helper.np_dtype_to_tensor_dtype(values.dtype)
        constant.dims.extend(values.shape)
        if self._external is not None and values.ndim > 1:
            self._external[name] = np.ascontiguousarray(values)
            constant.data_location = TensorProto.EXTERNAL
            constant.external_data.add(key="location", value="memory")
        else:
            constant.raw_data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        return name

    def weights(self, name: str, values: NDArray[Any]) -> str:
        return self.constant(
            name, values.astype(np.float16 if self.half else np.float32, copy=False)
        )

    def full(self, name: str, value: float) -> _Tensor:
        return _Tensor(self.weights(name, np.full((1, 1, 1, 1), value)), 1, 1)

    def conv(self, name: str, x: _Tensor, conv: Convolution) -> _Tensor:
        size = conv.weight.shape[2]
        self.node(
            "Conv",
            name,
            x.name,
            self.weights(f"{name}.weight", conv.weight),
            self.weights(f"{name}.bias", conv.bias),
            kernel_shape=[size, size],
            strides=[conv.stride] * 2,
            pads=[conv.padding] * 4,
            dilations=[conv.dilation] * 2,
            group=conv.groups,
        )
        window = conv.dilation * (size - 1) + 1
        return _Tensor(
            name, len(conv.bias), _reduced(x.side, window, conv.stride, conv.padding * 2)
        )

    def like(self, kind: str, name: str, *inputs: _Tensor) -> _Tensor:
        """An operation value by value. Where inputs are maps and shares, a map comes first."""
        self.node(kind, name, *(x.name for x in inputs))
        return replace(inputs[0], name=name)

    def max_pool(self, name: str, x: _Tensor) -> _Tensor:
        windows = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        self.node("MaxPool", name, x.name, **windows)
        return _Tensor(name, x.channels, _reduced(x.side, 3, 2, 2))

    def average(self, name: str, x: _Tensor, pool: AveragePool | None) -> _Tensor:
        if pool is None:
            return x
        before, after = pool.padding
        windows: dict[str, Any] = {
            "kernel_shape": [pool.size] * 2,
            "strides": [pool.stride] * 2,
            "pads": [before, before, after, after],
        }
        # Where all windows are whole, say so: not every engine rounds up well.
        ragged = pool.partial and (x.side is None or (x.side - pool.size) % pool.stride != 0)
        padded = bool(before or after)
        if (padded and not self._average_pools) or (self.eight_bit and not ragged):
            equal = np.full((x.channels, 1, pool.size, pool.size), pool.size**-2)
            weight = self.weights(f"{name}.weight", equal)
            self.node("Conv", name, x.name, weight, group=x.channels, **windows)
        else:
            if ragged:
                windows["ceil_mode"] = 1
            if padded:
                windows["count_include_pad"] = 1
            self.node("AveragePool", name, x.name, **windows)
        rest = pool.stride - 1 if ragged else 0
        side = _reduced(x.side, pool.size, pool.stride, before + after + rest)
        return _Tensor(name, x.channels, side)

    def mean(self, name: str, x: _Tensor) -> _Tensor:
        return _Tensor(self.node("GlobalAveragePool", name, x.name), x.channels, 1)

    def concatenated(self, name: str, groups: Sequence[_Tensor]) -> _Tensor:
        self.node("Concat", name, *(x.name for x in groups), axis=1)
        return _Tensor(name, sum(x.channels for x in groups), groups[0].side)

    def split(self, name: str, letters: str, x: _Tensor) -> list[_Tensor]:
        """Equal parts of the channels, one for each letter."""
        channels = x.channels // len(letters)
        sizes = [channels] * len(letters)
        inputs, attributes = [x.name], {}
        if self._opset < 13:
            attributes["split"] = sizes
        else:
            inputs.append(self.constant(f"{name}.sizes", np.array(sizes, np.int64)))
        names = [f"{name}.{letter}" for letter in letters]
        node = helper.make_node("Split", inputs, names, name, axis=1, **attributes)
        self._graph.node.append(node)
        return [_Tensor(name, channels, x.side) for name in names]


def _reduced(side: int | None, window: int, stride: int, padding: int) -> int | None:
    return None if side is None else (side + padding - window) // stride + 1


def _write_network(
    to: _Writer, network: FoldedNetwork, size: int | None, outputs: Sequence[str]
) -> dict[str, _Tensor]:
    """As much of the network as `outputs` need. Gives the tensors that may be outputs."""
    x = _Tensor("images", network.in_chans, size)
    if to.half:
        x = replace(x, name=to.node("Cast", "images.half", x.name, to=TensorProto.FLOAT16))
    for i, conv in enumerate(network.stem):
        x = to.like("Relu", f"stem.{i}.relu", to.conv(f"stem.{i}", x, conv))
    found = {"stem": x}
    pooled = not {"features", "logits"}.isdisjoint(outputs)
    last = len(network.stages) if pooled else max(MAPS.index(name) for name in outputs)
    if last:
        x = to.max_pool("stem.pool", x)
    for name, stage in zip(MAPS[1:], network.stages[:last], strict=False):
        for block in stage:
            x = _write_block(to, block, x)
        found[name] = x
    if pooled:
        x = to.mean("pool", x)
        x = _Tensor(to.node("Flatten", "pool.flat", x.name), x.channels, None)
        found["features"] = x
    if "logits" in outputs:
        assert network.classifier is not None
        weight = to.weights("classifier.weight", network.classifier.weight)
        bias = to.weights("classifier.bias", network.classifier.bias)
        to.node("Gemm", "classifier", x.name, weight, bias, transB=1)
        found["logits"] = _Tensor("classifier", network.num_classes, None)
    return found


def _write_block(to: _Writer, block: Block, x: _Tensor) -> _Tensor:
    name = block.name
    shortcut = x
    for step in block.shortcut:
        if isinstance(step, AveragePool):
            shortcut = to.average(f"{name}.shortcut.pool", shortcut, step)
        else:
            shortcut = to.conv(f"{name}.shortcut", shortcut, step)
    several = len(block.groups) > 1
    groups = [
        _write_group(to, f"{name}.group{k}" if several else name, group, x)
        for k, group in enumerate(block.groups, start=1)
    ]
    x = to.concatenated(f"{name}.groups", groups) if several else groups[0]
    x = to.conv(f"{name}.conv3", x, block.conv3)
    return to.like("Relu", f"{name}.relu", to.like("Add", f"{name}.add", x, shortcut))


def _write_group(to: _Writer, name: str, group: SplitAttention, x: _Tensor) -> _Tensor:
    several = len(group.branches) > 1
    marks = [f".{ascii_lowercase[i]}" for i in range(len(group.branches))] if several else [""]
    maps = [
        _write_branch(to, name, mark, branch, x)
        for mark, branch in zip(marks, group.branches, strict=True)
    ]
    averaged = [
        to.average(f"{name}.pool{mark}", one, group.pool)
        for mark, one in zip(marks, maps, strict=True)
    ]
    attention = group.attention
    if attention is None:
        return averaged[0]
    means = [
        to.mean(f"{name}.attention.pool{mark}", one) for mark, one in zip(marks, maps, strict=True)
    ]
    if attention.radix > 1 and not several:
        letters = ascii_lowercase[: attention.radix]
        averaged = to.split(f"{name}.split", letters, averaged[0])
        means = to.split(f"{name}.attention.split", letters, means[0])
    shares = _write_attention(to, f"{name}.attention", attention, means)
    return _write_blend(to, f"{name}.blend", averaged, shares)


def _write_branch(to: _Writer, name: str, mark: str, branch: Branch, x: _Tensor) -> _Tensor:
    x = to.like("Relu", f"{name}.conv1{mark}.relu", to.conv(f"{name}.conv1{mark}", x, branch.conv1))
    x = to.average(f"{name}.pool{mark}", x, branch.pool)
    return to.like(
        "Relu", f"{name}.conv2{mark}.relu", to.conv(f"{name}.conv2{mark}", x, branch.conv2)
    )


def _write_attention(
    to: _Writer, name: str, attention: Attention, means: list[_Tensor]
) -> list[_Tensor]:
    """The shares of the splits. Of two splits the last one's is left to the blend."""
    total = means[0]
    for mark, mean in zip(ascii_lowercase[1:], means[1:], strict=False):
        total = to.like("Add", f"{name}.sum.{mark}", total, mean)
    hidden = to.like("Relu", f"{name}.fc1.relu", to.conv(f"{name}.fc1", total, attention.fc1))
    if attention.radix <= 2:
        gate = to.like("Sigmoid", f"{name}.gate", to.conv(f"{name}.fc2", hidden, attention.fc2[0]))
        if attention.radix == 1 or not to.eight_bit:
            return [gate]
        one = to.full(f"{name}.one", 1)
        return [gate, replace(to.like("Sub", f"{name}.rest", one, gate), channels=gate.channels)]
    # A softmax in single steps, which every engine has; the last split's logits are zero.
    letters = ascii_lowercase[: attention.radix]
    logits = [
        to.conv(f"{name}.fc2.{letter}", hidden, layer)
        for letter, layer in zip(letters, attention.fc2, strict=False)
    ]
    zero = to.full(f"{name}.zero", 0)
    highest = to.like("Max", f"{name}.highest", *logits, zero)
    relative = [
        to.like("Sub", f"{name}.relative.{letter}", one, highest)
        for letter, one in zip(letters, logits, strict=False)
    ]
    relative.append(to.like("Neg", f"{name}.relative.{letters[-1]}", highest))
    powers = [
        to.like("Exp", f"{name}.power.{letter}", one)
        for letter, one in zip(letters, relative, strict=True)
    ]
    total = to.like("Sum", f"{name}.total", *powers)
    return [
        to.like("Div", f"{name}.share.{letter}", power, total)
        for letter, power in zip(letters, powers, strict=True)
    ]


def _write_blend(to: _Writer, name: str, splits: list[_Tensor], shares: list[_Tensor]) -> _Tensor:
    if len(splits) == 1:
        return to.like("Mul", name, splits[0], shares[0])
    if len(shares) == 1 and not to.eight_bit:
        first, last = splits
        difference = to.like("Sub", f"{name}.difference", first, last)
        weighted = to.like("Mul", f"{name}.product", difference, shares[0])
        return to.like("Add", name, last, weighted)
    letters = ascii_lowercase[: len(splits)]
    *others, out = (
        to.like("Mul", f"{name}.product.{letter}", split, share)
        for letter, split, share in zip(letters, splits, shares, strict=True)
    )
    for letter, other in zip(letters, others[:-1], strict=False):
        out = to.like("Add", f"{name}.sum.{letter}", out, other)
    return to.like("Add", name, out, others[-1])
