"""The folded detector, in NumPy and ONNX, equals torchvision's detector."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image, nms

from splitattn.architectures import ARCHITECTURES, Architecture
from splitattn.dense.detectors import create_detector
from splitattn.graph.detection import STRIDES, detector_shapes, fold_detector, places
from splitattn.graph.folding import Form
from splitattn.graph.onnx_model import OPSETS, parts, to_onnx
from tests.nn.networks import randomize_norms

SHAPE = Architecture(layers=(1, 1, 1, 1), planes=4, stem_width=4)


@pytest.fixture(scope="module")
def detector() -> Any:
    return lively("fcos")


@pytest.fixture(scope="module")
def anchored() -> Any:
    """A RetinaNet with scores around one half and boxes far from their anchors."""
    network = lively("retinanet")
    nn.init.zeros_(network.head.classification_head.cls_logits.bias)
    nn.init.normal_(network.head.regression_head.bbox_reg.weight, std=0.3)
    return network


def lively(head: str) -> Any:
    """A detector with random norms and last layers, whose initial values are constant or tiny."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any = create_detector(SHAPE, num_classes=3, channels=64, head=head).eval()
        randomize_norms(network)
        for module in network.modules():
            if isinstance(module, nn.GroupNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        for layer in (network.head.classification_head.cls_logits, network.head.regression_head):
            for weight in layer.parameters():
                if weight.ndim == 4:
                    nn.init.normal_(weight, std=0.05)
    return network


@torch.inference_mode()
def expected(detector: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """torchvision's boxes and scores for normalized images, before selection."""
    maps = [*detector.backbone(images).values()]
    found = detector.head(maps)
    sizes = [(images.shape[2], images.shape[3])] * len(images)
    anchors = detector.anchor_generator(ImageList(images, sizes), maps)
    if "bbox_ctrness" not in found:
        whole = [
            detector.box_coder.decode_single(changes, anchor)
            for changes, anchor in zip(found["bbox_regression"], anchors, strict=True)
        ]
        return by_anchor(torch.stack(whole), maps), by_anchor(found["cls_logits"].sigmoid(), maps)
    boxes = [
        detector.box_coder.decode(distances, anchor)
        for distances, anchor in zip(found["bbox_regression"], anchors, strict=True)
    ]
    sure = found["cls_logits"].sigmoid() * found["bbox_ctrness"].sigmoid()
    return torch.stack(boxes), sure.sqrt()


def by_anchor(values: Tensor, maps: list[Tensor]) -> Tensor:
    """Reorder (B, N, C) from position by position to anchor by anchor, within each level."""
    counts = [9 * each.shape[2] * each.shape[3] for each in maps]
    parts = values.split(counts, 1)
    return torch.cat(
        [part.unflatten(1, (-1, 9)).transpose(1, 2).flatten(1, 2) for part in parts], 1
    )


def arrays(detector: nn.Module) -> dict[str, Any]:
    return {key: value.numpy() for key, value in detector.state_dict().items()}


@pytest.mark.parametrize(
    ("form", "half", "opset", "tolerance"),
    [
        ("branches", False, 13, 1e-4),
        ("grouped", False, OPSETS[0], 1e-4),
        ("branches", False, OPSETS[-1], 1e-4),
        ("branches", True, 13, 0.2),
    ],
)
def test_boxes_and_scores_are_those_of_torchvision(
    detector: Any, form: Form, half: bool, opset: int, tolerance: float
) -> None:
    network = replace(fold_detector(SHAPE, arrays(detector), form=form), selects=True)
    model = to_onnx(network, size=None, half=half, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    # The coarse levels get odd sides, down to one pixel.
    for batch, height, width in ((2, 96, 160), (1, 224, 32)):
        images = torch.randn(batch, 3, height, width)
        boxes, scores, selected = session.run(None, {"images": images.numpy()})
        true_boxes, true_scores = expected(detector, images)
        assert boxes.shape == (batch, sum(places(height, width)), 4)
        assert true_scores.std() > 0.05
        check_selection(boxes, scores, selected, (height, width))
        np.testing.assert_allclose(boxes, true_boxes, atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(scores, true_scores, atol=tolerance / 10)


def check_selection(
    boxes: np.ndarray, scores: np.ndarray, selected: np.ndarray, size: tuple[int, int]
) -> None:
    """Check that `selected` holds the boxes that torchvision keeps for each image and class."""
    found = {(image, label): [] for image in range(len(boxes)) for label in range(scores.shape[2])}
    for image, label, place in selected.tolist():
        found[image, label].append(place)
    assert [*map(tuple, selected[:, :2])] == sorted(map(tuple, selected[:, :2]))
    cut = clip_boxes_to_image(torch.from_numpy(boxes), size)
    for (image, label), own in found.items():
        values = torch.from_numpy(scores[image, :, label])
        (above,) = torch.nonzero(values > 0.05, as_tuple=True)
        assert len(above) > 1
        kept = nms(cut[image][above], values[above], 0.6)[:100]
        assert len(kept) < len(above)
        assert own == above[kept].tolist()


def test_boxes_of_anchors_are_those_of_torchvision(anchored: Any) -> None:
    """Some regressions are so large that torchvision clips them."""
    network = replace(fold_detector(SHAPE, arrays(anchored), head="retinanet"), selects=True)
    model = to_onnx(network, size=None)
    session = ort.InferenceSession(model.SerializeToString())
    images = 3 * torch.randn(2, 3, 96, 160)
    boxes, scores, selected = session.run(None, {"images": images.numpy()})
    check_selection(boxes, scores, selected, (96, 160))
    true_boxes, true_scores = expected(anchored, images)
    assert boxes.shape == (2, sum(places(96, 160, "retinanet")), 4)
    assert true_scores.std() > 0.05
    assert (true_boxes[..., 2] - true_boxes[..., 0]).max() > 600
    # The exponential in the box decoding enlarges rounding errors.
    np.testing.assert_allclose(boxes, true_boxes, atol=0.05, rtol=1e-4)
    np.testing.assert_allclose(scores, true_scores, atol=1e-5)


def test_boxes_that_overflow_stay_infinite_so_that_they_are_refused(detector: Any) -> None:
    network = fold_detector(SHAPE, arrays(detector))
    boxes = tuple(replace(conv, bias=conv.bias + np.float32(3e38)) for conv in network.boxes)
    model = to_onnx(replace(network, boxes=boxes, selects=True), size=None)
    session = ort.InferenceSession(model.SerializeToString())
    found, *_ = session.run(None, {"images": np.zeros((1, 3, 96, 160), np.float32)})
    assert not np.isfinite(found).all()


def test_padding_an_image_does_not_move_its_anchors(detector: Any) -> None:
    """For maps of stride 64, torchvision's own grid would have steps of 56 pixels here."""
    images = torch.zeros(1, 3, 224, 224)
    maps = [torch.zeros(1, 1, -(-224 // stride), -(-224 // stride)) for stride in STRIDES]
    (anchors,) = detector.anchor_generator(ImageList(images, [(224, 224)]), maps)
    coarse = anchors.split(places(224, 224))[3]
    centers = (coarse[:, :2] + coarse[:, 2:]) / 2
    assert centers[:, 0].unique().tolist() == [0, 64, 128, 192]


@pytest.mark.parametrize("name", ["resnest14", "resnest50_fast_1s4x24d", "resnest26_tiny"])
def test_the_shapes_of_a_detector_are_known_without_pytorch(name: str) -> None:
    with torch.device("meta"):
        network = create_detector(name, num_classes=7, channels=96)
    found = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert detector_shapes(ARCHITECTURES[name], num_classes=7, channels=96) == found
    with torch.device("meta"):
        network = create_detector(name, num_classes=7, channels=96, head="retinanet")
    found = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    shapes = detector_shapes(ARCHITECTURES[name], num_classes=7, channels=96, head="retinanet")
    assert shapes == found


def test_norms_and_box_decoding_are_named_as_separate_parts(detector: Any) -> None:
    model = to_onnx(fold_detector(SHAPE, arrays(detector)), size=None)
    found = parts(node.name for node in model.graph.node)
    kinds = {node.name: node.op_type for node in model.graph.node}
    assert {kinds[name] for name in found["norms"]} == {
        *("Reshape", "InstanceNormalization", "Mul", "Add")
    }
    assert "CumSum" in {kinds[name] for name in found["decode"]}
    assert "Conv" not in {kinds[name] for part in ("norms", "decode") for name in found[part]}
