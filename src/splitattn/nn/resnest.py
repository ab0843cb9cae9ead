"""The network: a stem, four stages of bottleneck blocks, a classifier.

Module names give the official state-dict keys (`conv1.0.weight`, `layer1.0.conv2.fc1.weight`, ...).
With every idea of the paper switched off, keys and outputs are those of torchvision's ResNet.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from splitattn.architectures import Architecture, Dilation
from splitattn.errors import InputError, check_number, check_whole
from splitattn.nn.batch_norm import BatchNorm2d
from splitattn.nn.drop_block import DropBlock2d
from splitattn.nn.freezing import Freezable, freeze
from splitattn.nn.split_attention import SplitAttention2d

EXPANSION = 4


class DropPath(Freezable):
    """Stochastic depth (arXiv 1603.09382): skips the residual branch of random images in training.

    Branches that are kept are divided by the probability of keeping one. Random numbers are drawn
    as in torchvision's `StochasticDepth` in mode "row", so the same seed drops the same images.

    Args:
        p: probability of skipping the branch of an image, at least 0 and below 1.

    Input and output (B, C, H, W).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = 1 - self.p
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(kept).div_(kept)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3 Split-Attention, 1x1 expand, and a shortcut around them (paper figure 2).

    Args:
        in_channels: channels of the input.
        planes: nominal bottleneck channels; the output has four times as many.
        architecture: which of the paper's ideas are on.
        stride: spatial reduction of the block.
        dilation: of the 3x3 convolution.
        pool: if the architecture has `avd`, the block has a 3x3 average pooling with its stride,
            even if that is 1.
        blur_shortcut: the shortcut has a 2x2 average pooling of stride 1, with zero padding at the
            bottom and the right edge.
        drop_path: probability of skipping the residual branch of an image while training.
        drop_block: share of the feature maps that DropBlock removes while training.

    Input (B, in_channels, H, W), output (B, 4 * planes, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        planes: int,
        architecture: Architecture,
        *,
        stride: int = 1,
        dilation: int = 1,
        pool: bool = False,
        blur_shortcut: bool = False,
        drop_path: float = 0.0,
        drop_block: float = 0.0,
    ) -> None:
        super().__init__()
        cardinality = architecture.cardinality
        width = architecture.group_width(planes)
        out_channels = planes * EXPANSION
        pool = pool and architecture.avd
        conv_stride = 1 if pool else stride
        # With no layer in between, the pooling becomes part of the blend.
        blended = pool and architecture.radix > 0 and not (architecture.avd_first or drop_block)

        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2: nn.Module
        self.bn2: nn.Module | None = None
        if architecture.radix:
            self.conv2 = SplitAttention2d(
                width,
                width,
                stride=conv_stride,
                dilation=dilation,
                radix=architecture.radix,
                cardinality=cardinality,
                pool_stride=stride if blended else None,
            )
        else:
            self.conv2 = nn.Conv2d(
                width,
                width,
                3,
                stride=conv_stride,
                padding=dilation,
                dilation=dilation,
                groups=cardinality,
                bias=False,
            )
            self.bn2 = BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

        self.avd_first = architecture.avd_first
        self.avd = nn.AvgPool2d(3, stride, padding=1) if pool and not blended else nn.Identity()
        self.drop_block1, self.drop_block2, self.drop_block3 = (
            DropBlock2d(drop_block) if drop_block else nn.Identity() for _ in range(3)
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = _shortcut(
                in_channels, out_channels, stride, architecture.avg_down, blur_shortcut
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.drop_block1(self.bn1(self.conv1(x))))
        if self.avd_first:
            x = self.avd(x)
        x = self.conv2(x)
        if self.bn2 is not None:
            x = self.bn2(x)
        x = self.drop_block2(x)
        if self.bn2 is not None:
            x = self.relu(x)
        if not self.avd_first:
            x = self.avd(x)
        x = self.drop_block3(self.bn3(self.conv3(x)))
        # In place saves a large map; no backward pass reads the output of bn3.
        out: Tensor = self.relu(self.drop_path(x).add_(shortcut))
        return out


class Stage(nn.Sequential):
    """Bottleneck blocks of one resolution, one after another.

    Attributes:
        gradient_checkpointing: while training, a block stores only its input and recomputes its
            activations in the backward pass.
    """

    gradient_checkpointing: bool = False

    def forward(self, x: Tensor) -> Tensor:
        checkpointed = self.gradient_checkpointing and self.training
        for block in self:
            x = _checkpointed(block, x) if checkpointed else block(x)
        return x


class Staged(nn.Module):
    """Base class of `ResNeSt` and `Backbone`: a network whose children include stages."""

    conv1: nn.Module
    bn1: BatchNorm2d

    def stages(self) -> Iterator[Stage]:
        """The stages in order, from `layer1`."""
        for child in self.children():
            if isinstance(child, Stage):
                yield child

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks recompute activations in training: less memory, a second forward pass."""
        on = [stage.gradient_checkpointing for stage in self.stages()]
        return bool(on) and all(on)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        for stage in self.stages():
            stage.gradient_checkpointing = on

    def freeze_stages(self, count: int) -> None:
        """Freeze the first `count` of stem, layer1, ..., layer4, as `freeze` does."""
        parts = [(self.conv1, self.bn1), *((stage,) for stage in self.stages())]
        for part in parts[:count]:
            for module in part:
                freeze(module)


class ResNeSt(Staged):
    """ResNeSt as an image classifier (arXiv 2004.08955).

    Args:
        architecture: a value of `ARCHITECTURES`, or your own.
        num_classes: outputs of the classifier; with 0 the network returns pooled features.
        in_chans: channels of the input image.
        output_stride: stride of the last map in pixels: 32, or with dilated stages 16 or 8.
        dilation: what the first block of a dilated stage does. "official", as in the official code
            and Gluon: it keeps the 3x3 average pooling (the architecture's `avd`), with stride 1.
            "timm": it has no such pooling, and its shortcut has a 2x2 average pooling. Keys are the
            same, outputs differ: choose the one that the network was trained with.
        drop_path: stochastic depth of the last block; earlier blocks have linearly less.
        drop_block: share that DropBlock removes in stages 3 and 4; `set_drop_block` schedules it.
        dropout: probability before the classifier; None uses the architecture's.

    Raises:
        InputError: an argument is outside its range.

    Input (B, in_chans, H, W) normalized floats; output (B, num_classes) logits.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        dilation: Dilation = "official",
        drop_path: float = 0.0,
        drop_block: float = 0.0,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        stages = architecture.stages(output_stride=output_stride, dilation=dilation)
        check_whole("num_classes", num_classes, least=0)
        check_whole("in_chans", in_chans, least=1)
        dropout = architecture.dropout if dropout is None else dropout
        for name, share in (
            ("drop_path", drop_path),
            ("drop_block", drop_block),
            ("dropout", dropout),
        ):
            check_number(name, share)
            if not 0 <= share < 1:
                raise InputError(f"{name} must be at least 0 and below 1, got {share}")

        self.architecture = architecture
        self.num_classes = num_classes
        self.output_stride = output_stride
        self.dilation = dilation

        self.conv1 = _stem(in_chans, architecture)
        self.bn1 = BatchNorm2d(architecture.stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)

        depth = max(sum(architecture.layers) - 1, 1)
        block_drop_path = (drop_path * i / depth for i in count())
        for number, shapes in enumerate(stages, start=1):
            blocks = (
                Bottleneck(
                    shape.in_channels,
                    shape.planes,
                    architecture,
                    stride=shape.stride,
                    dilation=shape.dilation,
                    pool=shape.pool,
                    blur_shortcut=shape.blur_shortcut,
                    drop_path=next(block_drop_path),
                    drop_block=drop_block if number >= 3 else 0.0,
                )
                for shape in shapes
            )
            self.add_module(f"layer{number}", Stage(*blocks))

        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(dropout)
        features = architecture.planes * 2**3 * EXPANSION
        self.fc: nn.Module = nn.Linear(features, num_classes) if num_classes else nn.Identity()
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Every residual branch starts as zero (arXiv 1706.02677, section 5.1). The official code
        # sets these to zero and later overwrites them with one; here this comes last.
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def set_drop_block(self, probability: float) -> None:
        """Set the share that DropBlock removes, for a schedule.

        Raises:
            InputError: the network was built without `drop_block` and cannot remove anything.
        """
        blocks = [module for module in self.modules() if isinstance(module, DropBlock2d)]
        if probability and not blocks:
            raise InputError(f"DropBlock at {probability} needs a network built with drop_block")
        for block in blocks:
            block.probability.fill_(probability)

    @property
    def num_features(self) -> int:
        """Channels of the last stage: the inputs of the classifier."""
        return self.architecture.stage_channels[-1]

    def get_classifier(self) -> nn.Module:
        """The last layer; an identity if the network returns pooled features."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a randomly initialized one; 0 returns pooled features.

        Args:
            num_classes: outputs of the new classifier.
            global_pool: as in timm's networks; "avg" is the only pooling there is.

        Raises:
            InputError: `num_classes` is less than 0, or another pooling is asked for.
        """
        check_whole("num_classes", num_classes, least=0)
        if global_pool not in (None, "avg"):
            raise InputError(f"global_pool must be 'avg', got {global_pool!r:.60}")
        self.num_classes = num_classes
        self.fc = nn.Identity()
        if num_classes:
            like = self.bn1.weight
            fc = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            nn.init.kaiming_normal_(fc.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(fc.bias)
            self.fc = fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set `gradient_checkpointing`; timm's name for it."""
        self.gradient_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to the last stage's (B, C, H / stride, W / stride)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages():
            x = stage(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the last stage's output (B, C, H, W) to logits (B, num_classes).

        Args:
            pre_logits: return the classifier's input (B, num_features) instead.
        """
        features: Tensor = self.drop(self.avgpool(x).flatten(1))
        return features if pre_logits else self.fc(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _stem(in_chans: int, architecture: Architecture) -> nn.Module:
    if not architecture.deep_stem:
        return nn.Conv2d(in_chans, architecture.stem_channels, 7, 2, padding=3, bias=False)
    width = architecture.stem_width
    return nn.Sequential(
        nn.Conv2d(in_chans, width, 3, 2, padding=1, bias=False),
        BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width * 2, 3, padding=1, bias=False),
    )


def _shortcut(
    in_channels: int, out_channels: int, stride: int, avg_down: bool, blur: bool
) -> nn.Sequential:
    norm = BatchNorm2d(out_channels)
    if not avg_down:
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm)
    pool: nn.Module = nn.Identity()
    if blur:
        pool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1))
    elif stride != 1:
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), norm)


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """Run `block`; its activations are not stored but recomputed in the backward pass."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _running_statistics_kept(block)

    if torch.compiler.is_compiling():  # takes no context_fn, and updates statistics only once
        out: Tensor = checkpoint(block, x, use_reentrant=False)
    else:
        out = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
    return out


@contextmanager
def _running_statistics_kept(block: nn.Module) -> Iterator[None]:
    """Keep running statistics unchanged, so that the second pass does not count a batch again."""
    # Momentum 0 and not `track_running_stats`: both passes must save the same tensors.
    kept = [
        (norm, norm.momentum, norm.num_batches_tracked)
        for norm in block.modules()
        if isinstance(norm, _BatchNorm)
    ]
    for norm, _, batches in kept:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if batches is None else batches.clone()
    try:
        yield
    finally:
        for norm, momentum, batches in kept:
            norm.momentum, norm.num_batches_tracked = momentum, batches
