"""What the report of a training shows of a segmentation network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from splitattn.dense.mask_drawing import draw_classes
from splitattn.dense.mask_scoring import SegmentationScores, WorstImage
from splitattn.dense.masks import Mask, MaskedImages, read_masked
from splitattn.errors import ImageError
from splitattn.training.report import Chart, Headline, Report, data_uri, table, text

# Long side of the pictures, in pixels.
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
    title: str, details: SegmentationDetails, data: MaskedImages, notes: Sequence[str]
) -> Report:
    """What there is to show of a trained segmentation network.

    Args:
        data: what was measured; it gives the pictures.
        notes: what was left out of the data.
    """
    return Report(
        title=title,
        headlines=_headlines(details.scores),
        details=_notes([*notes, *details.problems]),
        charts=(
            Chart(title="Loss", figure="loss"),
            Chart(title="mIoU", unit="%", figure="miou"),
            Chart(title="Accuracy", unit="%", figure="accuracy"),
        ),
        columns=_COLUMNS,
        sections=(_classes(details.scores), _worst(details, data)),
    )


def _headlines(scores: SegmentationScores) -> list[Headline]:
    figures = scores.figures
    rows = [
        (name, f"{figures[key]:.2f}<small> %</small>", note) for key, (name, note) in _NAMES.items()
    ]
    pixels = int(scores.confusion.sum())
    rows.append(("Images measured", f"{scores.images:,}", f"with {pixels:,} pixels of a class"))
    return [Headline(name=name, value=value, note=note) for name, value, note in rows]


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    lines = "".join(f"<li>{text(note)}</li>\n" for note in dict.fromkeys(notes))
    return f"<details><summary>Left out</summary>\n<ul>\n{lines}</ul>\n</details>\n"


def _classes(scores: SegmentationScores) -> str:
    pixels = max(int(scores.confusion.sum()), 1)
    rows = [
        [text(each.name), f"{100 * each.pixels / pixels:.2f}", _bar(each.iou), _bar(each.accuracy)]
        for each in sorted(scores.by_class(), key=lambda each: each.iou or 0.0)
    ]
    return f"""<section>
<h2>Classes</h2>
{table(["class", "pixels %", "IoU %", "accuracy %"], rows, names=1)}</section>
"""


def _bar(value: float | None) -> str:
    if value is None:
        return "-"
    return f'<meter min="0" max="100" value="{value:.1f}"></meter> {value:.1f}'


def _worst(details: SegmentationDetails, data: MaskedImages) -> str:
    figures = [_figure(data, each) for each in details.worst if each.wrong]
    if not any(figures):
        return ""
    return f"""<section>
<h2>Worst images</h2>
<p class="quiet">Left the mask, right the answer. Pixels without a color belong to no class.</p>
<div class="charts">
{"".join(figures)}</div>
</section>
"""


def _figure(data: MaskedImages, each: WorstImage) -> str:
    try:
        image, truth = read_masked(data, each.index)
    except ImageError:
        return ""
    scale = min(_PICTURE / max(image.size), 1.0)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    small = image.resize(size)
    pictures = [
        draw_classes(small, _resized(mask, size), data.classes) for mask in (truth, each.answer)
    ]
    cells = "".join(
        f'<img class="picture" style="width:49%" alt="" src="{data_uri(p, "jpeg", quality=80)}">'
        for p in pictures
    )
    caption = f"{text(data.names[each.index])}, {each.wrong:.0%} wrong"
    return f"<figure><figcaption>{caption}</figcaption>\n{cells}</figure>\n"


def _resized(mask: Mask, size: tuple[int, int]) -> Mask:
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
