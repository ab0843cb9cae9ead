"""The report of a detector's training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from splitattn.dense.annotated import AnnotatedImages, Objects, read_image
from splitattn.dense.drawing import draw_boxes
from splitattn.dense.found import FoundObjects
from splitattn.dense.outlines import resized_mask
from splitattn.dense.report_parts import bar, fitted, headlines, notes, pair, worst_images
from splitattn.dense.scoring import DetectionScores
from splitattn.errors import ImageError
from splitattn.training.report import Chart, Report, table, text

_WORST = 8
# The longer side of a picture at most, in pixels.
_PICTURE = 640
# Below this score, a box is not drawn and does not count as an answer.
_SHOWN = 0.3
_MATCH = 0.5

_COLUMNS: Mapping[str, tuple[str, str]] = {
    "size": ("size", "d"),
    "train_loss": ("training loss", ".4f"),
    "val_ap": ("AP %", ".2f"),
    "val_ap50": ("AP50 %", ".2f"),
    "val_ap75": ("AP75 %", ".2f"),
}
_MASK_COLUMNS: Mapping[str, tuple[str, str]] = {
    "val_mask_ap": ("mask AP %", ".2f"),
    "val_mask_ap50": ("mask AP50 %", ".2f"),
}
_NAMES = {
    "mask_ap": ("Mask AP", "of objects by their pixels, mean over IoU 0.50 to 0.95"),
    "mask_ap50": ("Mask AP50", "at IoU 0.50"),
    "ap": ("AP", "mean over IoU 0.50 to 0.95"),
    "ap50": ("AP50", "at IoU 0.50"),
    "ap75": ("AP75", "at IoU 0.75"),
    "ap_small": ("AP small", "objects below 32 x 32 pixels"),
    "ap_medium": ("AP medium", "up to 96 x 96 pixels"),
    "ap_large": ("AP large", "larger objects"),
}


@dataclass(frozen=True, kw_only=True)
class DetectionDetails:
    """What was measured, image by image.

    Attributes:
        scores: COCO's figures.
        found: the objects found in each image.
        problems: a line for each image that could not be read; nothing was found there.
    """

    scores: DetectionScores
    found: tuple[FoundObjects, ...]
    problems: tuple[str, ...]


def detection_report(
    title: str, details: DetectionDetails, data: AnnotatedImages, told: Sequence[str]
) -> Report:
    """The report of a trained detector.

    Args:
        data: what was measured; it gives the pictures.
        told: notes on what was left out of the annotations or changed in them.
    """
    scores = details.scores
    masks = "mask_ap" in scores.figures
    return Report(
        title=title,
        headlines=headlines(
            _NAMES, scores.figures, (scores.images, f"with {scores.objects:,} objects")
        ),
        details=notes("Left out or changed", [*told, *details.problems]),
        charts=(
            Chart(title="Loss", figure="loss"),
            Chart(title="AP", unit="%", figure="ap"),
            Chart(title="AP50", unit="%", figure="ap50"),
            *([Chart(title="Mask AP", unit="%", figure="mask_ap")] if masks else []),
        ),
        columns={**_COLUMNS, **(_MASK_COLUMNS if masks else {})},
        sections=(_classes(scores), _worst(details, data)),
    )


def _classes(scores: DetectionScores) -> str:
    kind = "mask_" if "mask_ap" in scores.figures else ""
    figures = [
        (each, getattr(each, f"{kind}ap"), getattr(each, f"{kind}ap50")) for each in scores.by_class
    ]
    rows = [
        [text(each.name), f"{each.objects:,}", bar(average), bar(at_half)]
        for each, average, at_half in sorted(figures, key=lambda row: row[1] or 0.0)
    ]
    titles = [f"{kind.replace('_', ' ')}{name} %" for name in ("AP", "AP50")]
    return f"""<section>
<h2>Classes</h2>
{table(["class", "objects", *titles], rows, names=1)}</section>
"""


def _worst(details: DetectionDetails, data: AnnotatedImages) -> str:
    """Truth and answer of the images with the largest share of mistakes."""
    mistakes = [
        _mistakes(objects, found)
        for objects, found in zip(data.objects, details.found, strict=True)
    ]
    order = sorted(range(len(data)), key=lambda index: -mistakes[index])[:_WORST]
    figures = [_figure(data, index, details.found[index]) for index in order if mistakes[index]]
    return worst_images(
        f"First the annotations, then what was found with a score of {_SHOWN} or more.", figures
    )


def _mistakes(objects: Objects, found: FoundObjects) -> float:
    """Objects missed and answers that match none, as a share of both."""
    shown = found.above(_SHOWN)
    truth, labels = objects.boxes[~objects.crowd], objects.labels[~objects.crowd]
    if not len(truth) + len(shown):
        return 0.0
    free = np.ones(len(truth), dtype=bool)
    right = 0
    for box, label in zip(shown.boxes, shown.labels, strict=True):
        overlap = np.where(free & (labels == label), _iou(box, truth), 0.0)
        if overlap.size and overlap.max() >= _MATCH:
            free[overlap.argmax()] = False
            right += 1
    return 1 - 2 * right / (len(truth) + len(shown))


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with others (N, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    both = (high - low).clip(min=0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    shares: np.ndarray = both / (areas - both).clip(min=1e-9)
    return shares


def _figure(data: AnnotatedImages, index: int, found: FoundObjects) -> str:
    try:
        image = read_image(data, index)
    except ImageError:
        return ""
    objects, shown = data.objects[index], found.above(_SHOWN)
    picture = fitted(image, _PICTURE)
    scale = picture.width / image.width
    truth = [data.classes[label] for label in objects.labels]
    answers = [
        f"{data.classes[label]} {100 * value:.0f}"
        for label, value in zip(shown.labels, shown.scores, strict=True)
    ]
    outlined = [outline for outline in objects.outlines if outline is not None]
    whole = shown.masks is not None and len(outlined) == len(objects)
    resized_boxes = shown.scaled(scale, scale)
    return pair(
        data.names[index],
        draw_boxes(
            picture,
            (objects.boxes * scale).tolist(),
            objects.labels.tolist(),
            truth,
            (resized_mask(each, image.size, picture.size) for each in outlined) if whole else None,
        ),
        draw_boxes(
            picture,
            resized_boxes.boxes.tolist(),
            shown.labels.tolist(),
            answers,
            None
            if shown.masks is None
            else (each.pixels() for each in resized_boxes.run_lengths(picture.size)),
        ),
    )
