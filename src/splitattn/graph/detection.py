"""A one-stage detector's inference network: the folded backbone, a feature pyramid and two towers.

The head is FCOS (Tian et al., arXiv 2006.09214) as torchvision builds it: at every place of every
map of the pyramid it gives a score for each class and how far the sides of a box are.

Shapes: B batch, C channels, K classes, H and W rows and columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitattn.architectures import Architecture
from splitattn.graph.folding import Array, Convolution, FoldedNetwork, Form, fold

# The heads of detectors that this module knows.
FOLDED_HEADS = ("fcos",)
# Pixels from one place of a map to the next, and the unit of what the head gives, for each map.
STRIDES = (8, 16, 32, 64, 128)
# RetinaNet's anchors at each place: the side of a square of the same area, in pixels, for each map,
# and height by width.
ANCHOR_SIZES = tuple(
    tuple(int(4 * stride * 2 ** (third / 3)) for third in range(3)) for stride in STRIDES
)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
# Height and width of images must be multiples of it.
MULTIPLE = 32
GROUPS = 32  # of every group norm
# The stages that the pyramid takes.
STAGES = (2, 3, 4)

_BACKBONE, _PYRAMID = "backbone.body.", "backbone.fpn"
_CLASSES, _BOXES = "head.classification_head", "head.regression_head"
_LAYERS_OF_A_TOWER = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class TowerLayer:
    """A 3x3 convolution, group norm, ReLU.

    Attributes:
        conv: its output has as many channels as its input.
        scale, shift: of the group norm, (C,).
    """

    conv: Convolution
    scale: Array
    shift: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldedDetector:
    """FCOS in evaluation.

    Images (B, 3, H, W), normalized and padded with zeros to multiples of 32, go through the
    backbone. The pyramid has five maps: those of stages 2 to 4 through `lateral`, each but the last
    with the next coarser one added at twice its size, then through `smooth`; and two coarser ones
    by `coarser`, the second after a ReLU. Both towers and the last convolutions are the same for
    all five.

    Attributes:
        backbone: without a classifier.
        lateral: 1x1 convolutions, of each stage.
        smooth: 3x3 convolutions, of each stage.
        coarser: two 3x3 convolutions of stride 2.
        class_tower, box_tower: what comes before the last convolutions.
        classes: to logits (B, K, H, W).
        boxes: to distances (B, 4, H, W) in strides, after a ReLU: left, top, right, bottom.
        centerness: to logits (B, 1, H, W), from the box tower.
    """

    backbone: FoldedNetwork
    lateral: tuple[Convolution, ...]
    smooth: tuple[Convolution, ...]
    coarser: tuple[Convolution, ...]
    class_tower: tuple[TowerLayer, ...]
    box_tower: tuple[TowerLayer, ...]
    classes: Convolution
    boxes: Convolution
    centerness: Convolution

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.backbone.in_chans

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes.bias)


def detector_shapes(
    architecture: Architecture, *, num_classes: int, channels: int
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of an FCOS detector of `create_detector`, by key.

    Args:
        architecture: of the backbone.
        num_classes: without background.
        channels: of the pyramid.
    """
    stages = [architecture.stage_channels[stage - 1] for stage in STAGES]
    sizes = {f"{_PYRAMID}.inner_blocks.{i}.0": (channels, size, 1) for i, size in enumerate(stages)}
    names = [f"{_PYRAMID}.layer_blocks.{i}.0" for i in range(len(stages))]
    names += [f"{_PYRAMID}.extra_blocks.{name}" for name in ("p6", "p7")]
    layers = range(_LAYERS_OF_A_TOWER)
    names += [f"{tower}.conv.{3 * i}" for tower in (_CLASSES, _BOXES) for i in layers]
    sizes |= dict.fromkeys(names, (channels, channels, 3))
    sizes[f"{_CLASSES}.cls_logits"] = (num_classes, channels, 3)
    sizes[f"{_BOXES}.bbox_reg"] = (4, channels, 3)
    sizes[f"{_BOXES}.bbox_ctrness"] = (1, channels, 3)
    body = architecture.shapes(num_classes=0)
    shapes = {f"{_BACKBONE}{key}": shape for key, shape in body.items()}
    for name, (outputs, inputs, side) in sizes.items():
        shapes |= {f"{name}.weight": (outputs, inputs, side, side), f"{name}.bias": (outputs,)}
    norms = [f"{tower}.conv.{3 * i + 1}" for tower in (_CLASSES, _BOXES) for i in layers]
    for name in norms:
        shapes |= {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}
    return shapes


def fold_detector(
    architecture: Architecture,
    state_dict: Mapping[str, NDArray[Any]],
    *,
    form: Form = "branches",
) -> FoldedDetector:
    """The folded network of an FCOS detector's weights, in float32.

    Args:
        architecture: of the backbone.
        state_dict: arrays of the shapes in `detector_shapes`, by key.
        form: see `fold`.
    """
    arrays = {key: np.asarray(value) for key, value in state_dict.items()}
    body = {
        key.removeprefix(_BACKBONE): value
        for key, value in arrays.items()
        if key.startswith(_BACKBONE)
    }

    def conv(name: str, **geometry: int) -> Convolution:
        weight = np.asarray(arrays[f"{name}.weight"], np.float32)
        bias = np.asarray(arrays[f"{name}.bias"], np.float32)
        return Convolution(weight=weight, bias=bias, padding=weight.shape[-1] // 2, **geometry)

    def tower(name: str) -> tuple[TowerLayer, ...]:
        return tuple(
            TowerLayer(
                conv=conv(f"{name}.conv.{3 * i}"),
                scale=np.asarray(arrays[f"{name}.conv.{3 * i + 1}.weight"], np.float32),
                shift=np.asarray(arrays[f"{name}.conv.{3 * i + 1}.bias"], np.float32),
            )
            for i in range(_LAYERS_OF_A_TOWER)
        )

    levels = range(len(STAGES))
    return FoldedDetector(
        backbone=fold(architecture, body, form=form),
        lateral=tuple(conv(f"{_PYRAMID}.inner_blocks.{i}.0") for i in levels),
        smooth=tuple(conv(f"{_PYRAMID}.layer_blocks.{i}.0") for i in levels),
        coarser=tuple(conv(f"{_PYRAMID}.extra_blocks.{name}", stride=2) for name in ("p6", "p7")),
        class_tower=tower(_CLASSES),
        box_tower=tower(_BOXES),
        classes=conv(f"{_CLASSES}.cls_logits"),
        boxes=conv(f"{_BOXES}.bbox_reg"),
        centerness=conv(f"{_BOXES}.bbox_ctrness"),
    )


def places(height: int, width: int) -> list[int]:
    """How many places each map has, for images of a height and width that are multiples of 32."""
    return [-(-height // stride) * -(-width // stride) for stride in STRIDES]
