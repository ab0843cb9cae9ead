"""A segmenter as nodes of an ONNX graph: the folded backbone, the pyramid, the logits.

Nodes are named after their parts: "pyramid.layer3.lateral", "pyramid.layer3.sum", "fuse",
"classifier".
"""

from splitattn.graph.onnx_network import MAPS, write_network
from splitattn.graph.onnx_writer import Tensor, Writer
from splitattn.graph.segmentation import STAGES, FoldedSegmenter


def write_segmenter(to: Writer, segmenter: FoldedSegmenter, size: int | None) -> Tensor:
    """Write the whole segmenter; return its logits (B, classes, H / 4, W / 4), float32."""
    names = [MAPS[stage] for stage in STAGES]
    maps = write_network(to, segmenter.backbone, size, names)
    *larger, total = (
        to.conv(f"pyramid.{name}.lateral", maps[name], conv)
        for name, conv in zip(names, segmenter.laterals, strict=True)
    )
    for name, level in reversed([*zip(names, larger, strict=False)]):
        doubled = to.doubled(f"pyramid.{name}.doubled", total, smooth=True)
        total = to.like("Add", f"pyramid.{name}.sum", level, doubled)
    fused = to.like("Relu", "fuse.relu", to.conv("fuse", total, segmenter.fuse))
    return to.float32(to.conv("classifier", fused, segmenter.classifier))
