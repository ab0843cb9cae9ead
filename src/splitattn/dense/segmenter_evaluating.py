"""Measures a segmenter on images with masks."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from splitattn.dense.mask_scoring import SegmentationScores, score_masks
from splitattn.dense.masks import check_classes, one_class_fault, open_masked
from splitattn.dense.segmenter import Segmenter
from splitattn.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SegmentationEvaluation(SegmentationScores):
    """The figures of a segmenter, and which one was measured.

    Attributes:
        model, weights: the network, as `Segmenter` names it.
        engine: what ran it: engine, version and device.
        data, split: the images.
        problems: a line for each image that could not be read; it was left out.
    """

    model: str
    weights: str
    engine: str
    data: str
    split: str
    problems: tuple[str, ...]


def evaluate_segmenter(
    data: str | Path,
    weights: str | Path,
    *,
    split: str = "val",
    engine: str = "auto",
    device: str = "auto",
    on_images: Callable[[int, int], None] = lambda _, __: None,
) -> SegmentationEvaluation:
    """mIoU and accuracy of a segmenter over every image of `data`, each exactly once.

    Args:
        data, split: see `open_masked`.
        weights, engine, device: see `Segmenter`.
        on_images: called with how many more images are done, and how many there are.

    Raises:
        InputError: see `Segmenter`.
        WeightsError: the weights cannot be read, or are not a segmenter's.
        DataError: the data cannot be opened, has other classes, or no image could be read.
    """
    segmenter = Segmenter(weights, engine=engine, device=device)
    images = open_masked(str(data), split)
    check_classes(images, segmenter.classes)
    if fault := one_class_fault(images):
        logger.warning("%s %s", images.origin, fault)
    scored = score_masks(images, segmenter.segment, range(len(images)), on_images)
    if len(scored.problems) == len(images):
        raise DataError(f"{data} must have images that can be read, got {scored.problems[0]}")
    return SegmentationEvaluation(
        classes=segmenter.classes,
        confusion=scored.confusion,
        images=len(images) - len(scored.problems),
        model=segmenter.model,
        weights=segmenter.weights,
        engine=segmenter.engine,
        data=str(data),
        split=split,
        problems=scored.problems,
    )
