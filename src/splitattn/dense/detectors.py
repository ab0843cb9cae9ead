"""Detectors: a backbone of ours, a feature pyramid, and a head of torchvision.

Networks here take images that have been resized already, and boxes are in pixels of these.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from splitattn.architectures import Architecture
from splitattn.create import create_backbone
from splitattn.errors import InputError, nearest
from splitattn.graph.detection import STRIDES
from splitattn.nn.backbone import Backbone
from splitattn.preprocessing import IMAGENET_MEAN, IMAGENET_STD

# Group norm in the heads has 32 groups, and needs two values or more in each, also in a map of one
# pixel.
_GROUPS, _FEWEST_CHANNELS, _MOST_CHANNELS = 32, 64, 1024


class _NormalizeOnly(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Normalizes and pads images, and leaves their size to the caller."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


class _FixedGrid(AnchorGenerator):  # type: ignore[misc]
    """Anchors every 8, 16, 32, ... pixels.

    torchvision divides the padded image by the map instead, so boxes of large objects would depend
    on how much an image is padded.

    Args:
        strides: of each map of the pyramid, in pixels.
        sizes, aspect_ratios: of the anchors, see `AnchorGenerator`.
    """

    def __init__(
        self,
        strides: Sequence[int],
        sizes: tuple[tuple[int, ...], ...],
        aspect_ratios: tuple[float, ...],
    ) -> None:
        super().__init__(sizes, (aspect_ratios,) * len(sizes))
        self._strides = [[torch.tensor(stride)] * 2 for stride in strides]

    def grid_anchors(self, grid_sizes: Any, strides: Any) -> list[Tensor]:
        del strides
        found: list[Tensor] = super().grid_anchors(grid_sizes, self._strides)
        return found


@dataclass(frozen=True, kw_only=True)
class DetectionHead:
    """A row of the table of heads.

    Attributes:
        build: from a backbone, classes and channels of the pyramid to the detector.
        first_label: that the head gives the first class; 1 where 0 is the background.
        out_indices: maps of the backbone that the pyramid takes.
    """

    build: Callable[[Backbone, int, int], nn.Module]
    first_label: int
    out_indices: tuple[int, ...]


def _pyramid(backbone: Backbone, channels: int) -> BackboneWithFPN:
    return BackboneWithFPN(
        backbone,
        return_layers={f"layer{i}": str(i) for i in backbone.out_indices},
        in_channels_list=list(backbone.channels),
        out_channels=channels,
        extra_blocks=LastLevelP6P7(channels, channels),
    )


def _fcos(backbone: Backbone, classes: int, channels: int) -> nn.Module:
    """Tian et al., arXiv 2006.09214. Its classes are sigmoids: there is no background class."""
    detector: nn.Module = FCOS(
        _pyramid(backbone, channels),
        classes,
        anchor_generator=_FixedGrid(STRIDES, tuple((stride,) for stride in STRIDES), (1.0,)),
        # COCO's: whoever looks at boxes sets a higher one.
        score_thresh=0.05,
    )
    return detector


DETECTION_HEADS: Mapping[str, DetectionHead] = {
    "fcos": DetectionHead(build=_fcos, first_label=0, out_indices=(2, 3, 4)),
}


def find_head(name: str) -> DetectionHead:
    """The row of a head.

    Raises:
        InputError: there is none of that name.
    """
    if name not in DETECTION_HEADS:
        names = [*DETECTION_HEADS]
        raise InputError(
            f"head must be one of {', '.join(names)}, got {name!r}{nearest(name, names)}"
        )
    return DETECTION_HEADS[name]


def create_detector(
    model: str | Architecture,
    *,
    num_classes: int,
    head: str = "fcos",
    weights: str | Path | None = None,
    channels: int = 256,
    frozen_stages: int = 0,
    frozen_bn: bool = False,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> nn.Module:
    """Build a detector, in training mode; weights go into the backbone, the rest is random.

    In training mode it takes a list of images (3, H, W), floats from 0 to 1, and a list of targets
    with `boxes` (N, 4) and `labels` (N,), and gives a dictionary of losses. In evaluation mode it
    takes the images and gives for each a dictionary of `boxes`, `labels` and `scores`. Boxes are
    left, top, right and bottom in pixels. It does not resize: `Detector` does, and the training.

    Args:
        model, weights: see `create_backbone`.
        num_classes: without background; labels count from 0.
        head: "fcos".
        channels: of each map of the feature pyramid; a multiple of 32 from 64 to 1024.
        frozen_stages, frozen_bn: see `Backbone`.
        mean, std: of the images, per channel.

    Raises:
        InputError: an argument is outside its range, or there is no such model or head.
        WeightsError: the weights cannot be found or downloaded, or do not fit the model.
    """
    row = find_head(head)
    if num_classes < 1:
        raise InputError(f"num_classes must be at least 1, got {num_classes}")
    if channels % _GROUPS or not _FEWEST_CHANNELS <= channels <= _MOST_CHANNELS:
        raise InputError(
            f"channels must be a multiple of {_GROUPS} from {_FEWEST_CHANNELS} to "
            f"{_MOST_CHANNELS}, got {channels}"
        )
    backbone = create_backbone(
        model,
        weights=weights,
        out_indices=row.out_indices,
        frozen_stages=frozen_stages,
        frozen_bn=frozen_bn,
    )
    detector = row.build(backbone, num_classes, channels)
    detector.transform = _NormalizeOnly(1, 1, list(mean), list(std))
    return detector
