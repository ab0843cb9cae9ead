"""The gradient of a logit with respect to a feature map, in NumPy, through the last stages.

Only explanations of small images need it: one image, maps of a few places. So the code is simple
and not fast.

Shapes: C channels, H and W rows and columns, R radix, O output channels of a convolution.
"""

from collections.abc import Callable, Sequence
from typing import Any

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

Array = NDArray[Any]
# An operation's output, and the function from the output's gradient to the input's.
Backward = Callable[[Array], Array]
Step = tuple[Array, Backward]


def logit_gradient(network: FoldedNetwork, stage: int, map_CHW: Array, label: int) -> Array:
    """The gradient of one logit with respect to the output of a stage.

    Args:
        network: must have a classifier.
        stage: counted from 1; the stages after it are computed.
        map_CHW: the stage's output for one image.
        label: index of the logit.

    Returns:
        (C, H, W) in the precision of the map.
    """
    assert network.classifier is not None
    steps: list[Callable[[Array], Step]] = [
        lambda x, block=block: _block(block, x)  # type: ignore[misc]
        for blocks in network.stages[stage:]
        for block in blocks
    ]
    x, back = _chain(map_CHW, steps)
    weight = network.classifier.weight[label].astype(x.dtype)
    places = x.shape[1] * x.shape[2]
    return back(np.broadcast_to(weight[:, None, None] / places, x.shape))


def _chain(x: Array, steps: Sequence[Callable[[Array], Step]]) -> Step:
    """One step after another."""
    backs = []
    for step in steps:
        x, back = step(x)
        backs.append(back)

    def through_all(gradient: Array) -> Array:
        for back in reversed(backs):
            gradient = back(gradient)
        return gradient

    return x, through_all


def _block(block: Block, x: Array) -> Step:
    groups = [_split_attention(group, x) for group in block.groups]
    joined = np.concatenate([out for out, _ in groups])
    residual, back_of_conv3 = _convolution(block.conv3, joined)
    shortcut, back_of_shortcut = _chain(
        x,
        [
            lambda y, step=step: (  # type: ignore[misc]
                _average(step, y) if isinstance(step, AveragePool) else _convolution(step, y)
            )
            for step in block.shortcut
        ],
    )
    out, back_of_relu = _relu(residual + shortcut)

    def back(gradient: Array) -> Array:
        gradient = back_of_relu(gradient)
        parts = np.split(back_of_conv3(gradient), len(groups))
        total = back_of_shortcut(gradient)
        for (_, back_of_group), part in zip(groups, parts, strict=True):
            total = total + back_of_group(part)
        return total

    return out, back


def _split_attention(group: SplitAttention, x: Array) -> Step:
    branches = [_branch(branch, x) for branch in group.branches]
    maps = np.concatenate([out for out, _ in branches])

    def back_of_branches(gradient: Array) -> Array:
        parts = np.split(gradient, len(branches))
        total = np.zeros_like(x)
        for (_, back_of_branch), part in zip(branches, parts, strict=True):
            total += back_of_branch(part)
        return total

    averaged, back_of_pool = _average(group.pool, maps)
    if group.attention is None:
        return averaged, lambda gradient: back_of_branches(back_of_pool(gradient))
    radix = group.attention.radix
    splits_RCHW = averaged.reshape(radix, -1, *averaged.shape[1:])
    pooled = maps.reshape(radix, -1, *maps.shape[1:]).sum(0).mean((1, 2), keepdims=True)
    shares_RCHW, back_of_shares = _shares(group.attention, pooled)
    places = maps.shape[1] * maps.shape[2]

    def back(gradient: Array) -> Array:
        to_splits = (shares_RCHW * gradient).reshape(averaged.shape)
        to_shares = (splits_RCHW * gradient).sum((2, 3), keepdims=True)
        to_pooled = np.tile(back_of_shares(to_shares), (radix, 1, 1)) / places
        return back_of_branches(back_of_pool(to_splits) + to_pooled)

    return (shares_RCHW * splits_RCHW).sum(0), back


def _shares(attention: Attention, pooled: Array) -> Step:
    """The shares (R, C, 1, 1) of the splits, from the mean over pixels of their sum (C, 1, 1)."""
    hidden, back_of_hidden = _chain(
        pooled, [lambda x: _convolution(attention.fc1, x), lambda x: _relu(x)]
    )
    layers = [_convolution(layer, hidden) for layer in attention.fc2]
    logits = np.stack([out for out, _ in layers])
    if attention.radix == 1:
        shares = 1 / (1 + np.exp(-logits))
    else:
        with_last = np.concatenate([logits, np.zeros_like(logits[:1])])
        powers = np.exp(with_last - with_last.max(0))
        shares = powers / powers.sum(0)

    def back(gradient: Array) -> Array:
        # A gate's complement, 1 - g, is not used and has gradient zero; a softmax uses all shares.
        mean = (shares * gradient).sum(0)
        to_logits = (shares * (gradient - mean))[: len(layers)]
        to_hidden = sum(
            back_of_layer(part) for (_, back_of_layer), part in zip(layers, to_logits, strict=True)
        )
        return back_of_hidden(np.asarray(to_hidden))

    return shares, back


def _branch(branch: Branch, x: Array) -> Step:
    return _chain(
        x,
        [
            lambda y: _convolution(branch.conv1, y),
            _relu,
            lambda y: _average(branch.pool, y),
            lambda y: _convolution(branch.conv2, y),
            _relu,
        ],
    )


def _relu(x: Array) -> Step:
    return np.maximum(x, 0), lambda gradient: gradient * (x > 0)


def _convolution(conv: Convolution, x: Array) -> Step:
    size, stride, groups = conv.weight.shape[2], conv.stride, conv.groups
    weight_GOK = conv.weight.reshape(groups, len(conv.bias) // groups, -1)
    padding = (conv.padding, conv.padding)
    windows = _windows(x, size, stride, padding, conv.dilation)
    rows, columns = windows.shape[1:3]
    seen_GKP = windows.transpose(0, 3, 4, 1, 2).reshape(groups, -1, rows * columns)
    out = (weight_GOK @ seen_GKP).reshape(-1, rows, columns) + conv.bias[:, None, None]

    def back(gradient: Array) -> Array:
        to_seen = weight_GOK.transpose(0, 2, 1) @ gradient.reshape(groups, -1, rows * columns)
        to_windows = to_seen.reshape(len(x), size, size, rows, columns)
        return _gathered(to_windows, x.shape, stride, padding, conv.dilation)

    return out, back


def _average(pool: AveragePool | None, x: Array) -> Step:
    if pool is None:
        return x, lambda gradient: gradient
    before, after = pool.padding
    counts: Array = np.ones(1)
    if pool.partial:  # the last windows may reach beyond the map; values outside do not count
        height, width = x.shape[1:]
        after = max((-(side - pool.size)) % pool.stride for side in (height, width))
        ones = np.ones((1, height, width), x.dtype)
        inside = _windows(ones, pool.size, pool.stride, (before, after))
        counts = inside.sum((3, 4)) / pool.size**2
    padding = (before, after)
    out = _windows(x, pool.size, pool.stride, padding).mean((3, 4)) / counts

    def back(gradient: Array) -> Array:
        shared = gradient / counts / pool.size**2
        to_windows = np.broadcast_to(
            shared[:, None, None], (len(x), pool.size, pool.size, *shared.shape[1:])
        )
        return _gathered(to_windows, x.shape, pool.stride, padding)

    return out, back


def _windows(
    x: Array, size: int, stride: int, padding: tuple[int, int], dilation: int = 1
) -> Array:
    """(C, H, W) to the windows (C, H', W', size, size), with zeros around the map."""
    reach = dilation * (size - 1) + 1
    padded = np.pad(x, ((0, 0), padding, padding))
    windows = sliding_window_view(padded, (reach, reach), (1, 2))
    return windows[:, ::stride, ::stride, ::dilation, ::dilation]


def _gathered(
    to_windows: Array,
    shape: tuple[int, ...],
    stride: int,
    padding: tuple[int, int],
    dilation: int = 1,
) -> Array:
    """Add the gradients of windows (C, size, size, H', W') at the places of the map they cover."""
    channels, height, width = shape
    before, after = padding
    size, _, rows, columns = to_windows.shape[1:]
    total = np.zeros((channels, height + before + after, width + before + after), to_windows.dtype)
    for row in range(size):
        for column in range(size):
            top, left = row * dilation, column * dilation
            down = slice(top, top + stride * (rows - 1) + 1, stride)
            across = slice(left, left + stride * (columns - 1) + 1, stride)
            total[:, down, across] += to_windows[:, row, column]
    return total[:, before : before + height, before : before + width]
