"""The report of a training with several labels per image."""

import math

from splitattn.label_scores import LabelScores
from splitattn.training.classification_report import problem_list
from splitattn.training.report import Chart, Headline, Report, table, text

_COLUMNS = {
    "size": ("size", "d"),
    "train_loss": ("training loss", ".4f"),
    "train_f1": ("training F1 %", ".2f"),
    "val_loss": ("validation loss", ".4f"),
    "val_map": ("validation mAP %", ".2f"),
    "val_f1": ("validation F1 %", ".2f"),
}


def multi_label_report(title: str, scores: LabelScores, *, unreadable: int) -> Report:
    """The report of a network that predicts several labels.

    Args:
        scores: of the trained network.
        unreadable: images of the training and validation split that could not be read.
    """
    rows = [
        ("mAP", f"{_percent(scores.mean_average_precision)}<small> %</small>", "mean over classes"),
        (
            "F1",
            f"{scores.micro_f1:.2f}<small> %</small>",
            f"of all labels, from probability {scores.threshold:g} on",
        ),
        ("Macro F1", f"{_percent(scores.macro_f1)}<small> %</small>", "mean over classes"),
        ("Loss", f"{scores.loss:.4f}", "binary cross-entropy, summed over classes, in nats"),
        ("Images measured", f"{scores.n:,}", f"with {scores.positives.sum():,} labels"),
        ("Could not be read", f"{unreadable:,}", "training and validation images"),
    ]
    return Report(
        title=title,
        headlines=[Headline(name=name, value=value, note=note) for name, value, note in rows],
        details=problem_list(scores.problems),
        charts=(
            Chart(title="Loss", unit="nats", figure="loss"),
            Chart(title="mAP", unit="%", figure="map"),
            Chart(title="F1", unit="%", figure="f1"),
        ),
        columns=_COLUMNS,
        sections=(_classes(scores),),
    )


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _classes(scores: LabelScores) -> str:
    rows = [
        [
            text(row.name),
            f"{row.images:,}",
            *map(_percent, (row.average_precision, row.precision, row.recall, row.f1)),
        ]
        for row in sorted(scores.by_class(), key=lambda row: row.average_precision)
    ]
    head = ["class", "images", "AP %", "precision %", "recall %", "F1 %"]
    return f"""<section>
<h2>Classes</h2>
<p class="quiet">The lowest average precision first. Precision, recall and F1 are at a probability
of {scores.threshold:g}.</p>
{table(head, rows, names=1)}</section>
"""
