"""What a ResNeSt is: one frozen dataclass, one table with every variant.

Source: "ResNeSt: Split-Attention Networks", arXiv 2004.08955. Each idea of the paper is a field, so
switching one off shows what it does; with all of them off the network is a plain ResNet.
"""

from dataclasses import dataclass

from splitattn.errors import InputError, nearest


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of one network, without weights.

    Attributes:
        layers: bottleneck blocks in each of the four stages.
        radix: splits within a cardinal group that attention chooses between (paper section 3.1).
            1 is an SE-like sigmoid gate on a single split, 0 a plain 3x3 convolution.
        cardinality: cardinal groups, as in ResNeXt.
        bottleneck_width: channels of one cardinal group per 64 planes, as in ResNeXt's `32x4d`.
        deep_stem: three 3x3 convolutions instead of one 7x7 (ResNet-D).
        stem_width: channels of the first two stem convolutions; the stem ends in twice as many.
        avg_down: 2x2 average pooling, then a 1x1 convolution, as strided shortcut (ResNet-D).
        avd: a 3x3 average pooling takes over the stride of the 3x3 convolution (paper section 3.2).
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
        """Channels that leave the stem."""
        return self.stem_width * 2 if self.deep_stem else self.planes

    @property
    def stage_channels(self) -> tuple[int, int, int, int]:
        """Channels that leave each stage: (256, 512, 1024, 2048) for the published networks."""
        first = 4 * self.planes
        return first, 2 * first, 4 * first, 8 * first

    def group_width(self, planes: int) -> int:
        """Channels that enter the 3x3 convolution of a block of so many planes, over all groups."""
        return int(planes * self.bottleneck_width / 64) * self.cardinality

    def parameters(self, num_classes: int = 1000) -> int:
        """Parameters of the network with that many classes, counted without building it."""

        def conv(inputs: int, outputs: int, size: int, groups: int = 1) -> int:
            return inputs * outputs * size**2 // groups

        def norm(channels: int) -> int:
            return 2 * channels

        channels = self.stem_channels
        count = norm(channels)
        if self.deep_stem:
            stem = self.stem_width
            count += conv(3, stem, 3) + conv(stem, stem, 3) + conv(stem, channels, 3)
            count += 2 * norm(stem)
        else:
            count += conv(3, channels, 7)
        for stage, depth in enumerate(self.layers):
            out = self.stage_channels[stage]
            width = self.group_width(self.planes * 2**stage)
            if self.radix:
                splits = width * self.radix
                hidden = max(splits // 4, 32)
                spatial = conv(width, splits, 3, self.radix * self.cardinality) + norm(splits)
                spatial += conv(width, hidden, 1, self.cardinality) + hidden + norm(hidden)
                spatial += conv(hidden, splits, 1, self.cardinality) + splits
            else:
                spatial = conv(width, width, 3, self.cardinality) + norm(width)
            block = norm(width) + spatial + conv(width, out, 1) + norm(out)
            shortcut = conv(channels, out, 1) + norm(out) if stage or channels != out else 0
            count += depth * block + shortcut
            count += conv(channels, width, 1) + (depth - 1) * conv(out, width, 1)
            channels = out
        return count + (channels + 1) * num_classes


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
    # The embedded model's: three quarters of the width of resnest26, for images of 64 pixels.
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


# timm's names of the networks that both have.
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
    """The model that `name` means, and the tag of weights that it adds, if it adds one.

    Names are those of the table, which GluonCV, mmpretrain and the official code share, or timm's;
    `timm/` before them and a tag after a point are as on the Hugging Face Hub:
    `timm/resnest50d.in1k` is `("resnest50", "in1k")`. Whether there are such weights,
    `weights.catalogue.named` knows.

    Raises:
        InputError: there is no such model; the message names the nearest one.
    """
    bare, point, tag = name.removeprefix("timm/").partition(".")
    model = _OUR_NAMES.get(bare, bare)
    if model not in ARCHITECTURES:
        hint = nearest(bare, [*ARCHITECTURES, *_OUR_NAMES]) or "; `splitattn models` lists them"
        raise InputError(f"no model is called {name!r:.60}{hint}")
    return model, tag if point else None


def architecture(name: str) -> Architecture:
    """The table's row that `name`, ours or another project's, means.

    Raises:
        InputError: there is no such row; the message names the nearest one.
    """
    return ARCHITECTURES[split_name(name)[0]]
