"""The network without its classifier: it returns feature maps at several resolutions.

Shapes: B batch, H and W rows and columns of the image.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

from torch import Tensor

from splitattn.errors import InputError
from splitattn.nn.batch_norm import BatchNorm2d
from splitattn.nn.freezing import freeze
from splitattn.nn.resnest import ResNeSt, Staged

MAPS = 5


@dataclass(frozen=True, kw_only=True)
class FeatureInfo:
    """Describes the maps of a backbone; same methods as in timm's `features_only` networks.

    Indices count all five maps, 0 for the stem's to 4 for the last stage's, including those that
    the backbone does not return.

    Attributes:
        out_indices: the maps that the backbone returns, in its order.
        info: a dictionary for each of the five maps: "index"; "num_chs", its channels; "reduction",
            its stride in pixels of the image; "module", the child of the backbone that outputs it.
    """

    out_indices: tuple[int, ...]
    info: tuple[dict[str, Any], ...]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Channels of the returned maps, of the maps in `idx`, or of the one map `idx`."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Strides of these maps, in pixels of the image."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Names of the backbone's children that output these maps."""
        return self.get("module", idx)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """The values of `key` in `info`: a list, or one value if `idx` is one number."""
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[i][key] for i in (self.out_indices if idx is None else idx)]

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> Any:
        """The dictionaries of these maps, reduced to `keys` if given."""
        if isinstance(idx, int):
            info = self.info[idx]
            return {key: info[key] for key in (info if keys is None else keys)}
        return [self.get_dicts(keys, i) for i in (self.out_indices if idx is None else idx)]

    def __getitem__(self, idx: int) -> dict[str, Any]:
        return self.info[idx]

    def __len__(self) -> int:
        return len(self.info)


class Backbone(Staged):
    """The stem and the stages of a `ResNeSt`, as a backbone for detectors and segmenters.

    Children keep their official names and run in their order. So official checkpoints load, and
    tools that take a network apart work, such as torchvision's `BackboneWithFPN`. Stages after the
    last returned map are left out.

    Frozen layers have no gradients, keep their running statistics and drop nothing at random. They
    stay so after `.train()`, even inside another network; `requires_grad_(True)` makes their
    parameters learn again. A frozen batch norm keeps its class, so state-dict keys do not change.

    Args:
        network: its modules become the backbone's; they are shared, not copied.
        out_indices: which maps to return, in this order: 0 is the stem's before max pooling, 1 to
            4 are those of the stages. Negative indices count from the end: -1 is stage 4.
        frozen_stages: how many of stem, layer1, ..., layer4 are frozen, from the front: 0 freezes
            nothing, 1 the stem, 2 the stem and the first stage (detectron2's `FREEZE_AT`;
            MMDetection counts from -1).
        frozen_bn: freeze all batch norms, those within the attention included.

    Attributes:
        out_indices: as above, none of them negative.
        channels: of each map, (256, 512, 1024, 2048) for the stages of the published networks.
        strides: of each map, in pixels of the image, (4, 8, 16, 32) without dilation.

    Raises:
        InputError: `out_indices` is empty, repeats an index or has one that is not a map's, or
            `frozen_stages` is not a whole number in its range.

    Input (B, in_chans, H, W) normalized floats; output a list of maps (B, channels[i],
    ceil(H / strides[i]), ceil(W / strides[i])).
    """

    def __init__(
        self,
        network: ResNeSt,
        *,
        out_indices: Iterable[int] = (1, 2, 3, 4),
        frozen_stages: int = 0,
        frozen_bn: bool = False,
    ) -> None:
        super().__init__()
        indices = _map_indices(out_indices)
        last = max(indices)
        count = _whole(frozen_stages)
        if count is None or not 0 <= count <= last + 1:
            raise InputError(
                f"frozen_stages must be 0 (none), 1 (the stem) to {last + 1} (all up to the last "
                f"map), got {frozen_stages!r:.60}"
            )
        self.architecture = network.architecture
        self.output_stride = network.output_stride
        self.dilation = network.dilation
        self._every_channels = (
            self.architecture.stem_channels,
            *self.architecture.stage_channels,
        )
        self._every_stride = tuple(min(2 ** (i + 1), network.output_stride) for i in range(MAPS))
        self.out_indices = indices
        self.channels = tuple(self._every_channels[i] for i in indices)
        self.strides = tuple(self._every_stride[i] for i in indices)

        self.conv1 = network.conv1
        self.bn1 = network.bn1
        self.relu = network.relu
        self.maxpool = network.maxpool
        for number, stage in enumerate([*network.stages()][:last], start=1):
            self.add_module(f"layer{number}", stage)

        self.freeze_stages(count)
        for module in self.modules():
            if frozen_bn and isinstance(module, BatchNorm2d):
                freeze(module)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and strides of the maps, as timm's networks give them."""
        return FeatureInfo(
            out_indices=self.out_indices,
            info=tuple(
                {
                    "index": i,
                    "num_chs": self._every_channels[i],
                    "reduction": self._every_stride[i],
                    "module": f"layer{i}" if i else "relu",
                }
                for i in range(MAPS)
            ),
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


def _map_indices(out_indices: Iterable[int]) -> tuple[int, ...]:
    """`out_indices` as a tuple of int, none of them negative."""
    asked: object = out_indices
    if isinstance(out_indices, Iterable):
        asked = tuple(i if (index := _whole(i)) is None else index for i in out_indices)
        if asked and all(type(i) is int and -MAPS <= i < MAPS for i in asked):
            indices = tuple(i % MAPS for i in asked)
            if len({*indices}) == len(indices):
                return indices
    raise InputError(
        "out_indices must be one or more of 0 (stem) and 1 to 4 (stages), none of them twice, "
        f"got {asked!r:.60}"
    )


def _whole(value: object) -> int | None:
    """`value` as an int, or None if it is not a whole number."""
    return operator.index(value) if isinstance(value, SupportsIndex) else None
