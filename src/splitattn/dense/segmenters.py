"""Segmentation networks: a backbone of ours and a head that gives each pixel a class.

Shapes: B batch, C classes, H and W rows and columns of the image.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from splitattn.architectures import Architecture
from splitattn.create import backbone_and_rest
from splitattn.dense.heads import load_head, settings_of_head
from splitattn.errors import InputError, check_choice
from splitattn.libraries import torchvision_imported
from splitattn.nn.backbone import Backbone
from splitattn.nn.batch_norm import BatchNorm2d
from splitattn.weights.checkpoint import read_by_own_keys
from splitattn.weights.layouts import head_tensors
from splitattn.weights.resolve import resolve

with torchvision_imported("a segmenter"):
    from torchvision.models.segmentation.deeplabv3 import ASPP

logger = logging.getLogger(__name__)

_FEWEST_CHANNELS, _CHANNELS, _MOST_CHANNELS = 64, 256, 1024
_DROPPED = 0.1
# Dilation rates of DeepLab's head by output stride (arXiv 1706.05587, section 4.1).
_RATES = {8: (12, 24, 36), 16: (6, 12, 18)}
_NO_DILATION = 32


def _convolution(in_channels: int, channels: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return convolution, BatchNorm2d(channels), nn.ReLU()


class SegmentationNetwork(nn.Module):
    """A backbone and a head.

    Args:
        backbone: gives the maps that the head takes.
        head: from these maps to logits.
        auxiliary: from these maps to further logits, which only a training uses; or None.

    In training mode with an auxiliary head, the output is the logits of both.

    Input (B, 3, H, W) normalized floats; output logits (B, C, ceil(H / s), ceil(W / s)), where s is
    4 for a pyramid and else the backbone's output stride. Enlarge them bilinearly, with
    `align_corners=False`, to the size of the image.
    """

    def __init__(
        self, backbone: Backbone, head: nn.Module, auxiliary: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.auxiliary = auxiliary

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        maps = self.backbone(x)
        logits: Tensor = self.head(maps)
        if self.training and self.auxiliary is not None:
            return logits, self.auxiliary(maps)
        return logits


class PyramidHead(nn.Module):
    """Adds up the maps of a backbone from the smallest to the largest, and classifies the sum.

    Source: Feature Pyramid Networks (Lin et al., arXiv 1612.03144) and the semantic branch of
    Panoptic Feature Pyramid Networks (Kirillov et al., arXiv 1901.02446, section 3.1). There each
    map has 3x3 convolutions of its own, which are most of a head's cost; here only the final sum
    has one.

    Args:
        in_channels: of the maps, from the largest to the smallest.
        channels: of the sum.
        num_classes: C.

    Input maps; output logits (B, C, h, w) of the size of the largest map.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_classes: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(each, channels, 1) for each in in_channels)
        self.fuse = nn.Sequential(*_convolution(channels, channels), nn.Dropout2d(_DROPPED))
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *larger, total = (lateral(x) for lateral, x in zip(self.laterals, maps, strict=True))
        for level in reversed(larger):
            total = level + F.interpolate(
                total, size=level.shape[-2:], mode="bilinear", align_corners=False
            )
        logits: Tensor = self.classifier(self.fuse(total))
        return logits


class LastMapHead(nn.Sequential):
    """Layers that take the last map."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        logits: Tensor = super().forward(maps[-1])  # type: ignore[no-untyped-call]
        return logits


class AuxiliaryHead(nn.Sequential):
    """An FCN on the map of the last stage but one (arXiv 1612.01105, section 3.3).

    Args:
        in_channels: of that map; the head's own layers have a quarter of them.
        num_classes: C.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        channels = in_channels // 4
        super().__init__(
            *_convolution(in_channels, channels),
            nn.Dropout(_DROPPED),
            nn.Conv2d(channels, num_classes, 1),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        logits: Tensor = super().forward(maps[-2])  # type: ignore[no-untyped-call]
        return logits


@dataclass(frozen=True, kw_only=True)
class SegmentationHead:
    """A row of the table of heads.

    Attributes:
        build: makes the head for a backbone, channels and a number of classes.
        out_indices: maps of the backbone that the head takes.
        output_stride: of the backbone, unless another one is asked for.
    """

    build: Callable[[Backbone, int, int], nn.Module]
    out_indices: tuple[int, ...]
    output_stride: int


def _pyramid(backbone: Backbone, channels: int, num_classes: int) -> nn.Module:
    return PyramidHead(backbone.channels, channels, num_classes)


def _deeplab(backbone: Backbone, channels: int, num_classes: int) -> nn.Module:
    """Chen et al., arXiv 1706.05587; layers and keys are those of torchvision's `DeepLabHead`."""
    head = LastMapHead(
        ASPP(backbone.channels[-1], _RATES[backbone.output_stride], channels),
        *_convolution(channels, channels),
        nn.Conv2d(channels, num_classes, 1),
    )
    _take_our_batch_norms(head)
    return head


def _fcn(backbone: Backbone, channels: int, num_classes: int) -> nn.Module:
    """Long et al., arXiv 1411.4038; layers and keys are those of torchvision's `FCNHead`."""
    return LastMapHead(
        *_convolution(backbone.channels[-1], channels),
        nn.Dropout(_DROPPED),
        nn.Conv2d(channels, num_classes, 1),
    )


def _take_our_batch_norms(part: nn.Module) -> None:
    """Replace torch's batch norms by ours.

    Ours train on a batch of one even after global pooling, and can be synchronized over processes.
    """
    for name, child in part.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(part, name, BatchNorm2d(child.num_features))
        else:
            _take_our_batch_norms(child)


SEGMENTATION_HEADS: Mapping[str, SegmentationHead] = {
    "fpn": SegmentationHead(build=_pyramid, out_indices=(1, 2, 3, 4), output_stride=_NO_DILATION),
    "deeplabv3": SegmentationHead(build=_deeplab, out_indices=(4,), output_stride=8),
    "fcn": SegmentationHead(build=_fcn, out_indices=(4,), output_stride=8),
}


def create_segmenter(
    model: str | Architecture,
    *,
    num_classes: int,
    head: str = "fpn",
    weights: str | Path | None = None,
    channels: int | None = None,
    output_stride: int | None = None,
    frozen_stages: int = 0,
    frozen_bn: bool = False,
    new_head: bool = False,
    auxiliary: bool = False,
) -> SegmentationNetwork:
    """Build a segmentation network, in training mode, and load weights.

    The backbone is loaded, and the head if the weights have one that fits: those of our segmenters
    and of PyTorch-Encoding's DeepLabV3 and FCN do. Otherwise the head is random.

    Args:
        model, weights: see `create_backbone`.
        num_classes: at most 255.
        head: "fpn", "deeplabv3" or "fcn".
        channels: of the head's maps, 64 to 1024. None takes those of the weights, if they have this
            head and say so, or else 256.
        output_stride: of the backbone, in pixels: 8 or 16 for "deeplabv3" and "fcn", whose last
            stages are dilated; 32 for "fpn". None takes that of the weights, if they have this
            head, or else 8 or 32.
        frozen_stages, frozen_bn: see `Backbone`.
        new_head: start with random heads, whatever the weights have.
        auxiliary: add a head for training, see `SegmentationNetwork`.

    Raises:
        InputError: an argument is outside its range, or there is no such model or head.
        WeightsError: the weights cannot be found or downloaded, or do not fit the model.
    """
    row = find_segmentation_head(head)
    path = None if weights is None else resolve(str(model), weights).path
    settings = settings_of_head(path, head)
    if output_stride is None:
        output_stride = settings.get("output_stride")
    if channels is None:
        channels = settings.get("channels", _CHANNELS)
    stride = find_output_stride(head, output_stride)
    if not 1 <= num_classes <= 255:
        raise InputError(f"num_classes must be 1 to 255, got {num_classes}")
    if type(channels) is not int or not _FEWEST_CHANNELS <= channels <= _MOST_CHANNELS:
        raise InputError(
            f"channels must be {_FEWEST_CHANNELS} to {_MOST_CHANNELS}, got {channels!r}"
        )
    backbone, left_out = backbone_and_rest(
        model,
        weights=weights,
        out_indices=tuple(sorted({*row.out_indices, 3})) if auxiliary else row.out_indices,
        output_stride=stride,
        frozen_stages=frozen_stages,
        frozen_bn=frozen_bn,
    )
    network = SegmentationNetwork(
        backbone,
        row.build(backbone, channels, num_classes),
        AuxiliaryHead(backbone.channels[-2], num_classes) if auxiliary else None,
    )
    loaded = False
    if path is not None and not new_head:
        tensors = read_by_own_keys(path)
        own = network.head.state_dict()
        loaded = load_head("head", own, head_tensors(tensors, head), path)
        if network.auxiliary is not None:
            found = head_tensors(tensors, head, auxiliary=True)
            load_head("auxiliary head", network.auxiliary.state_dict(), found, path)
    if left_out and not loaded:
        logger.warning("%s", left_out)
    return network


def find_segmentation_head(name: str) -> SegmentationHead:
    """The row of a head.

    Raises:
        InputError: there is none of that name.
    """
    check_choice("head", name, SEGMENTATION_HEADS)
    return SEGMENTATION_HEADS[name]


def find_output_stride(head: str, stride: int | None = None) -> int:
    """`stride`, or the one that the backbone has by default for a head.

    Raises:
        InputError: there is no such head, or it does not go with this stride.
    """
    default = find_segmentation_head(head).output_stride
    strides = [_NO_DILATION] if default == _NO_DILATION else [*_RATES]
    if stride is None:
        return default
    if stride not in strides:
        raise InputError(
            f"output_stride must be {' or '.join(map(str, strides))} for head {head}, got "
            f"{stride!r:.60}"
        )
    return stride
