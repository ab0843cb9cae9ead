"""Nodes and constants of an ONNX graph, added one by one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper

from splitattn.graph.folding import Array, AveragePool, Convolution


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of the graph: (B, channels, side, side); side is None where it is not known."""

    name: str
    channels: int
    side: int | None


class Writer:
    """Adds nodes and constants to a graph; each method returns what it added.

    Arguments are those of `to_onnx`; `graph` is the graph to add to.
    """

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
        self._constants: set[str] = set()

    def node(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; both have this name."""
        self._graph.node.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant, unless there is one with this name."""
        if name in self._constants:
            return name
        self._constants.add(name)
        # numpy_helper would copy the weights twice more.
        constant = self._graph.initializer.add()
        constant.name = name
        constant.data_type = helper.np_dtype_to_tensor_dtype(values.dtype)
        constant.dims.extend(values.shape)
        if self._external is not None and values.ndim > 1 and values.dtype.kind == "f":
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

    def full(self, name: str, value: float) -> Tensor:
        return Tensor(name=self.weights(name, np.full((1, 1, 1, 1), value)), channels=1, side=1)

    def conv(self, name: str, x: Tensor, conv: Convolution, shared: str | None = None) -> Tensor:
        """Add a convolution; `shared` names its weights if several convolutions share them."""
        size, weights = conv.weight.shape[2], shared or name
        self.node(
            "Conv",
            name,
            x.name,
            self.weights(f"{weights}.weight", conv.weight),
            self.weights(f"{weights}.bias", conv.bias),
            kernel_shape=[size, size],
            strides=[conv.stride] * 2,
            pads=[conv.padding] * 4,
            dilations=[conv.dilation] * 2,
            group=conv.groups,
        )
        window = conv.dilation * (size - 1) + 1
        return Tensor(
            name=name,
            channels=len(conv.bias),
            side=reduced(x.side, window, conv.stride, conv.padding * 2),
        )

    def like(self, kind: str, name: str, *inputs: Tensor) -> Tensor:
        """Add an elementwise operation. If maps and shares are mixed, a map must come first."""
        self.node(kind, name, *(x.name for x in inputs))
        return replace(inputs[0], name=name)

    def max_pool(self, name: str, x: Tensor) -> Tensor:
        windows = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        self.node("MaxPool", name, x.name, **windows)
        return Tensor(name=name, channels=x.channels, side=reduced(x.side, 3, 2, 2))

    def average(self, name: str, x: Tensor, pool: AveragePool | None) -> Tensor:
        if pool is None:
            return x
        before, after = pool.padding
        windows: dict[str, Any] = {
            "kernel_shape": [pool.size] * 2,
            "strides": [pool.stride] * 2,
            "pads": [before, before, after, after],
        }
        # No ceil_mode if all windows are whole, since some engines compute it wrongly.
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
        side = reduced(x.side, pool.size, pool.stride, before + after + rest)
        return Tensor(name=name, channels=x.channels, side=side)

    def mean(self, name: str, x: Tensor) -> Tensor:
        return Tensor(
            name=self.node("GlobalAveragePool", name, x.name), channels=x.channels, side=1
        )

    def channel_mean(self, name: str, x: Tensor) -> Tensor:
        """Add a mean over channels: (B, C, H, W) to (B, 1, H, W)."""
        if self._opset < 18:
            self.node("ReduceMean", name, x.name, axes=[1])
        else:
            self.node("ReduceMean", name, x.name, self.constant("axis.channels", np.array([1])))
        return replace(x, name=name, channels=1)

    def reshaped(self, name: str, x: Tensor, *sides: int) -> str:
        """Add a reshape to (B, *sides); one side may be -1 and takes the remaining length."""
        sizes = np.array([0, *sides], np.int64)
        return self.node("Reshape", name, x.name, self.constant(f"{name}.sizes", sizes))

    def concatenated(self, name: str, groups: Sequence[Tensor]) -> Tensor:
        self.node("Concat", name, *(x.name for x in groups), axis=1)
        return Tensor(name=name, channels=sum(x.channels for x in groups), side=groups[0].side)

    def group_norm(
        self, name: str, x: Tensor, groups: int, scale: Array, shift: Array, shared: str
    ) -> Tensor:
        """Add a group norm, from operators that old runtimes have; `shared` names its weights.

        The channels of a group are joined along the height, so an instance norm does the rest.
        """
        grouped = self.constant(f"groups.{groups}", np.array([0, groups, -1, 0], np.int64))
        channels = self.constant(f"channels.{x.channels}", np.array([0, x.channels, -1, 0]))
        one = self.weights(f"groups.{groups}.scale", np.ones(groups))
        zero = self.weights(f"groups.{groups}.shift", np.zeros(groups))
        laid_out = self.node("Reshape", f"{name}.groups", x.name, grouped)
        self.node("InstanceNormalization", f"{name}.normalized", laid_out, one, zero)
        back = self.node("Reshape", f"{name}.channels", f"{name}.normalized", channels)
        scales = self.weights(f"{shared}.scale", scale[None, :, None, None])
        shifts = self.weights(f"{shared}.shift", shift[None, :, None, None])
        scaled = self.node("Mul", f"{name}.scaled", back, scales)
        return replace(x, name=self.node("Add", name, scaled, shifts))

    def doubled(self, name: str, x: Tensor, *, smooth: bool = False) -> Tensor:
        """Double height and width: nearest, or if `smooth` bilinear with `align_corners=False`."""
        # The region is unused in these modes, but some opsets require it.
        region = self.constant("doubled.region", np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32))
        scales = self.constant("doubled.scales", np.array([1, 1, 2, 2], np.float32))
        how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        if not smooth:
            how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
            how["nearest_mode"] = "floor"
        self.node("Resize", name, x.name, region, scales, **how)
        return replace(x, name=name, side=None if x.side is None else 2 * x.side)

    def counted(self, name: str, ones: Tensor, axis: int) -> Tensor:
        """0, 1, 2, ... along an axis, from ones."""
        along = self.constant(f"axis.{axis}", np.array(axis, np.int64))
        return replace(ones, name=self.node("CumSum", name, ones.name, along, exclusive=1))

    def float32(self, x: Tensor) -> Tensor:
        """Cast `x` to float32 if the network computes in float16."""
        if not self.half:
            return x
        name = self.node("Cast", f"{x.name}.float32", x.name, to=TensorProto.FLOAT)
        return replace(x, name=name)

    def split(self, name: str, letters: str, x: Tensor) -> list[Tensor]:
        """Split the channels into equal parts, one for each letter."""
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
        return [Tensor(name=name, channels=channels, side=x.side) for name in names]


def reduced(side: int | None, window: int, stride: int, padding: int) -> int | None:
    return None if side is None else (side + padding - window) // stride + 1


def rename(nodes: Iterable[NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
