"""The folded inference network of `graph.folding`, as PyTorch modules.

Shapes: B batch, R radix, K cardinality, C channels of the block's output, D of the attention's
hidden layer, H and W rows and columns.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from splitattn.errors import InputError
from splitattn.graph import folding
from splitattn.graph.folding import EPSILON, FoldedNetwork, Form, fold
from splitattn.nn.backbone import Backbone
from splitattn.nn.resnest import ResNeSt


class FusedResNeSt(nn.Module):
    """A folded network as a PyTorch module; evaluation only.

    Args:
        network: the folded network.
        head: replaces its classifier; maps pooled features (B, C) to outputs.

    Input (B, in_chans, H, W) normalized floats; output (B, num_classes) logits, or pooled features
    if there is neither a classifier nor a head.
    """

    def __init__(self, network: FoldedNetwork, *, head: nn.Module | None = None) -> None:
        super().__init__()
        self.num_classes = network.num_classes
        self.output_names = network.outputs
        self.stem = nn.Sequential(*_stem(network), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential(
            *(_FusedBottleneck(block) for stage in network.stages for block in stage)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = _classifier(network) if head is None else head
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.avgpool(self.stages(self.stem(x))).flatten(1)
        logits: Tensor = self.fc(features)
        return logits

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs that the folded network's `outputs` name; see `to_onnx` for the names.

        Input as in `forward`.
        """
        *convolutions, max_pool = self.stem
        for layer in convolutions:
            x = layer(x)
        found, shares = {"stem": x}, []
        x = max_pool(x)
        for block in cast("Iterable[_FusedBottleneck]", self.stages):
            x, shares_of_block = block.with_shares(x)
            shares.append(shares_of_block)
            found[block.name.partition(".")[0]] = x
        if shares[0]:
            found["shares"] = torch.stack([_mean_shares(groups) for groups in shares], 1)
        found["features"] = self.avgpool(x).flatten(1)
        found["logits"] = self.fc(found["features"])
        if "class_maps" in self.output_names:
            weight = cast("nn.Linear", self.fc).weight
            found["class_maps"] = nn.functional.conv2d(x, weight[:, :, None, None])
        return tuple(found[name] for name in self.output_names)


class FusedBackbone(nn.Module):
    """A folded `Backbone`, as `fuse` returns it; evaluation only.

    Attributes:
        out_indices, channels, strides: those of the backbone.

    Input (B, in_chans, H, W) normalized floats; output the backbone's list of feature maps.
    """

    def __init__(self, backbone: Backbone, network: FoldedNetwork) -> None:
        super().__init__()
        self.out_indices = backbone.out_indices
        self.channels = backbone.channels
        self.strides = backbone.strides
        self.stem = nn.Sequential(*_stem(network))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_FusedBottleneck(block) for block in stage)) for stage in network.stages
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = [x]
        x = self.maxpool(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [maps[index] for index in self.out_indices]


@overload
def fuse(model: ResNeSt, *, form: Form | None = ...) -> FusedResNeSt: ...


@overload
def fuse(model: Backbone, *, form: Form | None = ...) -> FusedBackbone: ...


def fuse(model: ResNeSt | Backbone, *, form: Form | None = None) -> FusedResNeSt | FusedBackbone:
    """Fold `model` into a faster network for inference; `graph.folding` describes the steps.

    Outputs equal those of `model.eval()` up to rounding: folded weights are computed in float64 and
    rounded once. `splitattn.parity` measures the difference.

    Args:
        model: is not changed; the result shares no memory with it.
        form: how the 3x3 convolution is computed: "branches", several dense convolutions, or
            "grouped", one grouped convolution. None chooses branches on a CPU, else grouped.

    Raises:
        InputError: the form is unknown, `model` is fused already, or it is neither a ResNeSt nor a
            Backbone.
    """
    if isinstance(model, FusedResNeSt | FusedBackbone):
        raise InputError("fuse needs a network with batch norm, got one that is already fused")
    if not isinstance(model, ResNeSt | Backbone):
        raise InputError(f"fuse needs a ResNeSt or a Backbone, got {type(model).__name__}")
    if form not in (None, "branches", "grouped"):
        raise InputError(f"form must be branches or grouped, got {form!r}")
    weight = model.bn1.weight
    network = fold(
        model.architecture,
        _arrays(model),
        form=form or ("branches" if weight.device.type == "cpu" else "grouped"),
        output_stride=model.output_stride,
        dilation=model.dilation,
        stages=len([*model.stages()]),
        dtype=np.float64,
    )
    fused: FusedResNeSt | FusedBackbone
    if isinstance(model, Backbone):
        fused = FusedBackbone(model, network)
    else:
        fused = FusedResNeSt(network, head=deepcopy(model.fc))
        fused.num_classes = model.num_classes
    fused.to(weight.device, weight.dtype).eval().requires_grad_(False)
    # Convolutions output the memory format of their weights, whatever the input's is.
    return fused.to(memory_format=torch.channels_last)


def _arrays(model: nn.Module) -> dict[str, NDArray[np.float64]]:
    """The state dict in float64."""
    arrays = {key: value.double().cpu().numpy() for key, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            # Folding adds one fixed epsilon; correct for modules that have another.
            key = f"{name}.running_var"
            arrays[key] = arrays[key] + (module.eps - EPSILON)
    # The classifier may be any module, so it is copied and not folded.
    return {key: array for key, array in arrays.items() if not key.startswith("fc.")}


class _FusedBottleneck(nn.Module):
    def __init__(self, block: folding.Block) -> None:
        super().__init__()
        self.name = block.name
        self.groups = nn.ModuleList(_group(group) for group in block.groups)
        self.conv3 = _convolution(block.conv3)
        self.shortcut = nn.Sequential(
            *(
                _average(step) if isinstance(step, folding.AveragePool) else _convolution(step)
                for step in block.shortcut
            )
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self._joined(x, [group(x) for group in self.groups])

    def with_shares(self, x: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
        """The block's map, and the shares of the splits, (B, C, 1, 1) each, in each group."""
        pairs = [g.with_shares(x) for g in self.groups if isinstance(g, _FusedSplitAttention)]
        if not pairs:
            return self(x), []
        return self._joined(x, [blended for blended, _ in pairs]), [shares for _, shares in pairs]

    def _joined(self, x: Tensor, groups: list[Tensor]) -> Tensor:
        residual = self.conv3(groups[0] if len(groups) == 1 else torch.cat(groups, 1))
        out: Tensor = self.relu(residual.add_(self.shortcut(x)))
        return out


class _FusedSplitAttention(nn.Module):
    """`folding.SplitAttention` with attention, in either form."""

    def __init__(self, group: folding.SplitAttention, attention: folding.Attention) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_branch(branch) for branch in group.branches)
        self.radix = attention.radix
        self.attention = _Attention(attention)
        self.pool = _average(group.pool)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_shares(x)[0]

    def with_shares(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The blend and the shares of the splits; with two splits, only the first one's."""
        splits: Sequence[Tensor] = [branch(x) for branch in self.branches]
        averaged: Sequence[Tensor] = [self.pool(split) for split in splits]
        if len(splits) < self.radix:
            splits, averaged = (maps[0].chunk(self.radix, 1) for maps in (splits, averaged))
        shares: list[Tensor] = self.attention(splits)
        return _blended(averaged, shares), shares


class _Attention(nn.Module):
    """Shares (B, C, 1, 1) from R splits (B, C, H, W); with two splits, only the first one's."""

    def __init__(self, attention: folding.Attention) -> None:
        super().__init__()
        self.fc1 = _convolution(attention.fc1)
        self.fc2 = nn.ModuleList(_convolution(layer) for layer in attention.fc2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, splits: Sequence[Tensor]) -> list[Tensor]:
        pooled = splits[0].mean((2, 3), keepdim=True)
        for split in splits[1:]:
            pooled = pooled + split.mean((2, 3), keepdim=True)
        hidden = self.relu(self.fc1(pooled))
        logits: list[Tensor] = [layer(hidden) for layer in self.fc2]
        return [logits[0].sigmoid()] if len(splits) <= 2 else _shares(logits)


def _blended(maps: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
    if len(maps) == 1:
        return maps[0] * shares[0]
    if len(maps) == 2:
        first, last = maps
        return last + shares[0] * (first - last)
    *others, out = (x * share for x, share in zip(maps, shares, strict=True))
    for other in others:
        out = out + other
    return out


def _mean_shares(groups: Sequence[Sequence[Tensor]]) -> Tensor:
    """The mean over channels of all groups: (B, R - 1), or with radix 1 (B, 1)."""
    splits = [torch.cat(of_groups, 1).mean((1, 2, 3)) for of_groups in zip(*groups, strict=True)]
    return torch.stack(splits[: max(len(splits) - 1, 1)], 1)


def _shares(logits: list[Tensor]) -> list[Tensor]:
    """The softmax over `logits` and one more logit of zero, from operations any engine has."""
    highest = torch.zeros_like(logits[0])
    for logit in logits:
        highest = torch.maximum(highest, logit)
    powers = [(logit - highest).exp() for logit in logits] + [(-highest).exp()]
    total = powers[0]
    for power in powers[1:]:
        total = total + power
    return [power / total for power in powers]


def _classifier(network: FoldedNetwork) -> nn.Module:
    if network.classifier is None:
        return nn.Identity()
    classes, features = network.classifier.weight.shape
    linear = nn.Linear(features, classes, device="meta")
    arrays = (network.classifier.weight, network.classifier.bias)
    linear.weight, linear.bias = (nn.Parameter(torch.tensor(x)) for x in arrays)
    return linear


def _stem(network: FoldedNetwork) -> list[nn.Module]:
    return [layer for conv in network.stem for layer in (_convolution(conv), _relu())]


def _group(group: folding.SplitAttention) -> nn.Module:
    if group.attention is not None:
        return _FusedSplitAttention(group, group.attention)
    (branch,) = group.branches
    return nn.Sequential(_branch(branch), _average(group.pool))


def _branch(branch: folding.Branch) -> nn.Module:
    return nn.Sequential(
        _convolution(branch.conv1),
        _relu(),
        _average(branch.pool),
        _convolution(branch.conv2),
        _relu(),
    )


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def _average(pool: folding.AveragePool | None) -> nn.Module:
    if pool is None:
        return nn.Identity()
    before, after = pool.padding
    if before != after:
        pad = nn.ZeroPad2d((before, after, before, after))
        return nn.Sequential(pad, nn.AvgPool2d(pool.size, pool.stride))
    return nn.AvgPool2d(
        pool.size,
        pool.stride,
        padding=before,
        ceil_mode=pool.partial,
        count_include_pad=not pool.partial,
    )


def _convolution(conv: folding.Convolution) -> nn.Conv2d:
    outputs, inputs, size, _ = conv.weight.shape
    module = nn.Conv2d(
        inputs * conv.groups,
        outputs,
        size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        device="meta",
    )
    # Copies: branches are parts of one array.
    module.weight, module.bias = (nn.Parameter(torch.tensor(x)) for x in (conv.weight, conv.bias))
    return module
