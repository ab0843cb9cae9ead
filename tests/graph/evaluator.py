"""Compute the folded network in plain NumPy: the reference for its parts."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from splitattn.graph.folding import (
    Attention,
    AveragePool,
    Block,
    Branch,
    Convolution,
    FoldedNetwork,
    SplitAttention,
)

Maps = NDArray[np.float64]


def run(network: FoldedNetwork, images: Maps) -> Maps:
    """The logits, or the pooled features if there is no classifier."""
    features = feature_maps(network, images)[-1].mean((2, 3))
    if network.classifier is None:
        return features
    return features @ network.classifier.weight.T + network.classifier.bias


def feature_maps(network: FoldedNetwork, images: Maps) -> list[Maps]:
    x = images
    for conv in network.stem:
        x = relu(convolve(x, conv))
    maps = [x]
    x = windows(pad(x, 1, 1, -np.inf), 3, 2).max((-2, -1))
    for stage in network.stages:
        for each in stage:
            x = block(each, x)
        maps.append(x)
    return maps


def block(own: Block, x: Maps) -> Maps:
    shortcut = x
    for step in own.shortcut:
        shortcut = (
            average(shortcut, step) if isinstance(step, AveragePool) else convolve(shortcut, step)
        )
    middle = np.concatenate([split_attention(group, x) for group in own.groups], 1)
    return relu(convolve(middle, own.conv3) + shortcut)


def split_attention(group: SplitAttention, x: Maps) -> Maps:
    maps = [branch(each, x) for each in group.branches]
    if group.attention is None:
        return average(maps[0], group.pool)
    if len(maps) < group.attention.radix:
        maps = np.split(maps[0], group.attention.radix, 1)
    return sum(
        share * average(split, group.pool)
        for share, split in zip(shares(group.attention, maps), maps, strict=True)
    )


def branch(own: Branch, x: Maps) -> Maps:
    return relu(convolve(average(relu(convolve(x, own.conv1)), own.pool), own.conv2))


def shares(attention: Attention, splits: list[Maps]) -> list[Maps]:
    mean = sum(splits).mean((2, 3), keepdims=True)
    hidden = relu(convolve(mean, attention.fc1))
    logits = [convolve(hidden, layer) for layer in attention.fc2]
    if attention.radix == 1:
        return [1 / (1 + np.exp(-logits[0]))]
    powers = np.exp([*logits, np.zeros_like(logits[0])])
    return [*(powers / powers.sum(0))]


def convolve(x: Maps, conv: Convolution) -> Maps:
    size = conv.weight.shape[2]
    seen = windows(pad(x, conv.padding, conv.padding), size, conv.stride, conv.dilation)
    parts = zip(np.split(seen, conv.groups, 1), np.split(conv.weight, conv.groups), strict=True)
    sums = [np.einsum("bihwyx,oiyx->bohw", own, weight, optimize=True) for own, weight in parts]
    return np.concatenate(sums, 1) + conv.bias[:, None, None]


def average(x: Maps, pool: AveragePool | None) -> Maps:
    if pool is None:
        return x
    if not pool.partial:
        return windows(pad(x, *pool.padding), pool.size, pool.stride).mean((-2, -1))
    beyond = [-(side - pool.size) % pool.stride for side in x.shape[2:]]
    wider = np.pad(x, ((0, 0), (0, 0), *((0, n) for n in beyond)), constant_values=np.nan)
    return np.nanmean(windows(wider, pool.size, pool.stride), (-2, -1))


def relu(x: Maps) -> Maps:
    return np.maximum(x, 0)


def pad(x: Maps, before: int, after: int, value: float = 0) -> Maps:
    return np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)), constant_values=value)


def windows(x: Maps, size: int, stride: int, dilation: int = 1) -> Maps:
    """The windows of a convolution or pool: (B, C, H, W, size, size)."""
    reach = dilation * (size - 1) + 1
    seen = sliding_window_view(x, (reach, reach), (2, 3))
    return seen[:, :, ::stride, ::stride, ::dilation, ::dilation]
