"""A detector as nodes of an ONNX graph: the pyramid, both towers, boxes and scores.

Nodes are named after their parts: "pyramid.layer3.lateral", "head.p5.box_tower.2.norm",
"decode.p5.boxes". "p3" to "p7" are the maps of the pyramid.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import TensorProto

from splitattn.graph.detection import (
    GROUPS,
    IOU,
    LEAST_SCORE,
    MOST_OBJECTS,
    STAGES,
    STRIDES,
    FoldedDetector,
    TowerLayer,
)
from splitattn.graph.folding import Convolution
from splitattn.graph.onnx_network import MAPS, write_network
from splitattn.graph.onnx_writer import Tensor, Writer

LEVELS = tuple(f"p{3 + i}" for i in range(len(STRIDES)))
_SIDES = 4  # of a box
_MOST_GROWTH = math.log(1000 / 16)  # of an anchor, as in torchvision's `BoxCoder`
# Left and top are before a place, right and bottom after it.
_SIGNS = np.array([-1, -1, 1, 1], np.float32).reshape(1, 4, 1, 1)


def write_detector(to: Writer, detector: FoldedDetector, size: int | None) -> list[str]:
    """Write the whole detector and return the names of its outputs.

    The outputs are boxes (B, N, 4), float32: left, top, right and bottom in pixels of the image;
    and scores (B, N, K), float32, from 0 to 1. The N boxes are ordered by map, the finest first,
    then by anchor, then row by row.

    If the detector selects, a third output (M, 3), int64, lists the boxes that are kept: indices of
    image, class and box, ordered by image and class, the best first. Boxes are clipped to the image
    before their overlaps are computed. Limits are `LEAST_SCORE`, `IOU` and, for each class of each
    image, `MOST_OBJECTS`.
    """
    names = [MAPS[stage] for stage in STAGES]
    found = write_network(to, detector.backbone, size, names)
    levels = zip(LEVELS, _pyramid(to, detector, [found[name] for name in names]), strict=True)
    boxes, scores = [], []
    for i, (level, x) in enumerate(levels):
        found_boxes, found_scores = _level(to, level, i, detector, x)
        boxes.append(_joined(to, f"decode.{level}.all_boxes", found_boxes))
        scores.append(_joined(to, f"decode.{level}.all_scores", found_scores))
    boxes_BN4 = _turned(to, "decode.boxes", _joined(to, "decode.boxes.all", boxes))
    scores_BKN = _joined(to, "decode.scores.all", scores)
    outputs = [boxes_BN4, _turned(to, "decode.scores", scores_BKN)]
    return (
        [*outputs, _selected(to, _cut(to, boxes_BN4), scores_BKN)] if detector.selects else outputs
    )


def _level(
    to: Writer, level: str, number: int, detector: FoldedDetector, x: Tensor
) -> tuple[list[str], list[str]]:
    """Boxes (B, 4, H * W) and scores (B, K, H * W) of a map, for each box of a place."""
    head, stride = f"head.{level}", STRIDES[number]
    of_classes = _tower(to, head, "class_tower", detector.class_tower, x)
    of_boxes = _tower(to, head, "box_tower", detector.box_tower, x)

    def last(part: str, x: Tensor, conv: Convolution) -> Tensor:
        return to.conv(f"{head}.{part}", x, conv, shared=f"head.{part}")

    many = len(detector.boxes) > 1
    found_boxes, found_scores = [], []
    for k, (to_classes, to_box) in enumerate(zip(detector.classes, detector.boxes, strict=True)):
        end = f".{k}" if many else ""
        name = f"decode.{level}{end}"
        logits = last(f"classes{end}", of_classes, to_classes)
        if detector.centerness:
            distances = last("boxes", of_boxes, to_box)
            distances = to.like("Relu", f"{head}.boxes.relu", distances)
            centerness = to.float32(last("centerness", of_boxes, detector.centerness))
            maps = _boxes(to, name, to.float32(distances), centerness, stride)
            shares = _scores(to, name, to.float32(logits), centerness)
        else:
            anchor = detector.anchors[number][k]
            moves, growths = (
                to.float32(last(f"{part}{end}", of_boxes, _channels(to_box, channels)))
                for part, channels in (("moves", slice(0, 2)), ("growths", slice(2, 4)))
            )
            maps = _anchored(to, name, moves, growths, anchor, stride)
            shares = to.like("Sigmoid", f"{name}.score", to.float32(logits))
        found_boxes.append(_flat(to, f"{name}.boxes", maps, _SIDES))
        found_scores.append(_flat(to, f"{name}.scores", shares, detector.num_classes))
    return found_boxes, found_scores


def _channels(conv: Convolution, channels: slice) -> Convolution:
    return replace(conv, weight=conv.weight[channels], bias=conv.bias[channels])


def _pyramid(to: Writer, detector: FoldedDetector, maps: Sequence[Tensor]) -> list[Tensor]:
    names = [f"pyramid.{MAPS[stage]}" for stage in STAGES]
    sums = [
        to.conv(f"{name}.lateral", x, conv)
        for name, x, conv in zip(names, maps, detector.lateral, strict=True)
    ]
    for i in reversed(range(len(sums) - 1)):
        doubled = to.doubled(f"{names[i]}.doubled", sums[i + 1])
        sums[i] = to.like("Add", f"{names[i]}.sum", sums[i], doubled)
    levels = [
        to.conv(f"{name}.smooth", x, conv)
        for name, x, conv in zip(names, sums, detector.smooth, strict=True)
    ]
    p6 = to.conv("pyramid.p6", levels[-1], detector.coarser[0])
    p7 = to.conv("pyramid.p7", to.like("Relu", "pyramid.p6.relu", p6), detector.coarser[1])
    return [*levels, p6, p7]


def _tower(to: Writer, name: str, part: str, layers: Sequence[TowerLayer], x: Tensor) -> Tensor:
    for i, layer in enumerate(layers):
        own, shared = f"{name}.{part}.{i}", f"head.{part}.{i}"
        x = to.conv(own, x, layer.conv, shared=shared)
        x = to.group_norm(f"{own}.norm", x, GROUPS, layer.scale, layer.shift, f"{shared}.norm")
        x = to.like("Relu", f"{own}.relu", x)
    return x


def _scores(to: Writer, name: str, classes: Tensor, centerness: Tensor) -> Tensor:
    sure = to.like("Sigmoid", f"{name}.class", classes)
    central = to.like("Sigmoid", f"{name}.centerness", centerness)
    return to.like("Sqrt", f"{name}.score", to.like("Mul", f"{name}.product", sure, central))


def _boxes(to: Writer, name: str, distances: Tensor, centerness: Tensor, stride: int) -> Tensor:
    """Boxes (B, 4, H, W) in pixels, from the distances to their sides at each place."""
    columns, rows = _counted(to, name, centerness)
    places = to.concatenated(f"{name}.places", [columns, rows, columns, rows])
    signs = Tensor(name=to.constant("decode.signs", _SIGNS), channels=_SIDES, side=1)
    scale = Tensor(
        name=to.constant(f"{name}.stride", np.full((1, 1, 1, 1), stride, np.float32)),
        channels=1,
        side=1,
    )
    reach = to.like("Mul", f"{name}.reach", distances, signs)
    return to.like("Mul", f"{name}.pixels", to.like("Add", f"{name}.sides", places, reach), scale)


def _counted(to: Writer, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """The column and the row of each place of a map, as two maps."""
    zeros = to.like("Sub", f"{name}.zeros", like, like)
    ones = to.like("Exp", f"{name}.ones", zeros)
    columns, rows = (
        to.counted(f"{name}.{part}", ones, axis) for part, axis in (("columns", 3), ("rows", 2))
    )
    return columns, rows


def _anchored(
    to: Writer,
    name: str,
    moves: Tensor,
    growths: Tensor,
    anchor: tuple[float, float],
    stride: int,
) -> Tensor:
    """Boxes (B, 4, H, W) in pixels, from how they differ from the anchor at each place.

    Args:
        moves, growths: (B, 2, H, W), of x and y, and of width and height.
    """

    def constant(part: str, *values: float) -> Tensor:
        numbers = np.array(values, np.float32).reshape(1, -1, 1, 1)
        return Tensor(name=to.constant(f"{name}.{part}", numbers), channels=len(values), side=1)

    size = constant("anchor", *anchor)
    columns, rows = _counted(to, name, moves)
    across = to.like("Mul", f"{name}.across", columns, constant("across.steps", stride, 0))
    down = to.like("Mul", f"{name}.down", rows, constant("down.steps", 0, stride))
    pixels = to.like("Add", f"{name}.pixels", across, down)
    center = to.like("Add", f"{name}.center", to.like("Mul", f"{name}.moved", moves, size), pixels)
    # min(growth, the largest that torchvision allows).
    most = constant("most", _MOST_GROWTH)
    beyond = to.like("Relu", f"{name}.beyond", to.like("Sub", f"{name}.over", growths, most))
    growth = to.like("Exp", f"{name}.growth", to.like("Sub", f"{name}.limited", growths, beyond))
    half = to.like("Mul", f"{name}.half", growth, constant("half_anchor", *(v / 2 for v in anchor)))
    near = to.like("Sub", f"{name}.near", center, half)
    far = to.like("Add", f"{name}.far", center, half)
    return to.concatenated(f"{name}.sides", [near, far])


def _flat(to: Writer, name: str, x: Tensor, channels: int) -> str:
    """(B, C, H, W) to (B, C, H * W)."""
    shape = to.constant(f"decode.flat.{channels}", np.array([0, channels, -1], np.int64))
    return to.node("Reshape", name, x.name, shape)


def _joined(to: Writer, name: str, parts: Sequence[str]) -> str:
    """Concatenate several (B, C, N) along N."""
    return parts[0] if len(parts) == 1 else to.node("Concat", name, *parts, axis=2)


def _turned(to: Writer, name: str, x: str) -> str:
    """(B, C, N) to (B, N, C)."""
    return to.node("Transpose", name, x, perm=[0, 2, 1])


def _cut(to: Writer, boxes_BN4: str) -> str:
    """Clip boxes to their image."""
    shape = to.node("Shape", "decode.image.shape", "images")
    sides = to.constant("decode.image.sides", np.array([[[3, 2, 3, 2]]], np.int64))
    lengths = to.node("Gather", "decode.image.lengths", shape, sides)
    most = to.node("Cast", "decode.image.most", lengths, to=TensorProto.FLOAT)
    positive = to.node("Relu", "decode.boxes.positive", boxes_BN4)
    return to.node("Min", "decode.boxes.cut", positive, most)


def _selected(to: Writer, boxes_BN4: str, scores_BKN: str) -> str:
    most = to.constant("decode.selected.most", np.array([MOST_OBJECTS], np.int64))
    iou = to.constant("decode.selected.iou", np.array([IOU], np.float32))
    least = to.constant("decode.selected.least", np.array([LEAST_SCORE], np.float32))
    inputs = (boxes_BN4, scores_BKN, most, iou, least)
    return to.node("NonMaxSuppression", "decode.selected", *inputs)
