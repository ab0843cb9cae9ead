"""The report of a classifier: figures, confusions, the most confident mistakes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from splitattn.data.labeled import LabeledImages
from splitattn.errors import ImageError
from splitattn.evaluation import Answer, Evaluation
from splitattn.images.decode import decode
from splitattn.images.encode import data_url
from splitattn.training.report import Chart, Headline, Report, table, text
from splitattn.training.task import Measurement

# With more classes than this, the matrix is a picture and not a table.
_CLASSES_IN_TABLE = 30
_CONFUSIONS_SHOWN = 20
_CLASSES_SHOWN = 10
_PROBLEMS_SHOWN = 50
# Sizes in pixels.
_THUMBNAIL = 160
_MATRIX = 600
# Black and white letters are readable even on the darkest shade.
_DEEPEST_SHADE = 0.55
# Halfway between the accent colors of light and dark mode in report.css.
_MATRIX_COLOR = (32, 150, 156)


_COLUMNS: Mapping[str, tuple[str, str]] = {
    "size": ("size", "d"),
    "train_loss": ("training loss", ".4f"),
    "train_top1": ("training top-1 %", ".2f"),
    "val_loss": ("validation loss", ".4f"),
    "val_top1": ("validation top-1 %", ".2f"),
    "val_top5": ("validation top-5 %", ".2f"),
}


_DISTILLATION_COLUMNS: Mapping[str, tuple[str, str]] = {
    "size": ("size", "d"),
    "train_loss": ("training loss", ".4f"),
    "train_agreement": ("training agreement %", ".2f"),
    "val_agreement": ("validation agreement %", ".2f"),
}


def classification_report(
    title: str,
    evaluation: Evaluation,
    data: LabeledImages,
    *,
    unreadable: int,
    white_level: float | None,
) -> Report:
    """The report of a trained classifier.

    Args:
        evaluation: of the trained network.
        data: the evaluated images, for pictures of mistakes. Images that can no longer be read are
            left out.
        unreadable: images of the training and validation split that could not be read.
        white_level: of the pictures, see `Recipe`.
    """
    return Report(
        title=title,
        headlines=_headlines(evaluation, unreadable),
        details=problem_list(evaluation.problems),
        charts=(
            Chart(title="Loss", unit="nats", figure="loss"),
            Chart(title="Top-1", unit="%", figure="top1"),
        ),
        columns=_COLUMNS,
        sections=(_confusion(evaluation), _mistakes(evaluation.mistakes, data, white_level)),
    )


def distillation_report(
    title: str,
    measurement: Measurement,
    data: LabeledImages,
    *,
    unreadable: int,
    white_level: float | None,
) -> Report:
    """The report of a student: where its first guess agrees with the teacher's.

    Args:
        measurement: of the trained network; its details are an `Evaluation` of `data`.
        data: the evaluated images, with the teacher's first guesses as labels.
        unreadable, white_level: see `classification_report`.
    """
    evaluation, figures = measurement.details, measurement.figures
    shown = classification_report(
        title, evaluation, data, unreadable=unreadable, white_level=white_level
    )
    agreeing, *rest = shown.headlines
    headlines = [replace(agreeing, name="Agreement", note="first guesses are the teacher's")]
    columns = dict(_DISTILLATION_COLUMNS)
    if "top1" in figures:
        columns["val_top1"] = _COLUMNS["val_top1"]
        value = f"{figures['top1']:.2f}<small> %</small>"
        headlines.append(Headline(name="Top-1", value=value, note="first guesses are the label"))
    note = '<p class="quiet">Labels on this page are the teacher\'s first guesses.</p>\n'
    return replace(
        shown,
        headlines=[*headlines, *rest],
        details=note + shown.details,
        charts=(
            Chart(title="Loss", figure="loss"),
            Chart(title="Agreement", unit="%", figure="agreement"),
        ),
        columns=columns,
    )


def _headlines(evaluation: Evaluation, unreadable: int) -> list[Headline]:
    right = int(np.trace(np.asarray(evaluation.confusion)))
    found = int(np.asarray(evaluation.top5_by_class).sum())
    rows = [
        ("Top-1", f"{evaluation.top1:.2f}<small> %</small>", f"{right:,} first guesses are right"),
        ("Top-5", f"{evaluation.top5:.2f}<small> %</small>", f"{found:,} among five guesses"),
        ("Loss", f"{evaluation.loss:.4f}", "mean cross-entropy, in nats"),
        ("Images measured", f"{evaluation.n:,}", f"of {len(evaluation.classes):,} classes"),
        ("Could not be read", f"{unreadable:,}", "training and validation images"),
    ]
    return [Headline(name=name, value=value, note=note) for name, value, note in rows]


def problem_list(problems: Sequence[str]) -> str:
    """Validation images that could not be read, as HTML; empty if there are none."""
    if not problems:
        return ""
    lines = [f"<li>{text(problem)}</li>" for problem in problems[:_PROBLEMS_SHOWN]]
    if len(problems) > _PROBLEMS_SHOWN:
        lines.append(f"<li>and {len(problems) - _PROBLEMS_SHOWN:,} more</li>")
    return f"""<details><summary>Validation images that could not be read</summary>
<ul>
{"".join(lines)}</ul>
</details>
"""


def _confusion(evaluation: Evaluation) -> str:
    few = len(evaluation.classes) <= _CLASSES_IN_TABLE
    return f"""<section>
<h2>Confusion</h2>
<p class="quiet">A row for each label, a column for each first guess. The shade is the share of the
label's images.</p>
{_matrix_table(evaluation) if few else _matrix_summary(evaluation)}</section>
"""


def _matrix_table(evaluation: Evaluation) -> str:
    names = [text(name) for name in evaluation.classes]
    counts = evaluation.confusion.tolist()
    head = "".join(
        f'<th class="guess" scope="col" title="{name}"><span>{name}</span></th>' for name in names
    )
    rows = "".join(
        _matrix_row(name, label, row)
        for label, (name, row) in enumerate(zip(names, counts, strict=True))
    )
    wide = " wide" if len(names) > 8 else ""
    return f"""<div class="scroll"><table class="matrix{wide}">
<thead><tr><th class="name">label</th><th>images</th>{head}<th class="recall">recall %</th></tr>
</thead>
<tbody>
{rows}</tbody>
</table></div>
"""


def _matrix_row(name: str, label: int, counts: Sequence[int]) -> str:
    total = sum(counts)
    cells = []
    for guess, count in enumerate(counts):
        kind = "right" if guess == label else "" if count else "none"
        shade = _DEEPEST_SHADE * count / max(total, 1)
        cells.append(f'<td class="cell {kind}" style="--share:{shade:.3f}">{count}</td>')
    recall = f"{100 * counts[label] / total:.1f}" if total else "-"
    return (
        f'<tr><th class="name" scope="row" title="{name}">{name}</th><td>{total}</td>'
        f'{"".join(cells)}<td class="recall">{recall}</td></tr>\n'
    )


def _matrix_summary(evaluation: Evaluation) -> str:
    totals = {name: n for name, n, _, _ in evaluation.by_class()}
    confusions = [
        [text(label), text(guess), str(count), f"{100 * count / totals[label]:.1f}"]
        for label, guess, count in evaluation.confusions()[:_CONFUSIONS_SHOWN]
    ]
    worst = [
        [text(name), str(n), f"{top1:.1f}", f"{top5:.1f}"]
        for name, n, top1, top5 in sorted(evaluation.by_class(), key=lambda row: row[2])
    ][:_CLASSES_SHOWN]
    return f"""<div class="columns">
<div>
<h3>Most frequent</h3>
{table(["label", "taken for", "images", "% of label"], confusions, names=2)}</div>
<div>
<h3>Classes of the lowest top-1</h3>
{table(["class", "images", "top-1 %", "top-5 %"], worst, names=1)}</div>
<div>
<h3>All {len(evaluation.classes):,} classes</h3>
<img class="picture" alt="Confusion matrix" src="{_matrix_picture(evaluation)}">
</div>
</div>
"""


def _matrix_picture(evaluation: Evaluation) -> str:
    counts = np.asarray(evaluation.confusion)
    share = counts / counts.sum(1, keepdims=True).clip(min=1)
    # The square root makes rare confusions visible.
    image = Image.fromarray((255 * np.sqrt(share)).round().astype(np.uint8))
    side = len(counts) * max(_MATRIX // len(counts), 1)
    image = image.resize((side, side), Image.Resampling.NEAREST)
    image.putpalette(_MATRIX_COLOR * 256)
    # One color whose opacity is the share works on light and dark backgrounds.
    return data_url(image, "png", transparency=bytes(range(256)))


def _mistakes(mistakes: Sequence[Answer], data: LabeledImages, white_level: float | None) -> str:
    figures = [_mistake(mistake, data, white_level) for mistake in mistakes]
    if not any(figures):
        return ""
    return f"""<section>
<h2>Most confident mistakes</h2>
<p class="quiet">The first guess and its probability, and below it the label. Some of these labels
may be the ones that are wrong.</p>
<div class="mistakes">
{"".join(figures)}</div>
</section>
"""


def _mistake(mistake: Answer, data: LabeledImages, white_level: float | None) -> str:
    try:
        image = decode(data.images[mistake.index], name=mistake.name, white_level=white_level)
    except ImageError:
        return ""
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    name, label, guess = map(text, (mistake.name, mistake.label, mistake.guess))
    picture = data_url(image, quality=85)
    return f"""<figure title="{name}"><img alt="{label}" src="{picture}">
<figcaption><span><b title="{guess}">{guess}</b>{100 * mistake.probability:.1f} %</span>
<span class="quiet" title="{label}">is {label}</span></figcaption></figure>
"""
