"""The exact inference rewrite: the same outputs from fewer and plainer operations.

Four rewrites, none of which changes the function:

- In evaluation batch norm is a fixed scale and shift, so it goes into the convolution before it.
- A softmax does not notice what is subtracted from all of its logits. Subtracting the last split's
  saves that part of the last dense layer; with radix 2 a single sigmoid is left.
- A grouped convolution is many dense ones side by side. With the 1x1 convolution before it cut into
  the same groups, a block is R*K independent branches: the paper's figure 2, as it is drawn.
- An average of a weighted sum is the weighted sum of averages. Where a block averages after its
  attention, the splits are averaged first, and a quarter of the pixels is left to be weighted.

Shapes: B batch, R radix, K cardinality, C channels of the block's output, D of the attention's
hidden layer, H and W rows and columns.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from splitattn.errors import InputError
from splitattn.nn.resnest import Bottleneck, ResNeSt
from splitattn.nn.split_attention import SplitAttention2d

Form = Literal["branches", "grouped"]

# What each engine runs faster, or as fast, by benchmarks/inference_cpu_*.json (but for int8 in ONNX
# Runtime where there is AMX, see docs/log.md); "cuda" is expected and not measured.
FORMS: dict[str, Form] = {
    "torch": "branches",
    "compile": "branches",
    "onnxruntime": "branches",
    "openvino": "branches",
    "cuda": "grouped",
}


class FusedResNeSt(nn.Module):
    """What `fuse` makes of a `ResNeSt`; evaluation only.

    Input (B, in_chans, H, W) normalized floats; output (B, num_classes) logits, or pooled features
    if the network had no classifier.
    """

    def __init__(self, model: ResNeSt, form: Form) -> None:
        super().__init__()
        self.num_classes = model.num_classes
        self.stem = _folded(model.conv1, model.bn1, model.relu, model.maxpool)
        self.stages = nn.Sequential(
            *(_FusedBottleneck(block, form) for stage in model.stages() for block in stage)
        )
        self.avgpool = model.avgpool
        self.fc = model.fc

    def forward(self, x: Tensor) -> Tensor:
        features = self.avgpool(self.stages(self.stem(x))).flatten(1)
        logits: Tensor = self.fc(features)
        return logits


def fuse(model: ResNeSt, *, target: str = "torch", form: Form | None = None) -> FusedResNeSt:
    """The exact inference rewrite of `model`.

    Outputs are those of `model.eval()` up to rounding: the weights are computed in float64 and
    rounded once. `splitattn.parity` measures the difference.

    Args:
        model: stays as it is; the result shares nothing with it.
        target: the engine that will run the result; it decides between the two forms of the 3x3
            convolution.
        form: decides it instead: "branches" of dense convolutions, or one "grouped" convolution.

    Raises:
        InputError: there is no such target or form, or `model` is fused already or no ResNeSt.
    """
    if isinstance(model, FusedResNeSt):
        raise InputError("fuse needs a network with batch norm, got one that is already fused")
    if not isinstance(model, ResNeSt):
        raise InputError(f"fuse needs a ResNeSt, got {type(model).__name__}")
    if target not in FORMS:
        raise InputError(f"target must be one of {', '.join(FORMS)}, got {target!r}")
    if form not in (None, "branches", "grouped"):
        raise InputError(f"form must be branches or grouped, got {form!r}")
    fused = FusedResNeSt(deepcopy(model).double().eval(), form or FORMS[target])
    fused.to(model.bn1.weight.dtype).eval().requires_grad_(False)
    # Convolutions take the format of their weights, so any input soon is in channels_last.
    return fused.to(memory_format=torch.channels_last)


class _FusedBottleneck(nn.Module):
    def __init__(self, block: nn.Module, form: Form) -> None:
        super().__init__()
        assert isinstance(block, Bottleneck)
        nothing = nn.Identity()
        before, after = (block.avd, nothing) if block.avd_first else (nothing, block.avd)
        conv1 = _folded(block.conv1, block.bn1, block.relu, before)
        if isinstance(block.conv2, SplitAttention2d):
            if block.conv2.average is not None:
                after = nn.AvgPool2d(3, block.conv2.average, padding=1)
            self.conv2 = _split_attention(conv1, block.conv2, form, after)
        else:
            assert block.bn2 is not None
            self.conv2 = _folded(*conv1, block.conv2, block.bn2, block.relu, after)
        self.conv3 = _folded(block.conv3, block.bn3)
        self.shortcut = _folded(block.downsample)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv3(self.conv2(x)).add_(self.shortcut(x)))
        return out


class _Branches(nn.Module):
    """One cardinal group: a dense branch for each split, joined by attention."""

    def __init__(
        self, branches: list[nn.Sequential], attention: "_Attention", average: nn.Module
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.attention = attention
        self.average = average

    def forward(self, x: Tensor) -> Tensor:
        splits = [branch(x) for branch in self.branches]
        out: Tensor = self.attention(splits, [self.average(split) for split in splits])
        return out


class _CardinalGroups(nn.Module):
    """Independent groups whose outputs (B, C/K, H, W) stand one after another."""

    def __init__(self, groups: list[_Branches]) -> None:
        super().__init__()
        self.groups = nn.ModuleList(groups)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([group(x) for group in self.groups], 1)


class _Grouped(nn.Module):
    """All groups and splits in one convolution, whose output is taken apart."""

    def __init__(
        self,
        convolutions: nn.Sequential,
        radix: int,
        attention: "_Attention",
        average: nn.Module,
    ) -> None:
        super().__init__()
        self.convolutions = convolutions
        self.radix = radix
        self.attention = attention
        self.average = average

    def forward(self, x: Tensor) -> Tensor:
        maps = self.convolutions(x)
        averages = self.average(maps)
        out: Tensor = self.attention(maps.chunk(self.radix, 1), averages.chunk(self.radix, 1))
        return out


class _Attention(nn.Module):
    """Weights from splits, R maps (B, C, H, W); with them, the blend of maps of any one size.

    Args:
        fc1: pooled features (B, C, 1, 1) to (B, D, 1, 1).
        fc2: for each split but the last, (B, D, 1, 1) to its logits (B, C, 1, 1) less those of the
            last one; with radix 1, to the logits of its gate.
    """

    def __init__(self, fc1: nn.Conv2d, fc2: list[nn.Conv2d]) -> None:
        super().__init__()
        self.fc1 = fc1
        self.fc2 = nn.ModuleList(fc2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, splits: Sequence[Tensor], blended: Sequence[Tensor]) -> Tensor:
        pooled = splits[0].mean((2, 3), keepdim=True)
        for split in splits[1:]:
            pooled = pooled + split.mean((2, 3), keepdim=True)
        hidden = self.relu(self.fc1(pooled))
        logits: list[Tensor] = [layer(hidden) for layer in self.fc2]
        if len(blended) == 1:
            return blended[0] * logits[0].sigmoid()
        if len(blended) == 2:
            first, last = blended
            return last + logits[0].sigmoid() * (first - last)
        *others, out = (x * share for x, share in zip(blended, _shares(logits), strict=True))
        for other in others:
            out = out + other
        return out


def _shares(logits: list[Tensor]) -> list[Tensor]:
    """The softmax over `logits` and a last one of zero: in single steps, which any engine has."""
    highest = torch.zeros_like(logits[0])
    for logit in logits:
        highest = torch.maximum(highest, logit)
    powers = [(logit - highest).exp() for logit in logits] + [(-highest).exp()]
    total = powers[0]
    for power in powers[1:]:
        total = total + power
    return [power / total for power in powers]


def _split_attention(
    conv1: nn.Sequential, block: SplitAttention2d, form: Form, average: nn.Module
) -> nn.Module:
    """The block from its input to the end; `conv1` is all that comes before the 3x3 part."""
    first, *between = conv1
    conv2 = fuse_conv_bn_eval(block.conv, block.bn0)
    fc1 = fuse_conv_bn_eval(block.fc1, block.bn1)
    fc2 = _relative_logits(block)
    if form == "grouped":
        convolutions = nn.Sequential(*conv1, conv2, block.relu)
        return _Grouped(convolutions, block.radix, _Attention(fc1, fc2), average)
    # Radix-major: branch r * K + k is split r of cardinal group k.
    branches = [
        nn.Sequential(entry, *between, spatial, block.relu)
        for entry, spatial in zip(
            *(_cut(conv, block.radix * block.cardinality) for conv in (first, conv2)), strict=True
        )
    ]
    attentions = zip(*(_cut(layer, block.cardinality) for layer in (fc1, *fc2)), strict=True)
    groups = [
        _Branches(branches[k :: block.cardinality], _Attention(own_fc1, own_fc2), average)
        for k, (own_fc1, *own_fc2) in enumerate(attentions)
    ]
    return groups[0] if len(groups) == 1 else _CardinalGroups(groups)


def _relative_logits(block: SplitAttention2d) -> list[nn.Conv2d]:
    """The last dense layer, taken apart as `_Attention` needs it."""
    if block.radix == 1:
        return [block.fc2]
    assert block.fc2.bias is not None
    # Its outputs are cardinality-major: (K, R, C / K).
    grouped = (block.cardinality, block.radix, -1)
    weight = block.fc2.weight.view(*grouped, *block.fc2.weight.shape[1:])
    bias = block.fc2.bias.view(grouped)
    return [
        _convolution(
            block.fc2,
            (weight[:, split] - weight[:, -1]).flatten(0, 1),
            (bias[:, split] - bias[:, -1]).flatten(),
            groups=block.cardinality,
        )
        for split in range(block.radix - 1)
    ]


def _cut(conv: nn.Module, parts: int) -> list[nn.Conv2d]:
    """Dense convolutions that each give their part of the output channels of `conv`.

    They share its input if `conv` is dense, and have their own part of it if it has `parts` groups.
    """
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    return [
        _convolution(conv, weight, bias)
        for weight, bias in zip(conv.weight.chunk(parts), conv.bias.chunk(parts), strict=True)
    ]


def _convolution(like: nn.Conv2d, weight: Tensor, bias: Tensor, groups: int = 1) -> nn.Conv2d:
    """A convolution with the strides of `like`, which is square, as all here are."""
    assert not isinstance(like.padding, str)
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        like.kernel_size[0],
        like.stride[0],
        like.padding[0],
        like.dilation[0],
        groups,
        device="meta",
    )
    conv.weight, conv.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return conv


def _folded(*modules: nn.Module | None) -> nn.Sequential:
    """The modules one after another, each batch norm folded into the convolution before it.

    What does nothing is left out.
    """
    flat = [
        leaf
        for module in modules
        for leaf in (module if isinstance(module, nn.Sequential) else [module])
        if leaf is not None and not isinstance(leaf, nn.Identity)
    ]
    folded: list[nn.Module] = []
    for module in flat:
        if isinstance(module, nn.BatchNorm2d):
            conv = folded.pop()
            assert isinstance(conv, nn.Conv2d)
            folded.append(fuse_conv_bn_eval(conv, module))
        else:
            folded.append(module)
    return nn.Sequential(*folded)
