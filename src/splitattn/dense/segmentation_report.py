"""What the report of a training shows of a segmentation network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from splitattn.dense.mask_drawing import draw_classes
from splitattn.dense.mask_scoring import SegmentationScores, WorstImage
from splitattn.dense.masks import Mask, MaskedImages, read_masked
from splitattn.dense.report_parts import bar, fitted, headlines, notes, pair, worst_images
from splitattn.errors import ImageError
from splitattn.training.report import Chart, Report, table, text

# The longer side of a picture at most, in pixels.
_PICTURE = 480

_COLUMNS: Mapping[str, tuple[str, str]] = {
    "size": ("size", "d"),
    "train_loss": ("training loss", ".4f"),
    "train_accuracy": ("training accuracy %", ".2f"),
    "val_miou": ("mIoU %", ".2f"),
    "val_accuracy": ("accuracy %", ".2f"),
}
_NAMES = {
    "miou": ("mIoU", "intersection over union, mean over classes"),
    "accuracy": ("Accuracy", "share of the pixels"),
    "mean_accuracy": ("Mean accuracy", "mean over classes"),
}


@dataclass(frozen=True, kw_only=True)
class SegmentationDetails:
    """What was measured.

    Attributes:
        scores: over all images.
        worst: those with the largest share of mistakes.
        problems: a line for each image that could not be read; it was left out.
    """

    scores: SegmentationScores
    worst: tuple[WorstImage, ...]
    problems: tuple[str, ...]


def segmentation_report(
    title: str, details: SegmentationDetails, data: MaskedImages, told: Sequence[str]
) -> Report:
    """What there is to show of a trained segmentation network.

    Args:
        data: what was measured; it gives the pictures.
        told: notes on what was left out of the data.
    """
    scores = details.scores
    pixels = int(scores.confusion.sum())
    return Report(
        title=title,
        headlines=headlines(
            _NAMES, scores.figures, (scores.images, f"with {pixels:,} pixels of a class")
        ),
        details=notes("Left out", [*told, *details.problems]),
        charts=(
            Chart(title="Loss", figure="loss"),
            Chart(title="mIoU", unit="%", figure="miou"),
            Chart(title="Accuracy", unit="%", figure="accuracy"),
        ),
        columns=_COLUMNS,
        sections=(_classes(scores), _worst(details, data)),
    )


def _classes(scores: SegmentationScores) -> str:
    pixels = max(int(scores.confusion.sum()), 1)
    rows = [
        [text(each.name), f"{100 * each.pixels / pixels:.2f}", bar(each.iou), bar(each.accuracy)]
        for each in sorted(scores.by_class(), key=lambda each: each.iou or 0.0)
    ]
    return f"""<section>
<h2>Classes</h2>
{table(["class", "pixels %", "IoU %", "accuracy %"], rows, names=1)}</section>
"""


def _worst(details: SegmentationDetails, data: MaskedImages) -> str:
    figures = [_figure(data, each) for each in details.worst if each.wrong]
    return worst_images(
        "First the mask, then the answer. Pixels without a color belong to no class.", figures
    )


def _figure(data: MaskedImages, each: WorstImage) -> str:
    try:
        image, truth = read_masked(data, each.index)
    except ImageError:
        return ""
    picture = fitted(image, _PICTURE)
    pictures = [
        draw_classes(picture, _resized(mask, picture.size), data.classes)
        for mask in (truth, each.answer)
    ]
    return pair(f"{data.names[each.index]}, {each.wrong:.0%} wrong", *pictures)


def _resized(mask: Mask, size: tuple[int, int]) -> Mask:
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
