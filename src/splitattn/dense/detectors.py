"""Detectors: a backbone of ours, a feature pyramid, and a head of torchvision.

Networks here take images that have been resized already, and boxes are in pixels of these.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from splitattn.architectures import Architecture
from splitattn.create import backbone_and_rest
from splitattn.dense.heads import load_head, settings_of_head
from splitattn.errors import InputError, check_choice
from splitattn.graph.detection import (
    ANCHOR_RATIOS,
    ANCHOR_SIZES,
    GROUPS,
    LEAST_SCORE,
    MOST_OBJECTS,
    STRIDES,
)
from splitattn.libraries import torchvision_imported
from splitattn.nn.backbone import Backbone
from splitattn.nn.batch_norm import BatchNorm2d
from splitattn.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from splitattn.weights.checkpoint import read_by_own_keys
from splitattn.weights.resolve import resolve

with torchvision_imported("a detector"):
    from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import (
        FastRCNNConvFCHead,
        FastRCNNPredictor,
        TwoMLPHead,
    )
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.retinanet import RetinaNetHead
    from torchvision.models.detection.rpn import RPNHead
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.feature_pyramid_network import (
        ExtraFPNBlock,
        LastLevelMaxPool,
        LastLevelP6P7,
    )

logger = logging.getLogger(__name__)

# Group norm in the heads has 32 groups, and each needs two values or more, even if a map is one
# pixel large.
_FEWEST_CHANNELS, _CHANNELS, _MOST_CHANNELS = 64, 256, 1024
# Regions of an image that the second stage classifies (arXiv 1506.01497, section 3.3).
_REGIONS = 300
# Two stages: strides of the maps in pixels; sizes of the anchors in pixels, the published ones and
# half of these, since images here are often smaller; sides of the regions for boxes and for masks.
_REGION_STRIDES = (4, 8, 16, 32, 64)
_REGION_ANCHORS = tuple((4 * stride, 8 * stride) for stride in _REGION_STRIDES)
_BOX_SIDE, _MASK_SIDE, _BOX_WIDTH = 7, 14, 1024

BOX_HEADS = ["2fc", "4conv1fc"]
_BODY = "backbone.body."  # keys of the backbone within a detector


class _NormalizeOnly(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Normalizes and pads images, and leaves their size to the caller."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: Any, original_image_sizes: Any
    ) -> list[dict[str, Tensor]]:
        """Boxes are in pixels of the image already. Masks stay as small as they are."""
        del image_shapes, original_image_sizes
        return result


class _FixedGrid(AnchorGenerator):  # type: ignore[misc]
    """Anchors every 8, 16, 32, ... pixels.

    torchvision divides the size of the padded image by that of the map instead, so boxes of large
    objects would depend on how much an image is padded.

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

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        # Not in the precision of the maps: in bfloat16, places past 256 would be two pixels apart.
        del dtype
        super().set_cell_anchors(torch.float32, device)

    def grid_anchors(self, grid_sizes: Any, strides: Any) -> list[Tensor]:
        del strides
        found: list[Tensor] = super().grid_anchors(grid_sizes, self._strides)
        return found


def _in_float32(_: nn.Module, __: Any, output: Any) -> Any:
    """A forward hook that casts a head's output to float32, so that boxes are computed in it."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {key: _in_float32(_, __, value) for key, value in output.items()}
    return type(output)(_in_float32(_, __, each) for each in output)


@dataclass(frozen=True, kw_only=True)
class DetectionHead:
    """A row of the table of heads.

    Attributes:
        build: makes the detector of a backbone, the number of classes, the channels of the pyramid
            and the name of a box head.
        first_label: the head's label of the first class; 1 where 0 is the background.
        out_indices: maps of the backbone that the pyramid takes.
        stages: 1, or 2 if a second stage classifies the regions that the first one proposes.
        masks: whether it finds the pixels of each object.
    """

    build: Callable[[Backbone, int, int, str], nn.Module]
    first_label: int
    out_indices: tuple[int, ...]
    stages: int = 1
    masks: bool = False


def _pyramid(
    backbone: Backbone,
    channels: int,
    coarser: ExtraFPNBlock,
    norm: Callable[[int], nn.Module] | None = None,
) -> BackboneWithFPN:
    return BackboneWithFPN(
        backbone,
        return_layers={f"layer{i}": str(i) for i in backbone.out_indices},
        in_channels_list=list(backbone.channels),
        out_channels=channels,
        extra_blocks=coarser,
        norm_layer=norm,
    )


class _CoarserLevels(LastLevelP6P7):  # type: ignore[misc]
    """Levels 6 and 7 of the pyramid, in float32 whatever the others are in.

    In bfloat16 on processors with AVX-512, oneDNN 3.12 (in PyTorch 2.14) computes the weight
    gradient of a 3x3 convolution with stride 2 over a map of one pixel from uninitialized memory:
    it is garbage, and sometimes NaN. These maps are so small that float32 costs nothing.
    """

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        with torch.autocast(results[-1].device.type, enabled=False):
            levels, names = super().forward([results[-1].float()], x, names)
        return [*results, *levels[1:]], names


def _fcos(backbone: Backbone, classes: int, channels: int, _: str) -> nn.Module:
    """Tian et al., arXiv 2006.09214. Its classes are sigmoids: there is no background class."""
    detector: Any = FCOS(
        _pyramid(backbone, channels, _CoarserLevels(channels, channels)),
        classes,
        anchor_generator=_FixedGrid(STRIDES, tuple((stride,) for stride in STRIDES), (1.0,)),
        score_thresh=LEAST_SCORE,
        detections_per_img=MOST_OBJECTS,
    )
    detector.head.register_forward_hook(_in_float32)
    return detector  # type: ignore[no-any-return]


def _retinanet(backbone: Backbone, classes: int, channels: int, _: str) -> nn.Module:
    """Lin et al., arXiv 1708.02002.

    Group norm and the loss of boxes are those of torchvision's second version.
    """
    anchors = _FixedGrid(STRIDES, ANCHOR_SIZES, ANCHOR_RATIOS)
    count = anchors.num_anchors_per_location()[0]
    head = RetinaNetHead(channels, count, classes, norm_layer=partial(nn.GroupNorm, GROUPS))
    head.regression_head._loss_type = "giou"
    head.register_forward_hook(_in_float32)
    detector: nn.Module = RetinaNet(
        _pyramid(backbone, channels, _CoarserLevels(channels, channels)),
        classes,
        anchor_generator=anchors,
        head=head,
        score_thresh=LEAST_SCORE,
        detections_per_img=MOST_OBJECTS,
    )
    return detector


def _faster_rcnn(backbone: Backbone, classes: int, channels: int, box_head: str) -> nn.Module:
    """Ren et al., arXiv 1506.01497, on a feature pyramid (arXiv 1612.03144)."""
    pyramid, parts = _two_stages(backbone, classes, channels, box_head)
    detector: nn.Module = FasterRCNN(pyramid, **parts)
    return detector


def _mask_rcnn(backbone: Backbone, classes: int, channels: int, box_head: str) -> nn.Module:
    """He et al., arXiv 1703.06870."""
    pyramid, parts = _two_stages(backbone, classes, channels, box_head)
    detector: nn.Module = MaskRCNN(
        pyramid,
        mask_roi_pool=_regions(backbone, _MASK_SIDE),
        mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1, norm_layer=_norm(box_head)),
        mask_predictor=MaskRCNNPredictor(channels, channels, classes + 1),
        **parts,
    )
    return detector


def _two_stages(
    backbone: Backbone, classes: int, channels: int, box_head: str
) -> tuple[nn.Module, dict[str, Any]]:
    """The pyramid, and the parts that both detectors of two stages have."""
    anchors = _FixedGrid(_REGION_STRIDES, _REGION_ANCHORS, ANCHOR_RATIOS)
    proposing = RPNHead(channels, anchors.num_anchors_per_location()[0])
    proposing.register_forward_hook(_in_float32)
    predictor = FastRCNNPredictor(_BOX_WIDTH, classes + 1)
    predictor.register_forward_hook(_in_float32)
    norm = _norm(box_head)
    if box_head == "2fc":
        head: nn.Module = TwoMLPHead(channels * _BOX_SIDE**2, _BOX_WIDTH)
    else:
        size = (channels, _BOX_SIDE, _BOX_SIDE)
        head = FastRCNNConvFCHead(size, [channels] * 4, [_BOX_WIDTH], norm_layer=norm)
    return _pyramid(backbone, channels, LastLevelMaxPool(), norm), {
        "rpn_anchor_generator": anchors,
        "rpn_head": proposing,
        "rpn_post_nms_top_n_test": _REGIONS,
        "box_roi_pool": _regions(backbone, _BOX_SIDE),
        "box_head": head,
        "box_predictor": predictor,
        "box_score_thresh": LEAST_SCORE,
        "box_detections_per_img": MOST_OBJECTS,
    }


def _norm(box_head: str) -> Callable[[int], nn.Module] | None:
    return None if box_head == "2fc" else BatchNorm2d


def _regions(backbone: Backbone, side: int) -> MultiScaleRoIAlign:
    names = [str(i) for i in backbone.out_indices]
    return MultiScaleRoIAlign(names, output_size=side, sampling_ratio=2)


DETECTION_HEADS: Mapping[str, DetectionHead] = {
    "fcos": DetectionHead(build=_fcos, first_label=0, out_indices=(2, 3, 4)),
    "retinanet": DetectionHead(build=_retinanet, first_label=0, out_indices=(2, 3, 4)),
    "faster_rcnn": DetectionHead(
        build=_faster_rcnn, first_label=1, out_indices=(1, 2, 3, 4), stages=2
    ),
    "mask_rcnn": DetectionHead(
        build=_mask_rcnn, first_label=1, out_indices=(1, 2, 3, 4), stages=2, masks=True
    ),
}


def find_head(name: str) -> DetectionHead:
    """The row of a head.

    Raises:
        InputError: there is none of that name.
    """
    check_choice("head", name, DETECTION_HEADS)
    return DETECTION_HEADS[name]


def check_box_head(head: str, box_head: str) -> None:
    """Raise `InputError` unless a detector with `head` can have `box_head`."""
    check_choice("box_head", box_head, BOX_HEADS)
    if box_head != BOX_HEADS[0] and find_head(head).stages == 1:
        raise InputError(
            f"head {head} has no box head, got box_head {box_head!r}: leave it at {BOX_HEADS[0]!r}"
        )


def create_detector(
    model: str | Architecture,
    *,
    num_classes: int,
    head: str = "fcos",
    weights: str | Path | None = None,
    channels: int | None = None,
    box_head: str | None = None,
    new_head: bool = False,
    frozen_stages: int = 0,
    frozen_bn: bool = False,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> nn.Module:
    """Build a detector, in training mode, and load weights: a backbone's, or a whole detector's.

    In training mode it takes a list of images (3, H, W), floats from 0 to 1, and a list of targets
    with `boxes` (N, 4) and `labels` (N,), and gives a dictionary of losses. In evaluation mode it
    takes the images and gives for each a dictionary of `boxes`, `labels` and `scores`. Boxes are
    left, top, right and bottom in pixels. It does not resize: `Detector` does, and the training.

    "mask_rcnn" takes `masks` (N, H, W) besides, and gives them as (N, 1, 28, 28): how likely each
    part of the box is the object's. torchvision's `paste_masks_in_image` enlarges them.

    Args:
        model, weights: see `create_backbone`.
        num_classes: without background. Labels count from 0 for "fcos" and "retinanet", and from 1
            for the others, where 0 is the background.
        head: "fcos", "retinanet", "faster_rcnn" or "mask_rcnn".
        channels: of each map of the feature pyramid; a multiple of 32 from 64 to 1024. None takes
            those of the weights, if they have this head, or else 256.
        box_head: of "faster_rcnn" and "mask_rcnn": "2fc" is two dense layers and no norms,
            "4conv1fc" four convolutions and a dense layer, with batch norms in pyramid and heads,
            as in the paper. None takes that of the weights, if they have this head, or else "2fc".
        new_head: start with a random pyramid and head, such as for other classes. Those of the
            weights are not used either if they do not fit, which is a warning.
        frozen_stages, frozen_bn: see `Backbone`.
        mean, std: of the images, per channel.

    Raises:
        InputError: an argument is outside its range, or there is no such model or head.
        WeightsError: the weights cannot be found or downloaded, or do not fit the model.
    """
    row = find_head(head)
    if num_classes < 1:
        raise InputError(f"num_classes must be at least 1, got {num_classes}")
    path = None if weights is None else resolve(str(model), weights).path
    settings = settings_of_head(path, head)
    if channels is None:
        channels = settings.get("channels", _CHANNELS)
    if box_head is None:
        box_head = settings.get("box_head", BOX_HEADS[0])
    if (
        type(channels) is not int
        or channels % GROUPS
        or not _FEWEST_CHANNELS <= channels <= _MOST_CHANNELS
    ):
        raise InputError(
            f"channels must be a multiple of {GROUPS} from {_FEWEST_CHANNELS} to "
            f"{_MOST_CHANNELS}, got {channels!r}"
        )
    check_box_head(head, box_head)
    backbone, left_out = backbone_and_rest(
        model,
        weights=weights,
        out_indices=row.out_indices,
        frozen_stages=frozen_stages,
        frozen_bn=frozen_bn,
    )
    detector = row.build(backbone, num_classes, channels, box_head)
    detector.transform = _NormalizeOnly(1, 1, list(mean), list(std))
    loaded = False
    if path is not None and not new_head:
        own = {k: v for k, v in detector.state_dict().items() if not k.startswith(_BODY)}
        found = {k: v for k, v in read_by_own_keys(path).items() if k in own}
        loaded = load_head("head, with its pyramid,", own, found, path)
    if left_out and not loaded:
        logger.warning("%s", left_out)
    return detector
