"""A detector as nodes of an ONNX graph: the pyramid, both towers, boxes and scores.

A node is called after its part: "pyramid.layer3.lateral", "head.p5.box_tower.2.norm",
"decode.p5.boxes". "p3" to "p7" are the maps of the pyramid.
"""

from collections.abc import Sequence

import numpy as np

from splitattn.graph.detection import GROUPS, STAGES, STRIDES, FoldedDetector, TowerLayer
from splitattn.graph.folding import Convolution
from splitattn.graph.onnx_network import MAPS, write_network
from splitattn.graph.onnx_writer import Tensor, Writer

LEVELS = tuple(f"p{3 + i}" for i in range(len(STRIDES)))
_SIDES = 4  # of a box
# Left and top are before a place, right and bottom after it.
_SIGNS = np.array([-1, -1, 1, 1], np.float32).reshape(1, 4, 1, 1)


def write_detector(to: Writer, detector: FoldedDetector, size: int | None) -> tuple[str, str]:
    """Write the whole detector; gives the names of its outputs, both float32.

    Returns:
        Boxes (B, N, 4): left, top, right and bottom in pixels of the image; and scores (B, N, K)
        from 0 to 1. N counts the places of all maps, the finest first, row by row.
    """
    names = [MAPS[stage] for stage in STAGES]
    found = write_network(to, detector.backbone, size, names)
    levels = zip(LEVELS, _pyramid(to, detector, [found[name] for name in names]), strict=True)
    heads = [_head(to, f"head.{level}", detector, x) for level, x in levels]
    boxes, scores = [], []
    for level, stride, (classes, distances, centerness) in zip(LEVELS, STRIDES, heads, strict=True):
        name = f"decode.{level}"
        maps = _boxes(to, name, distances, centerness, stride)
        boxes.append(_flat(to, f"{name}.boxes", maps, _SIDES))
        maps = _scores(to, name, classes, centerness)
        scores.append(_flat(to, f"{name}.scores", maps, detector.num_classes))
    return _together(to, "decode.boxes", boxes), _together(to, "decode.scores", scores)


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


def _head(
    to: Writer, name: str, detector: FoldedDetector, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of classes, distances and logits of centerness, in float32."""

    def last(part: str, x: Tensor, conv: Convolution) -> Tensor:
        return to.conv(f"{name}.{part}", x, conv, shared=f"head.{part}")

    of_classes = _tower(to, name, "class_tower", detector.class_tower, x)
    of_boxes = _tower(to, name, "box_tower", detector.box_tower, x)
    distances = last("boxes", of_boxes, detector.boxes)
    found = (
        last("classes", of_classes, detector.classes),
        to.like("Relu", f"{name}.boxes.relu", distances),
        last("centerness", of_boxes, detector.centerness),
    )
    classes, boxes, centerness = (to.float32(each) for each in found)
    return classes, boxes, centerness


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
    """Boxes (B, 4, H, W) in pixels, from distances to places that are counted here."""
    zeros = to.like("Sub", f"{name}.zeros", centerness, centerness)
    ones = to.like("Exp", f"{name}.ones", zeros)
    columns, rows = (
        to.counted(f"{name}.{part}", ones, axis) for part, axis in (("columns", 3), ("rows", 2))
    )
    places = to.concatenated(f"{name}.places", [columns, rows, columns, rows])
    signs = Tensor(name=to.constant("decode.signs", _SIGNS), channels=_SIDES, side=1)
    scale = Tensor(
        name=to.constant(f"{name}.stride", np.full((1, 1, 1, 1), stride, np.float32)),
        channels=1,
        side=1,
    )
    reach = to.like("Mul", f"{name}.reach", distances, signs)
    return to.like("Mul", f"{name}.pixels", to.like("Add", f"{name}.sides", places, reach), scale)


def _flat(to: Writer, name: str, x: Tensor, channels: int) -> str:
    """(B, C, H, W) to (B, C, H * W)."""
    shape = to.constant(f"decode.flat.{channels}", np.array([0, channels, -1], np.int64))
    return to.node("Reshape", name, x.name, shape)


def _together(to: Writer, name: str, levels: Sequence[str]) -> str:
    """(B, C, N) of each level to (B, N, C) of all."""
    return to.node(
        "Transpose", name, to.node("Concat", f"{name}.all", *levels, axis=2), perm=[0, 2, 1]
    )
