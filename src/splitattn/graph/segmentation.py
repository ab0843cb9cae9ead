"""A segmenter's inference network: the folded backbone and a pyramid that outputs pixel logits.

Shapes: B batch, K classes, H and W rows and columns of the image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitattn.architectures import Architecture
from splitattn.graph.folding import Convolution, FoldedNetwork, Form, fold
from splitattn.graph.reference import Array, Reference

# The stages whose maps the pyramid adds up.
STAGES = (1, 2, 3, 4)
# Height and width of images, in pixels, must be multiples of this.
MULTIPLE = 32
# Of the logits, in pixels of the image.
STRIDE = 4

# The heads of `create_segmenter` that can be folded. The others need a dilated backbone.
FOLDED_HEADS = ("fpn",)

_BACKBONE, _HEAD = "backbone.", "head."
_EPSILON = 1e-5  # of the batch norm


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldedSegmenter:
    """The head "fpn" of `create_segmenter` in evaluation.

    Images (B, 3, H, W), normalized, whose sides are multiples of 32, go through the backbone. Each
    map goes through its convolution in `laterals`. From the smallest map on, the sum so far is
    enlarged bilinearly to twice its size, and the next map is added. The total goes through `fuse`,
    a ReLU and `classifier`: logits (B, K, H / 4, W / 4).

    Attributes:
        backbone: without a classifier.
        laterals: a 1x1 convolution for each stage.
        fuse: a 3x3 convolution, with its batch norm folded in.
        classifier: a 1x1 convolution.
    """

    backbone: FoldedNetwork
    laterals: tuple[Convolution, ...]
    fuse: Convolution
    classifier: Convolution

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.backbone.in_chans

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classifier.bias)


def segmenter_shapes(
    architecture: Architecture, *, num_classes: int, channels: int
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a segmenter with head "fpn", by key.

    Args:
        architecture: of the backbone.
        num_classes: K.
        channels: of the pyramid.
    """
    body = architecture.shapes(num_classes=0)
    shapes = {f"{_BACKBONE}{key}": shape for key, shape in body.items()}
    convolutions = {
        f"laterals.{i}": (channels, architecture.stage_channels[stage - 1], 1)
        for i, stage in enumerate(STAGES)
    }
    convolutions["classifier"] = (num_classes, channels, 1)
    for name, (outputs, inputs, side) in convolutions.items():
        shapes[f"{_HEAD}{name}.weight"] = (outputs, inputs, side, side)
        shapes[f"{_HEAD}{name}.bias"] = (outputs,)
    shapes[f"{_HEAD}fuse.0.weight"] = (channels, channels, 3, 3)
    for name in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{_HEAD}fuse.1.{name}"] = (channels,)
    return shapes


def fold_segmenter(
    architecture: Architecture, tensors: Mapping[str, NDArray[Any]], *, form: Form = "branches"
) -> FoldedSegmenter:
    """The folded network of a segmenter's weights, in float32.

    Args:
        architecture: of the backbone.
        tensors: arrays of the shapes in `segmenter_shapes`, by key.
        form: see `fold`.
    """

    def of(key: str) -> Array:
        return np.asarray(tensors[f"{_HEAD}{key}"], np.float32)

    scale = of("fuse.1.weight") / np.sqrt(of("fuse.1.running_var") + np.float32(_EPSILON))
    return FoldedSegmenter(
        backbone=fold(architecture, _backbone(tensors), form=form),
        laterals=tuple(
            Convolution(weight=of(f"laterals.{i}.weight"), bias=of(f"laterals.{i}.bias"))
            for i in range(len(STAGES))
        ),
        fuse=Convolution(
            weight=of("fuse.0.weight") * scale[:, None, None, None],
            bias=of("fuse.1.bias") - of("fuse.1.running_mean") * scale,
            padding=1,
        ),
        classifier=Convolution(weight=of("classifier.weight"), bias=of("classifier.bias")),
    )


def _backbone(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {
        key.removeprefix(_BACKBONE): value
        for key, value in tensors.items()
        if key.startswith(_BACKBONE)
    }


class SegmenterReference(Reference):
    """The segmenter as it was trained, in NumPy: slow and simple, the reference for every engine.

    Input and output are those of `FoldedSegmenter`.

    Args:
        architecture: of the backbone.
        tensors: arrays of the shapes in `segmenter_shapes`, by key.
    """

    def __init__(self, architecture: Architecture, tensors: Mapping[str, NDArray[Any]]) -> None:
        head = {key: value for key, value in tensors.items() if key.startswith(_HEAD)}
        super().__init__(architecture, {**_backbone(tensors), **head})

    def __call__(self, images_BCHW: Array) -> Array:
        *larger, total = (
            self._conv(x, f"{_HEAD}laterals.{i}") for i, x in enumerate(self.maps(images_BCHW))
        )
        for level in reversed(larger):
            total = level + doubled(total)
        fused = self._norm(self._conv(total, f"{_HEAD}fuse.0", padding=1), f"{_HEAD}fuse.1")
        return self._conv(np.maximum(fused, 0), f"{_HEAD}classifier")


def doubled(x: Array) -> Array:
    """Enlarge `x` (B, C, H, W) bilinearly to twice its size, as with `align_corners=False`."""
    for axis in (2, 3):
        length = x.shape[axis]
        before = x.take(np.maximum(np.arange(length) - 1, 0), axis)
        after = x.take(np.minimum(np.arange(length) + 1, length - 1), axis)
        pairs = np.stack([(before + 3 * x) / 4, (3 * x + after) / 4], axis + 1)
        shape = [*x.shape]
        shape[axis] = 2 * length
        x = pairs.reshape(shape)
    return x
