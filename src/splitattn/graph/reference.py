"""The network as it was trained, in NumPy: slow and simple, the reference for every engine.

Nothing is folded or rewritten here, so an export can be checked without PyTorch.

Shapes: B batch, C channels, H and W rows and columns, R radix, K cardinality.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from splitattn.architectures import Architecture

Array = NDArray[Any]

_EPSILON = 1e-5  # of every batch norm


class Reference:
    """Evaluates a `ResNeSt` of output stride 32, one operation after another.

    Args:
        architecture: of the network.
        tensors: its state dict, by official key.
        dtype: of the arithmetic.

    Input (B, in_chans, H, W) normalized floats; output (B, num_classes) logits, or pooled features
    if `tensors` has no classifier.
    """

    def __init__(
        self,
        architecture: Architecture,
        tensors: Mapping[str, Array],
        *,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> None:
        self._architecture = architecture
        self._tensors = {key: np.asarray(value, dtype) for key, value in tensors.items()}
        self._dtype = dtype

    def __call__(self, images_BCHW: Array) -> Array:
        features: Array = self.maps(images_BCHW)[-1].mean((2, 3))
        if "fc.weight" not in self._tensors:
            return features
        logits: Array = features @ self._tensors["fc.weight"].T + self._tensors["fc.bias"]
        return logits

    def maps(self, images_BCHW: Array) -> list[Array]:
        """The map of each stage, for images as above."""
        x = self._stem(images_BCHW.astype(self._dtype))
        x = _max_pool(x)
        found = []
        for stage, depth in enumerate(self._architecture.layers):
            for block in range(depth):
                reduces = stage > 0 and block == 0
                x = self._block(x, f"layer{stage + 1}.{block}", reduces=reduces)
            found.append(x)
        return found

    def _stem(self, x: Array) -> Array:
        if not self._architecture.deep_stem:
            return _relu(self._norm(self._conv(x, "conv1", stride=2, padding=3), "bn1"))
        x = _relu(self._norm(self._conv(x, "conv1.0", stride=2, padding=1), "conv1.1"))
        x = _relu(self._norm(self._conv(x, "conv1.3", padding=1), "conv1.4"))
        return _relu(self._norm(self._conv(x, "conv1.6", padding=1), "bn1"))

    def _block(self, x: Array, name: str, *, reduces: bool) -> Array:
        """A bottleneck block; the first of every stage but one halves the resolution."""
        shape = self._architecture
        stride = 2 if reduces else 1
        pooled = shape.avd and reduces
        shortcut = self._shortcut(x, f"{name}.downsample", stride)
        x = _relu(self._norm(self._conv(x, f"{name}.conv1"), f"{name}.bn1"))
        if pooled and shape.avd_first:
            x = _average_pool(x, stride)
        x = self._spatial(x, name, 1 if pooled else stride)
        if pooled and not shape.avd_first:
            x = _average_pool(x, stride)
        x = self._norm(self._conv(x, f"{name}.conv3"), f"{name}.bn3")
        return _relu(x + shortcut)

    def _shortcut(self, x: Array, name: str, stride: int) -> Array:
        if self._architecture.avg_down and f"{name}.1.weight" in self._tensors:
            return self._norm(self._conv(_window_means(x, stride), f"{name}.1"), f"{name}.2")
        if f"{name}.0.weight" in self._tensors:
            return self._norm(self._conv(x, f"{name}.0", stride=stride), f"{name}.1")
        return x

    def _spatial(self, x: Array, name: str, stride: int) -> Array:
        shape = self._architecture
        if not shape.radix:
            conv = self._conv(
                x, f"{name}.conv2", stride=stride, padding=1, groups=shape.cardinality
            )
            return _relu(self._norm(conv, f"{name}.bn2"))
        name = f"{name}.conv2"
        groups = shape.radix * shape.cardinality
        conv = self._conv(x, f"{name}.conv", stride=stride, padding=1, groups=groups)
        splits_BCHW = _relu(self._norm(conv, f"{name}.bn0"))
        splits_BRCHW = splits_BCHW.reshape(len(x), shape.radix, -1, *splits_BCHW.shape[2:])
        pooled = splits_BRCHW.sum(1).mean((2, 3), keepdims=True)
        hidden = self._conv(pooled, f"{name}.fc1", groups=shape.cardinality)
        hidden = _relu(self._norm(hidden, f"{name}.bn1"))
        logits = self._conv(hidden, f"{name}.fc2", groups=shape.cardinality)
        if shape.radix == 1:
            gate: Array = splits_BCHW / (1 + np.exp(-logits))
            return gate
        # The layer's outputs are cardinality-major, the splits radix-major.
        logits_BKRC = logits.reshape(len(x), shape.cardinality, shape.radix, -1)
        powers = np.exp(logits_BKRC - logits_BKRC.max(2, keepdims=True))
        shares = (powers / powers.sum(2, keepdims=True)).transpose(0, 2, 1, 3)
        blended: Array = (splits_BRCHW * shares.reshape(len(x), shape.radix, -1, 1, 1)).sum(1)
        return blended

    def _conv(
        self, x: Array, name: str, *, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Array:
        weight = self._tensors[f"{name}.weight"]
        kernel = weight.shape[-1]
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        windows = sliding_window_view(x, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]
        batch, _, height, width = windows.shape[:4]
        columns = windows.transpose(0, 1, 4, 5, 2, 3).reshape(batch, groups, -1, height * width)
        out: Array = (weight.reshape(groups, len(weight) // groups, -1) @ columns).reshape(
            batch, len(weight), height, width
        )
        bias = self._tensors.get(f"{name}.bias")
        return out if bias is None else out + bias[:, None, None]

    def _norm(self, x: Array, name: str) -> Array:
        weight, bias, mean, variance = (
            self._tensors[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        normalized: Array = (x - mean) / np.sqrt(variance + self._dtype(_EPSILON)) * weight + bias
        return normalized


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _max_pool(x: Array) -> Array:
    """3x3 with stride 2, padded by one. The input is never negative, so zeros can pad."""
    windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    pooled: Array = windows[:, :, ::2, ::2].max((4, 5))
    return pooled


def _average_pool(x: Array, stride: int) -> Array:
    """3x3, padded by one; the padding counts as zeros."""
    windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    pooled: Array = windows[:, :, ::stride, ::stride].mean((4, 5))
    return pooled


def _window_means(x: Array, side: int) -> Array:
    """Means of windows that do not overlap; the last ones may hold fewer values."""
    if side == 1:
        return x
    for axis in (2, 3):
        starts = np.arange(0, x.shape[axis], side)
        counts = np.minimum(side, x.shape[axis] - starts).astype(x.dtype)
        sums = np.add.reduceat(x, starts, axis)
        x = sums / (counts[:, None] if axis == 2 else counts)
    return x
