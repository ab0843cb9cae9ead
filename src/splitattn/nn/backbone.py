"""The network without its classifier, which gives a feature map of each resolution.

Shapes: B batch, H and W rows and columns of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torchvision.ops import StochasticDepth

from splitattn.errors import InputError
from splitattn.nn.batch_norm import freeze
from splitattn.nn.drop_block import DropBlock2d
from splitattn.nn.resnest import ResNeSt, Staged

MAPS = 5


@dataclass(frozen=True, kw_only=True)
class FeatureInfo:
    """What the maps of a backbone are, under the names of timm's `features_only` networks.

    Attributes:
        out_indices: 0 for the stem, 1 to 4 for the stages, in the order of the maps.
        num_chs, reductions, modules: of each of these maps.
    """

    out_indices: tuple[int, ...]
    num_chs: tuple[int, ...]
    reductions: tuple[int, ...]
    modules: tuple[str, ...]

    def channels(self) -> list[int]:
        """Channels of each map."""
        return list(self.num_chs)

    def reduction(self) -> list[int]:
        """Stride of each map, in pixels of the image."""
        return list(self.reductions)

    def module_name(self) -> list[str]:
        """The child of the backbone whose output each map is."""
        return list(self.modules)


class Backbone(Staged):
    """The stem and the stages of a `ResNeSt`, for networks that are built upon feature maps.

    Children have their official names and the order in which they run. So checkpoints fit, and so
    do tools that take a network apart, such as torchvision's `BackboneWithFPN`. Stages after the
    last map are left out.

    What is frozen has no gradient, keeps its running statistics and drops nothing at random.
    `train` changes none of that, not even in another network that the parts were put into. A frozen
    batch norm remains a batch norm, so keys and weights remain the official ones.

    Args:
        network: whose parts the backbone takes over: they are shared, not copied.
        out_indices: which maps to return, in this order: 0 is the stem's before it is pooled, 1 to
            4 are those of the stages; negative ones count from the last, -1 being stage 4.
        frozen_stages: all up to the map of this index is frozen: -1 freezes nothing, 0 the stem, 1
            the stem and the first stage (the counting of MMDetection; detectron2's `FREEZE_AT` is
            one more).
        frozen_bn: all batch norms are frozen, those within the attention included.

    Attributes:
        out_indices: as above, none of them negative.
        channels: of each map, (256, 512, 1024, 2048) for the stages of the published networks.
        strides: of each map, in pixels of the image, (4, 8, 16, 32) without dilation.

    Raises:
        InputError: an index is no map's, comes twice or is missing, or there is no such stage.

    Input (B, in_chans, H, W) normalised floats; output a list of maps (B, channels[i],
    ceil(H / strides[i]), ceil(W / strides[i])).
    """

    def __init__(
        self,
        network: ResNeSt,
        *,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        frozen_stages: int = -1,
        frozen_bn: bool = False,
    ) -> None:
        super().__init__()
        indices = [i + MAPS if -MAPS <= i < 0 else i for i in out_indices]
        if not indices or len({*indices} & {*range(MAPS)}) != len(indices):
            raise InputError(
                "out_indices must be one or more of 0 (stem) and 1 to 4 (stages), none of them "
                f"twice, got {tuple(out_indices)}"
            )
        last = max(indices)
        if not -1 <= frozen_stages <= last:
            raise InputError(
                f"frozen_stages must be -1 (none) to {last} (the last map), got {frozen_stages}"
            )
        shape = network.architecture
        channels = (shape.stem_channels, *shape.stage_channels)
        self.out_indices = tuple(indices)
        self.channels = tuple(channels[i] for i in indices)
        self.strides = tuple(min(2 ** (i + 1), network.output_stride) for i in indices)

        self.conv1 = network.conv1
        self.bn1 = network.bn1
        self.relu = network.relu
        self.maxpool = network.maxpool
        stages = [*network.stages()][:last]
        for number, stage in enumerate(stages, start=1):
            self.add_module(f"layer{number}", stage)

        if frozen_bn:
            freeze(self)
        frozen = [self.conv1, self.bn1, *stages[:frozen_stages]] if frozen_stages >= 0 else []
        for part in frozen:
            freeze(part)
            part.requires_grad_(False)
            for module in part.modules():
                if isinstance(module, DropBlock2d):
                    module.probability.zero_()
                elif isinstance(module, StochasticDepth):
                    module.p = 0.0

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and strides for code that was written for timm's networks."""
        return FeatureInfo(
            out_indices=self.out_indices,
            num_chs=self.channels,
            reductions=self.strides,
            modules=tuple(f"layer{i}" if i else "relu" for i in self.out_indices),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.relu(self.bn1(self.conv1(x)))
        maps = {0: x} if 0 in self.out_indices else {}
        x = self.maxpool(x)
        for index, stage in enumerate(self.stages(), start=1):
            x = stage(x)
            if index in self.out_indices:
                maps[index] = x
        return [maps[index] for index in self.out_indices]
