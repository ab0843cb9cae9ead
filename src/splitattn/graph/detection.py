"""A one-stage detector's inference network: the folded backbone, a feature pyramid and two towers.

The heads are those of torchvision. FCOS (Tian et al., arXiv 2006.09214) predicts one box at every
place of every map: a score for each class, and the distances to the box's sides. RetinaNet (Lin et
al., arXiv 1708.02002) has several anchors at each place, and predicts for each anchor a score for
each class, and how the box differs from the anchor.

Shapes: B batch, C channels, K classes, H and W rows and columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitattn.architectures import Architecture
from splitattn.graph.folding import Array, Convolution, FoldedNetwork, Form, fold

# The heads of detectors that this module knows.
FOLDED_HEADS = ("fcos", "retinanet")
# Stride of each map of the pyramid, in pixels of the image.
STRIDES = (8, 16, 32, 64, 128)
# RetinaNet's anchors: for each map the sides, in pixels, of squares with the anchors' areas; and
# the ratios of height to width.
ANCHOR_SIZES = tuple(
    tuple(int(4 * stride * 2 ** (third / 3)) for third in range(3)) for stride in STRIDES
)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
# How many boxes a head gives at each place.
BOXES_OF_A_PLACE = {"fcos": 1, "retinanet": len(ANCHOR_SIZES[0]) * len(ANCHOR_RATIOS)}
# Non-maximum suppression keeps boxes with a score above LEAST_SCORE, unless a better box of their
# class overlaps them by more than IOU; COCO counts at most 100.
LEAST_SCORE, IOU, MOST_OBJECTS = 0.05, 0.6, 100
# Height and width of images, in pixels, must be multiples of this.
MULTIPLE = 32
GROUPS = 32  # of every group norm
# The stages of the backbone whose maps the pyramid uses.
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
    """FCOS or RetinaNet in evaluation.

    Images (B, 3, H, W), normalized and padded with zeros to multiples of 32, go through the
    backbone. The pyramid has five maps. Three come from stages 2 to 4: each goes through its
    `lateral`, the next coarser one is enlarged twofold and added, and `smooth` follows. `coarser`
    makes two more, the second after a ReLU. Both towers and the last convolutions are shared by all
    five maps.

    Attributes:
        backbone: without a classifier.
        lateral: a 1x1 convolution for each stage.
        smooth: a 3x3 convolution for each stage.
        coarser: two 3x3 convolutions of stride 2.
        class_tower, box_tower: the layers before the last convolutions.
        classes: to logits (B, K, H, W), for each box of a place.
        boxes: for each box of a place, to (B, 4, H, W). Of FCOS, these are distances in strides,
            after a ReLU: left, top, right, bottom. Of RetinaNet, they say how center and size
            differ from the anchor's: x, y, width and height.
        centerness: to logits (B, 1, H, W), from the box tower; None in RetinaNet.
        anchors: of each map, width and height of each anchor in pixels; empty in FCOS.
        selects: whether it also says which boxes are kept, see `write_detector`.
    """

    backbone: FoldedNetwork
    lateral: tuple[Convolution, ...]
    smooth: tuple[Convolution, ...]
    coarser: tuple[Convolution, ...]
    class_tower: tuple[TowerLayer, ...]
    box_tower: tuple[TowerLayer, ...]
    classes: tuple[Convolution, ...]
    boxes: tuple[Convolution, ...]
    centerness: Convolution | None
    anchors: tuple[tuple[tuple[float, float], ...], ...]
    selects: bool = False

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.backbone.in_chans

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes[0].bias)


def detector_shapes(
    architecture: Architecture, *, num_classes: int, channels: int, head: str = "fcos"
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a detector of `create_detector`, by key.

    Args:
        architecture: of the backbone.
        num_classes: without background.
        channels: of the pyramid.
        head: one of `FOLDED_HEADS`.
    """
    count = BOXES_OF_A_PLACE[head]
    stages = [architecture.stage_channels[stage - 1] for stage in STAGES]
    sizes = {f"{_PYRAMID}.inner_blocks.{i}.0": (channels, size, 1) for i, size in enumerate(stages)}
    names = [f"{_PYRAMID}.layer_blocks.{i}.0" for i in range(len(stages))]
    names += [f"{_PYRAMID}.extra_blocks.{name}" for name in ("p6", "p7")]
    layers = range(_LAYERS_OF_A_TOWER)
    towers = [_tower_keys(f"{tower}.conv", i, head) for tower in (_CLASSES, _BOXES) for i in layers]
    names += [conv for conv, _ in towers]
    sizes |= dict.fromkeys(names, (channels, channels, 3))
    sizes[f"{_CLASSES}.cls_logits"] = (count * num_classes, channels, 3)
    sizes[f"{_BOXES}.bbox_reg"] = (count * 4, channels, 3)
    if head == "fcos":
        sizes[f"{_BOXES}.bbox_ctrness"] = (1, channels, 3)
    body = architecture.shapes(num_classes=0)
    shapes = {f"{_BACKBONE}{key}": shape for key, shape in body.items()}
    for name, (outputs, inputs, side) in sizes.items():
        shapes |= {f"{name}.weight": (outputs, inputs, side, side), f"{name}.bias": (outputs,)}
    for conv, norm in towers:
        shapes |= {f"{norm}.weight": (channels,), f"{norm}.bias": (channels,)}
        if head == "retinanet":  # its tower convolutions have no biases
            del shapes[f"{conv}.bias"]
    return shapes


def _tower_keys(tower: str, layer: int, head: str) -> tuple[str, str]:
    """Keys of a tower layer's convolution and norm."""
    if head == "fcos":
        return f"{tower}.{3 * layer}", f"{tower}.{3 * layer + 1}"
    return f"{tower}.{layer}.0", f"{tower}.{layer}.1"


def fold_detector(
    architecture: Architecture,
    state_dict: Mapping[str, NDArray[Any]],
    *,
    form: Form = "branches",
    head: str = "fcos",
) -> FoldedDetector:
    """The folded network of a detector's weights, in float32.

    Args:
        architecture: of the backbone.
        state_dict: arrays of the shapes in `detector_shapes`, by key.
        form: see `fold`.
        head: one of `FOLDED_HEADS`.
    """
    arrays = {key: np.asarray(value) for key, value in state_dict.items()}
    body = {
        key.removeprefix(_BACKBONE): value
        for key, value in arrays.items()
        if key.startswith(_BACKBONE)
    }

    def conv(name: str, **geometry: int) -> Convolution:
        weight = np.asarray(arrays[f"{name}.weight"], np.float32)
        bias = arrays.get(f"{name}.bias", np.zeros(len(weight)))
        bias = np.asarray(bias, np.float32)
        return Convolution(weight=weight, bias=bias, padding=weight.shape[-1] // 2, **geometry)

    def layer(own: str, norm: str) -> TowerLayer:
        return TowerLayer(
            conv=conv(own),
            scale=np.asarray(arrays[f"{norm}.weight"], np.float32),
            shift=np.asarray(arrays[f"{norm}.bias"], np.float32),
        )

    def tower(name: str) -> tuple[TowerLayer, ...]:
        keys = (_tower_keys(f"{name}.conv", i, head) for i in range(_LAYERS_OF_A_TOWER))
        return tuple(layer(*each) for each in keys)

    def of_boxes(name: str) -> tuple[Convolution, ...]:
        """A convolution for each box of a place."""
        whole = conv(name)
        count = BOXES_OF_A_PLACE[head]
        parts = zip(np.split(whole.weight, count), np.split(whole.bias, count), strict=True)
        return tuple(replace(whole, weight=weight, bias=bias) for weight, bias in parts)

    levels = range(len(STAGES))
    return FoldedDetector(
        backbone=fold(architecture, body, form=form),
        lateral=tuple(conv(f"{_PYRAMID}.inner_blocks.{i}.0") for i in levels),
        smooth=tuple(conv(f"{_PYRAMID}.layer_blocks.{i}.0") for i in levels),
        coarser=tuple(conv(f"{_PYRAMID}.extra_blocks.{name}", stride=2) for name in ("p6", "p7")),
        class_tower=tower(_CLASSES),
        box_tower=tower(_BOXES),
        classes=of_boxes(f"{_CLASSES}.cls_logits"),
        boxes=of_boxes(f"{_BOXES}.bbox_reg"),
        centerness=conv(f"{_BOXES}.bbox_ctrness") if head == "fcos" else None,
        anchors=() if head == "fcos" else tuple(map(_anchors, ANCHOR_SIZES)),
    )


def _anchors(sizes: tuple[int, ...]) -> tuple[tuple[float, float], ...]:
    """Width and height of the anchors of a map, rounded as torchvision rounds them."""
    tall = np.sqrt(np.array(ANCHOR_RATIOS, np.float32))[:, None]
    scales = np.array(sizes, np.float32)[None]
    halves = np.stack([1 / tall * scales, tall * scales], -1).reshape(-1, 2) / 2
    return tuple((2 * float(w), 2 * float(h)) for w, h in halves.round())


def places(height: int, width: int, head: str = "fcos") -> list[int]:
    """How many boxes each map has, for images of a height and width that are multiples of 32."""
    count = BOXES_OF_A_PLACE.get(head, 1)
    return [count * -(-height // stride) * -(-width // stride) for stride in STRIDES]
