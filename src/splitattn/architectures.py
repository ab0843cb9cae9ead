"""The architectures: a frozen dataclass, and a table with every variant.

Source: "ResNeSt: Split-Attention Networks", arXiv 2004.08955. Each idea of the paper is a field
that can be switched off; with all of them off, the network is a plain ResNet.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from splitattn.errors import InputError, nearest

# What the first block of a dilated stage does: see `splitattn.nn.resnest.ResNeSt`.
Dilation = Literal["official", "timm"]


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """The geometry of one bottleneck block.

    Attributes:
        name: of the block, "layer1.0" for the first one; its state-dict keys begin with it.
        in_channels: channels of the input.
        planes: nominal bottleneck channels; the output has four times as many.
        stride: spatial reduction of the block.
        dilation: of the 3x3 convolution.
        pool: a 3x3 average pooling (avd) has the stride instead of the 3x3 convolution.
        blur_shortcut: the shortcut begins with a 2x2 average pooling of stride 1.
    """

    name: str
    in_channels: int
    planes: int
    stride: int
    dilation: int
    pool: bool
    blur_shortcut: bool

    @property
    def out_channels(self) -> int:
        """Output channels of the block."""
        return 4 * self.planes


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of one network, without weights.

    Attributes:
        layers: bottleneck blocks in each of the four stages.
        radix: splits within a cardinal group that attention weighs (paper section 3.1). 1 is a
            sigmoid gate on a single split as in Squeeze-and-Excitation, 0 a plain 3x3 convolution.
        cardinality: cardinal groups, as in ResNeXt.
        bottleneck_width: channels of one cardinal group per 64 planes, as in ResNeXt's `32x4d`.
        deep_stem: three 3x3 convolutions instead of one 7x7 (ResNet-D).
        stem_width: channels of the first two stem convolutions; the stem ends in twice as many.
        avg_down: 2x2 average pooling, then a 1x1 convolution, as strided shortcut (ResNet-D).
        avd: a 3x3 average pooling has the stride instead of the 3x3 convolution (section 3.2).
        avd_first: that pooling comes before the 3x3 convolution (the cheaper `fast` networks).
        planes: bottleneck channels of the first stage; every stage doubles them.
        dropout: probability of dropping a pooled feature before the classifier while training.

    Raises:
        InputError: a field is outside its range.
    """

    layers: tuple[int, int, int, int]
    radix: int = 2
    cardinality: int = 1
    bottleneck_width: int = 64
    deep_stem: bool = True
    stem_width: int = 32
    avg_down: bool = True
    avd: bool = True
    avd_first: bool = False
    planes: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if len(self.layers) != 4 or min(self.layers) < 1:
            raise InputError(f"layers must be four positive block counts, got {self.layers}")
        if self.radix < 0:
            raise InputError(f"radix must be 0 (plain convolution) or more, got {self.radix}")
        for field in ("cardinality", "bottleneck_width", "stem_width", "planes"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} must be at least 1, got {getattr(self, field)}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    @property
    def stem_channels(self) -> int:
        """Output channels of the stem."""
        return self.stem_width * 2 if self.deep_stem else self.planes

    @property
    def stage_channels(self) -> tuple[int, int, int, int]:
        """Output channels of each stage: (256, 512, 1024, 2048) for the published networks."""
        first = 4 * self.planes
        return first, 2 * first, 4 * first, 8 * first

    def stages(
        self, *, output_stride: int = 32, dilation: Dilation = "official"
    ) -> Iterator[tuple[BlockShape, ...]]:
        """The blocks of each of the four stages, in the order in which they run.

        Args:
            output_stride: 32; with 16 or 8 the last stages have dilation instead of a stride.
            dilation: what the first block of a dilated stage does.

        Raises:
            InputError: an argument is outside its range.
        """
        if output_stride not in (8, 16, 32):
            raise InputError(f"output_stride must be 8, 16 or 32, got {output_stride}")
        if dilation not in get_args(Dilation):
            raise InputError(f"dilation must be official or timm, got {dilation!r}")
        return self._stages(output_stride, dilation)

    def _stages(self, output_stride: int, rule: Dilation) -> Iterator[tuple[BlockShape, ...]]:
        reached_stride = 4  # of the stem
        channels = self.stem_channels
        dilation = 1
        for stage, depth in enumerate(self.layers):
            stride = 1 if stage == 0 else 2
            first_dilation = dilation
            dilated = reached_stride * stride > output_stride
            if dilated:
                dilation, stride = dilation * stride, 1
            reached_stride *= stride
            as_timm = dilated and rule == "timm"
            blocks = []
            for i in range(depth):
                first = i == 0
                block = BlockShape(
                    name=f"layer{stage + 1}.{i}",
                    in_channels=channels,
                    planes=self.planes * 2**stage,
                    stride=stride if first else 1,
                    dilation=first_dilation if first else dilation,
                    pool=self.avd and first and stage > 0 and not as_timm,
                    blur_shortcut=first and as_timm,
                )
                blocks.append(block)
                channels = block.out_channels
            yield tuple(blocks)

    def group_width(self, planes: int) -> int:
        """Input channels of a block's 3x3 convolution, over all groups, for nominal `planes`."""
        return int(planes * self.bottleneck_width / 64) * self.cardinality

    def shapes(self, num_classes: int = 1000, in_chans: int = 3) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor in the network's state dict, by official key and in its order.

        Args:
            num_classes: outputs of the classifier; 0 leaves the classifier out.
            in_chans: channels of the images.
        """
        stem = self.stem_width
        if self.deep_stem:
            shapes = {
                **_conv("conv1.0", in_chans, stem, 3),
                **_norm("conv1.1", stem),
                **_conv("conv1.3", stem, stem, 3),
                **_norm("conv1.4", stem),
                **_conv("conv1.6", stem, self.stem_channels, 3),
            }
        else:
            shapes = _conv("conv1", in_chans, self.stem_channels, 7)
        shapes |= _norm("bn1", self.stem_channels)
        channels = self.stem_channels
        for stage, depth in enumerate(self.layers):
            for block in range(depth):
                shapes |= self._block_shapes(stage, block, channels)
                channels = self.stage_channels[stage]
        if num_classes:
            shapes |= {"fc.weight": (num_classes, channels), "fc.bias": (num_classes,)}
        return shapes

    def _block_shapes(self, stage: int, block: int, in_channels: int) -> dict[str, tuple[int, ...]]:
        name = f"layer{stage + 1}.{block}"
        width, out_channels = self.group_width(self.planes * 2**stage), self.stage_channels[stage]
        shapes = _conv(f"{name}.conv1", in_channels, width, 1) | _norm(f"{name}.bn1", width)
        if self.radix:
            shapes |= self._attention_shapes(f"{name}.conv2", width)
        else:
            shapes |= _conv(f"{name}.conv2", width, width, 3, self.cardinality)
            shapes |= _norm(f"{name}.bn2", width)
        shapes |= _conv(f"{name}.conv3", width, out_channels, 1)
        shapes |= _norm(f"{name}.bn3", out_channels)
        reduces = stage > 0 and block == 0
        if reduces or in_channels != out_channels:
            first = 1 if self.avg_down else 0  # after the pooling
            shapes |= _conv(f"{name}.downsample.{first}", in_channels, out_channels, 1)
            shapes |= _norm(f"{name}.downsample.{first + 1}", out_channels)
        return shapes

    def _attention_shapes(self, name: str, width: int) -> dict[str, tuple[int, ...]]:
        splits = width * self.radix
        hidden = max(splits // 4, 32)
        return {
            **_conv(f"{name}.conv", width, splits, 3, self.radix * self.cardinality),
            **_norm(f"{name}.bn0", splits),
            **_conv(f"{name}.fc1", width, hidden, 1, self.cardinality),
            f"{name}.fc1.bias": (hidden,),
            **_norm(f"{name}.bn1", hidden),
            **_conv(f"{name}.fc2", hidden, splits, 1, self.cardinality),
            f"{name}.fc2.bias": (splits,),
        }

    def parameters(self, num_classes: int = 1000) -> int:
        """Count the parameters of the network with that many classes, without building it."""
        return sum(
            prod(shape)
            for key, shape in self.shapes(num_classes).items()
            if key.endswith((".weight", ".bias"))  # the rest are statistics of batch norm
        )


def _conv(
    name: str, inputs: int, outputs: int, size: int, groups: int = 1
) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs // groups, size, size)}


def _norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    per_channel = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in per_channel} | {
        f"{name}.num_batches_tracked": ()
    }


def _fast(radix: int, cardinality: int, bottleneck_width: int) -> Architecture:
    return Architecture(
        layers=(3, 4, 6, 3),
        radix=radix,
        cardinality=cardinality,
        bottleneck_width=bottleneck_width,
        avd_first=True,
    )


ARCHITECTURES: dict[str, Architecture] = {
    "resnest14": Architecture(layers=(1, 1, 1, 1)),
    "resnest26": Architecture(layers=(2, 2, 2, 2)),
    "resnest50": Architecture(layers=(3, 4, 6, 3)),
    "resnest101": Architecture(layers=(3, 4, 23, 3), stem_width=64),
    "resnest152": Architecture(layers=(3, 8, 36, 3), stem_width=64),
    "resnest200": Architecture(layers=(3, 24, 36, 3), stem_width=64, dropout=0.2),
    "resnest269": Architecture(layers=(3, 30, 48, 8), stem_width=64, dropout=0.2),
    # The embedded model: three quarters of the width of resnest26, for images of 64 pixels.
    "resnest26_tiny": Architecture(layers=(2, 2, 2, 2), stem_width=24, planes=48),
    # The paper's ablation: radix "s", cardinality "x", bottleneck width "d".
    "resnest50_fast_0s1x64d": _fast(0, 1, 64),
    "resnest50_fast_1s1x64d": _fast(1, 1, 64),
    "resnest50_fast_2s1x64d": _fast(2, 1, 64),
    "resnest50_fast_4s1x64d": _fast(4, 1, 64),
    "resnest50_fast_1s2x40d": _fast(1, 2, 40),
    "resnest50_fast_2s2x40d": _fast(2, 2, 40),
    "resnest50_fast_4s2x40d": _fast(4, 2, 40),
    "resnest50_fast_1s4x24d": _fast(1, 4, 24),
}


# timm's names of networks in this table.
TIMM_NAMES = {
    "resnest14": "resnest14d",
    "resnest26": "resnest26d",
    "resnest50": "resnest50d",
    "resnest101": "resnest101e",
    "resnest200": "resnest200e",
    "resnest269": "resnest269e",
    "resnest50_fast_4s2x40d": "resnest50d_4s2x40d",
    "resnest50_fast_1s4x24d": "resnest50d_1s4x24d",
}
_OUR_NAMES = {theirs: ours for ours, theirs in TIMM_NAMES.items()}


def split_name(name: str) -> tuple[str, str | None]:
    """Split a model's name into our name and the tag of weights, or None.

    Names are those of the table, which GluonCV, mmpretrain and the official code also use, or
    timm's, optionally with `timm/` in front. A tag may follow after a colon, as this package writes
    it, or after a dot, as on the Hugging Face hub: `resnest50:in1k` and `timm/resnest50d.in1k` are
    both `("resnest50", "in1k")`. The tag need not exist; see `weights.catalogue.named`.

    Raises:
        InputError: there is no such model; the message names the nearest one.
    """
    if not isinstance(name, str):
        raise InputError(
            f"a model must be a name, got an object of type {type(name).__name__}; "
            "pass a file or folder as the weights"
        )
    bare, *tags = re.split("[.:]", name.removeprefix("timm/"), maxsplit=1)
    model = _OUR_NAMES.get(bare, bare)
    if model not in ARCHITECTURES:
        if os.path.lexists(name):
            hint = "; it is a file or folder: pass it as the weights (--weights)"
        else:
            known = [*ARCHITECTURES, *_OUR_NAMES]
            other = "; `splitattn models` lists them"
            if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", name):
                other = f"; did you mean 'hf-hub:{name}'?"
            hint = nearest(bare, known) or other
        raise InputError(f"no model is called {name!r:.60}{hint}")
    return model, tags[0] if tags else None


def list_models() -> list[str]:
    """Names of all models, in table order."""
    return list(ARCHITECTURES)


def architecture(name: str) -> Architecture:
    """The architecture of a model's name, ours or another project's.

    Raises:
        InputError: there is no such model; the message names the nearest one.
    """
    return ARCHITECTURES[split_name(name)[0]]
