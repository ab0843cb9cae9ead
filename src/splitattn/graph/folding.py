"""The folded inference network: the same outputs from fewer and simpler operations.

Four rewrites, none of which changes the function:

- In evaluation, batch norm is a fixed scale and shift, so it is folded into the convolution before
  it.
- A softmax does not change when the same number is subtracted from all of its logits. Subtracting
  the last split's logits saves that part of the last dense layer; with radix 2 a single sigmoid is
  left.
- A grouped convolution is several dense ones side by side. With the 1x1 convolution before it cut
  into the same groups, a block becomes R*K independent branches, as in the paper's figure 2.
- The average pooling of a weighted sum is the weighted sum of the pooled maps. So where a block
  pools after its attention, the splits are pooled first, and a quarter of the pixels is weighted.

Shapes: B batch, R radix, K cardinality, C channels of the block's output, D of the attention's
hidden layer, H and W rows and columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from splitattn.architectures import Architecture, BlockShape, Dilation
from splitattn.errors import InputError

Form = Literal["branches", "grouped"]
Array = NDArray[np.floating[Any]]

# The output with each place's contribution to each logit, see `to_onnx`.
CLASS_MAPS = "class_maps"

EPSILON = 1e-5  # of every batch norm


@dataclass(frozen=True, kw_only=True, eq=False)
class Convolution:
    """A convolution with square windows, over a map with `padding` zeros on every side.

    Attributes:
        weight: (outputs, inputs / groups, size, size).
        bias: (outputs,).
    """

    weight: Array
    bias: Array
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1


@dataclass(frozen=True, kw_only=True)
class AveragePool:
    """Averages over square windows.

    Attributes:
        size, stride: of the windows.
        padding: zeros before each row and column of the map, and after it; they count as values.
        partial: the last window may reach beyond the map; values outside do not count.
    """

    size: int
    stride: int
    padding: tuple[int, int] = (0, 0)
    partial: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """conv1, ReLU, `pool` if there is one, conv2, ReLU.

    Attributes:
        conv1: the block's 1x1 convolution, or a part of it.
        pool: the block's average pooling where it comes before the 3x3 convolution (avd_first).
        conv2: the block's 3x3 convolution, or a part of it.
    """

    conv1: Convolution
    pool: AveragePool | None
    conv2: Convolution


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """Computes each split's share in the blend, from the mean over pixels of the sum of splits.

    A dense layer, a ReLU, then one dense layer for each split but the last, all as 1x1
    convolutions. With radix 1, a sigmoid gives the gate. Otherwise the shares are the softmax of
    these logits and a zero for the last split. With radix 2 that is g = sigmoid(logits) for the
    first split and 1 - g for the last.

    Attributes:
        radix: R.
        fc1: (B, C, 1, 1) to (B, D, 1, 1).
        fc2: for each split but the last, (B, D, 1, 1) to its logits (B, C, 1, 1) minus those of
            the last split; with radix 1, to the logits of the gate.
    """

    radix: int
    fc1: Convolution
    fc2: tuple[Convolution, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitAttention:
    """Splits (B, C, H, W), pooled by `pool` if there is one, then blended by attention.

    The attention is computed from the splits before `pool`.

    Attributes:
        branches: one for each split; or in the form "grouped" a single one, whose output channels
            are those of all splits, one split after the other.
        attention: None for radix 0: the output is that of the only branch, pooled by `pool`.
        pool: the block's average pooling where it comes after the 3x3 convolution.
    """

    branches: tuple[Branch, ...]
    attention: Attention | None
    pool: AveragePool | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """A bottleneck: relu(conv3(concatenated groups) + shortcut).

    Attributes:
        name: "layer1.0" for the first one.
        groups: each maps the block's input to its part of the channels: one for each cardinal
            group, or in the form "grouped" a single one for all of them.
        conv3: the 1x1 convolution that follows.
        shortcut: the layers of the shortcut; empty for an identity.
    """

    name: str
    groups: tuple[SplitAttention, ...]
    conv3: Convolution
    shortcut: tuple[AveragePool | Convolution, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """The classifier.

    Attributes:
        weight: (classes, features).
        bias: (classes,).
    """

    weight: Array
    bias: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldedNetwork:
    """A ResNeSt in evaluation.

    Images (B, in_chans, H, W), normalized, go through the convolutions of the stem, each with a
    ReLU after it; then 3x3 max pooling with stride 2 and padding 1; then the blocks; then the mean
    over pixels; then the classifier.

    Attributes:
        stem: one 7x7 convolution, or three 3x3 ones; their output is feature map 0.
        stages: the blocks of each stage. The output of stage i, counted from 1, is feature map i.
        classifier: None where the network outputs pooled features or only feature maps.
        outputs: names of its outputs, as in `to_onnx`; if empty, the logits, or the features where
            there is no classifier.
    """

    stem: tuple[Convolution, ...]
    stages: tuple[tuple[Block, ...], ...]
    classifier: Linear | None
    outputs: tuple[str, ...] = ()

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return int(self.stem[0].weight.shape[1])

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each feature map, the stem's first."""
        last = [self.stem[-1], *(stage[-1].conv3 for stage in self.stages)]
        return tuple(len(conv.bias) for conv in last)

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier; 0 without one."""
        return len(self.classifier.bias) if self.classifier else 0

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks, in the order in which they run."""
        return tuple(block for stage in self.stages for block in stage)

    @property
    def radix(self) -> int:
        """How many splits a block's attention weighs: 0 without attention, 1 for a gate."""
        first = next(iter(self.blocks), None)
        attention = first and first.groups[0].attention
        return attention.radix if attention else 0


def fold(
    architecture: Architecture,
    state_dict: Mapping[str, NDArray[Any]],
    *,
    form: Form = "branches",
    output_stride: int = 32,
    dilation: Dilation = "official",
    stages: int = 4,
    dtype: DTypeLike = np.float32,
) -> FoldedNetwork:
    """Fold these weights into an inference network.

    The images' channels, the number of classes and whether there is a classifier follow from the
    arrays.

    Args:
        architecture: of the weights.
        state_dict: arrays by official key, of the shapes that belong to the architecture. They are
            not changed; the result may share memory with them.
        form: how the 3x3 convolution is computed: "branches", several dense convolutions, or
            "grouped", one grouped convolution. Without attention (radix 0) it is always grouped.
        output_stride, dilation: those with which the network was trained, as in `ResNeSt`.
        stages: how many of the four stages to take, for a backbone that ends earlier.
        dtype: of the result. Everything is computed in float64 and rounded once.

    Raises:
        InputError: an argument is outside its range.
    """
    if form not in ("branches", "grouped"):
        raise InputError(f"form must be branches or grouped, got {form!r}")
    folding = _Folding(architecture, state_dict, form, np.dtype(dtype))
    shapes = architecture.stages(output_stride=output_stride, dilation=dilation)
    return FoldedNetwork(
        stem=folding.stem(),
        stages=tuple(
            tuple(folding.block(shape) for shape in blocks) for blocks in [*shapes][:stages]
        ),
        classifier=folding.classifier(),
    )


class _Folding:
    def __init__(
        self,
        architecture: Architecture,
        arrays: Mapping[str, NDArray[Any]],
        form: Form,
        dtype: np.dtype[Any],
    ) -> None:
        self._architecture = architecture
        self._arrays = arrays
        self._form = form
        self._dtype = dtype

    def stem(self) -> tuple[Convolution, ...]:
        if not self._architecture.deep_stem:
            return (self._conv("conv1", "bn1", stride=2, padding=3),)
        return (
            self._conv("conv1.0", "conv1.1", stride=2, padding=1),
            self._conv("conv1.3", "conv1.4", padding=1),
            self._conv("conv1.6", "bn1", padding=1),
        )

    def block(self, shape: BlockShape) -> Block:
        name = shape.name
        return Block(
            name=name,
            groups=self._groups(shape),
            conv3=self._conv(f"{name}.conv3", f"{name}.bn3"),
            shortcut=self._shortcut(shape),
        )

    def classifier(self) -> Linear | None:
        if "fc.weight" not in self._arrays:
            return None
        return Linear(weight=self._rounded("fc.weight"), bias=self._rounded("fc.bias"))

    def _groups(self, shape: BlockShape) -> tuple[SplitAttention, ...]:
        radix, cardinality = self._architecture.radix, self._architecture.cardinality
        name, conv2 = shape.name, f"{shape.name}.conv2"
        pool = AveragePool(size=3, stride=shape.stride, padding=(1, 1)) if shape.pool else None
        before, after = (pool, None) if self._architecture.avd_first else (None, pool)
        whole = Branch(
            conv1=self._conv(f"{name}.conv1", f"{name}.bn1"),
            pool=before,
            conv2=self._conv(
                f"{conv2}.conv" if radix else conv2,
                f"{conv2}.bn0" if radix else f"{name}.bn2",
                stride=1 if shape.pool else shape.stride,
                padding=shape.dilation,
                dilation=shape.dilation,
                groups=max(radix, 1) * cardinality,
            ),
        )
        if radix == 0:
            return (SplitAttention(branches=(whole,), attention=None, pool=after),)
        attention = Attention(
            radix=radix,
            fc1=self._conv(f"{conv2}.fc1", f"{conv2}.bn1", groups=cardinality),
            fc2=self._relative_logits(f"{conv2}.fc2"),
        )
        if self._form == "grouped":
            return (SplitAttention(branches=(whole,), attention=attention, pool=after),)
        # Radix-major: branch r * K + k is split r of cardinal group k.
        branches = [
            Branch(conv1=conv1, pool=before, conv2=conv2)
            for conv1, conv2 in zip(
                _cut(whole.conv1, radix * cardinality),
                _cut(whole.conv2, radix * cardinality),
                strict=True,
            )
        ]
        layers = zip(
            *(_cut(layer, cardinality) for layer in (attention.fc1, *attention.fc2)), strict=True
        )
        return tuple(
            SplitAttention(
                branches=tuple(branches[k::cardinality]),
                attention=Attention(radix=radix, fc1=fc1, fc2=tuple(fc2)),
                pool=after,
            )
            for k, (fc1, *fc2) in enumerate(layers)
        )

    def _relative_logits(self, name: str) -> tuple[Convolution, ...]:
        """The last dense layer, cut into one for each logit of `Attention`."""
        radix, cardinality = self._architecture.radix, self._architecture.cardinality
        weight, bias = self._exact(f"{name}.weight"), self._exact(f"{name}.bias")
        if radix == 1:
            return (self._convolution(weight, bias, groups=cardinality),)
        # Its outputs are cardinality-major: (K, R, C / K).
        weight_KRCD = weight.reshape(cardinality, radix, -1, weight.shape[1])
        bias_KRC = bias.reshape(cardinality, radix, -1)
        return tuple(
            self._convolution(
                (weight_KRCD[:, r] - weight_KRCD[:, -1]).reshape(-1, weight.shape[1], 1, 1),
                (bias_KRC[:, r] - bias_KRC[:, -1]).reshape(-1),
                groups=cardinality,
            )
            for r in range(radix - 1)
        )

    def _shortcut(self, shape: BlockShape) -> tuple[AveragePool | Convolution, ...]:
        name = f"{shape.name}.downsample"
        if shape.stride == 1 and shape.in_channels == shape.out_channels:
            return ()
        if not self._architecture.avg_down:
            return (self._conv(f"{name}.0", f"{name}.1", stride=shape.stride),)
        conv = self._conv(f"{name}.1", f"{name}.2")
        if shape.blur_shortcut:
            return AveragePool(size=2, stride=1, padding=(0, 1)), conv
        if shape.stride != 1:
            return AveragePool(size=shape.stride, stride=shape.stride, partial=True), conv
        return (conv,)

    def _conv(self, conv: str, norm: str, **geometry: int) -> Convolution:
        """The convolution of that name with the batch norm of that name folded into it."""
        bias = self._exact(f"{conv}.bias") if f"{conv}.bias" in self._arrays else 0.0
        scale = self._exact(f"{norm}.weight") / np.sqrt(
            self._exact(f"{norm}.running_var") + EPSILON
        )
        trained = np.asarray(self._arrays[f"{conv}.weight"])
        weight = np.empty(trained.shape, self._dtype)
        # NumPy casts in small pieces here; casting whole arrays to float64 takes ten times as long.
        np.multiply(
            trained,
            scale[:, None, None, None],
            out=weight,
            dtype=np.float64,
            casting="same_kind",
        )
        return self._convolution(
            weight,
            (bias - self._exact(f"{norm}.running_mean")) * scale + self._exact(f"{norm}.bias"),
            **geometry,
        )

    def _convolution(self, weight: Array, bias: Array, **geometry: int) -> Convolution:
        return Convolution(
            weight=weight.astype(self._dtype, copy=False),
            bias=bias.astype(self._dtype, copy=False),
            **geometry,
        )

    def _exact(self, key: str) -> NDArray[np.float64]:
        return np.asarray(self._arrays[key], np.float64)

    def _rounded(self, key: str) -> Array:
        return np.asarray(self._arrays[key], self._dtype)


def _cut(conv: Convolution, parts: int) -> list[Convolution]:
    """Dense convolutions that each give their part of the output channels of `conv`.

    They share its input if `conv` is dense, and have their own part of it if it has `parts` groups.
    """
    assert conv.groups in (1, parts)
    return [
        Convolution(
            weight=weight,
            bias=bias,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
        )
        for weight, bias in zip(
            np.split(conv.weight, parts), np.split(conv.bias, parts), strict=True
        )
    ]
