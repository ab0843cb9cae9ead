"""What a training led to, on one page: an HTML file that needs nothing else, and no network."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from splitattn.data.sources import LabelledImages
from splitattn.environment import describe
from splitattn.errors import ImageError, one_line
from splitattn.evaluation import Evaluation, Mistake
from splitattn.files import replacing
from splitattn.images.decode import decode
from splitattn.training.charts import Curve, draw

# A table of more classes than this is no longer read but only looked at.
_CLASSES_IN_TABLE = 30
_CONFUSIONS_SHOWN = 20
_CLASSES_SHOWN = 10
_PROBLEMS_SHOWN = 50
# In pixels.
_THUMBNAIL = 160
_MATRIX = 600
# Full shade still lets black and white letters be read.
_DEEPEST_SHADE = 0.55
# Halfway between the accent's two colors in report.css: a picture knows no dark mode.
_MATRIX_COLOR = (32, 150, 156)

_STYLE = Path(__file__).with_name("report.css")

Line = Mapping[str, Any]


def write_report(
    path: Path,
    *,
    title: str,
    history: Sequence[Line],
    evaluation: Evaluation,
    data: LabelledImages,
    recipe: Mapping[str, Any],
) -> None:
    """Write the page, in place of what `path` held.

    Args:
        title: the page's heading.
        history: the lines of the training's log (see `training.log`).
        evaluation: of the trained network.
        data: what was measured; it gives the pictures of mistakes, and those that can no longer be
            read are left out.
        recipe: how the network was trained, field by field.

    Raises:
        OSError: the file cannot be written.
    """
    page = _page(
        title,
        [
            _header(title, history, evaluation),
            _curves(history),
            _confusion(evaluation),
            _mistakes(evaluation.mistakes, data),
            _recipe(recipe),
            _footer(),
        ],
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _page(title: str, parts: Iterable[str]) -> str:
    # The policy lets nothing be loaded and nothing run, whatever a name might smuggle in.
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{_text(title)}</title>
<style>
{_STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{"".join(parts)}</main>
</body>
</html>
"""


def _text(value: object) -> str:
    """Anything from outside as text of the page, on one line."""
    return escape(one_line(str(value)))


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else _text("none" if value is None else value)


def _header(title: str, history: Sequence[Line], evaluation: Evaluation) -> str:
    epochs = _epochs(history)
    seconds = sum(line["seconds"] for line in epochs)
    right = int(evaluation.confusion.trace())
    found = int(evaluation.top5_by_class.sum())
    unreadable = max([len(evaluation.problems), *(line["unreadable"] for line in epochs)])
    figures = [
        ("Top-1", f"{evaluation.top1:.2f}<small> %</small>", f"{right:,} first guesses are right"),
        ("Top-5", f"{evaluation.top5:.2f}<small> %</small>", f"{found:,} among five guesses"),
        ("Loss", f"{evaluation.loss:.4f}", "mean cross-entropy, in nats"),
        ("Images measured", f"{evaluation.n:,}", f"of {len(evaluation.classes):,} classes"),
        ("Could not be read", f"{unreadable:,}", "training and validation images"),
    ]
    entries = "".join(
        f'<div><dt>{name}</dt><dd class="value">{value}</dd><dd class="note">{note}</dd></div>\n'
        for name, value, note in figures
    )
    trained = f"Trained for {_plural(len(epochs), 'epoch')} in {_duration(seconds)}."
    return f"""<header>
<h1>{_text(title)}</h1>
<p class="quiet">{trained}</p>
<dl class="headline">
{entries}</dl>
{_problems(evaluation.problems)}</header>
"""


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    lines = [f"<li>{_text(problem)}</li>" for problem in problems[:_PROBLEMS_SHOWN]]
    if len(problems) > _PROBLEMS_SHOWN:
        lines.append(f"<li>and {len(problems) - _PROBLEMS_SHOWN:,} more</li>")
    return f"""<details><summary>Validation images that could not be read</summary>
<ul>
{"".join(lines)}</ul>
</details>
"""


def _epochs(history: Sequence[Line]) -> list[Line]:
    return [line for line in history if line["kind"] == "epoch"]


def _plural(number: int, name: str) -> str:
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _curves(history: Sequence[Line]) -> str:
    steps, epochs = [line for line in history if line["kind"] == "train"], _epochs(history)

    def train(key: str) -> Curve:
        return Curve(style="train", points=[(line["epoch"], line[key]) for line in steps])

    def val(key: str) -> Curve:
        # A network is measured when its epoch is over.
        points = [(float(done), line[key]) for done, line in enumerate(epochs, 1)]
        return Curve(style="val", points=points, dotted=True)

    key = '<span class="key">training</span><span class="key val">validation</span>'
    charts = [
        ("Loss", "nats", key, [train("loss"), val("val_loss")]),
        ("Top-1", "%", key, [train("top1"), val("val_top1")]),
        ("Learning rate", "", "", [train("learning_rate")]),
    ]
    figures = []
    for name, unit, legend, curves in charts:
        caption = f'<b>{name}</b> <span class="quiet">{unit}</span>'
        if svg := draw(curves, title=f"{name} by epoch", x_label="epochs"):
            figures.append(
                f"<figure><figcaption><span>{caption}</span><span>{legend}</span></figcaption>\n"
                f"{svg}</figure>\n"
            )
    return f"""<section>
<h2>Curves</h2>
<p class="quiet">Training figures are of images as the recipe crops, mixes and smooths them, and so
may be the worse of the two.</p>
<div class="charts">
{"".join(figures)}</div>
{_epoch_table(epochs)}</section>
"""


def _epoch_table(epochs: Sequence[Line]) -> str:
    columns = {
        "size": ("size", "d"),
        "train_loss": ("training loss", ".4f"),
        "train_top1": ("training top-1 %", ".2f"),
        "val_loss": ("validation loss", ".4f"),
        "val_top1": ("validation top-1 %", ".2f"),
        "val_top5": ("validation top-5 %", ".2f"),
        "seconds": ("seconds", ".0f"),
    }
    rows = [
        [str(done), *(format(line[key], form) for key, (_, form) in columns.items())]
        for done, line in enumerate(epochs, 1)
    ]
    return f"""<details><summary>Figures of every epoch</summary>
{_table(["epoch", *(name for name, _ in columns.values())], rows)}</details>
"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 0) -> str:
    """A table of cells that are HTML already; the first `names` columns hold names, not figures."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="name" title="{cell}">{cell}</{tag}>'
            if column < names
            else f"<{tag}>{cell}</{tag}>"
            for column, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return f"""<div class="scroll"><table>
<thead><tr>{cells("th", head)}</tr></thead>
<tbody>
{body}</tbody>
</table></div>
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
    names = [_text(name) for name in evaluation.classes]
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
        [_text(label), _text(guess), str(count), f"{100 * count / totals[label]:.1f}"]
        for label, guess, count in evaluation.confusions()[:_CONFUSIONS_SHOWN]
    ]
    worst = [
        [_text(name), str(n), f"{top1:.1f}", f"{top5:.1f}"]
        for name, n, top1, top5 in sorted(evaluation.by_class(), key=lambda row: row[2])
    ][:_CLASSES_SHOWN]
    return f"""<div class="columns">
<div>
<h3>Most frequent</h3>
{_table(["label", "taken for", "images", "% of label"], confusions, names=2)}</div>
<div>
<h3>Classes of the lowest top-1</h3>
{_table(["class", "images", "top-1 %", "top-5 %"], worst, names=1)}</div>
<div>
<h3>All {len(evaluation.classes):,} classes</h3>
<img class="picture" alt="Confusion matrix" src="{_matrix_picture(evaluation)}">
</div>
</div>
"""


def _matrix_picture(evaluation: Evaluation) -> str:
    counts = evaluation.confusion.numpy()
    share = counts / counts.sum(1, keepdims=True).clip(min=1)
    # The root makes rare confusions visible beside the diagonal.
    image = Image.fromarray((255 * np.sqrt(share)).round().astype(np.uint8))
    side = len(counts) * max(_MATRIX // len(counts), 1)
    image = image.resize((side, side), Image.Resampling.NEAREST)
    image.putpalette(_MATRIX_COLOR * 256)
    # One color, as opaque as the share is large, is right on white and on black.
    return _data_uri(image, "png", transparency=bytes(range(256)))


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, kind.upper(), optimize=True, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _mistakes(mistakes: Sequence[Mistake], data: LabelledImages) -> str:
    figures = [_mistake(mistake, data) for mistake in mistakes]
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


def _mistake(mistake: Mistake, data: LabelledImages) -> str:
    try:
        image = decode(data.images[mistake.index], name=mistake.name)
    except ImageError:
        return ""
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    name, label, guess = map(_text, (mistake.name, mistake.label, mistake.guess))
    picture = _data_uri(image, "jpeg", quality=85)
    return f"""<figure title="{name}"><img alt="{label}" src="{picture}">
<figcaption><span><b title="{guess}">{guess}</b>{100 * mistake.probability:.1f} %</span>
<span class="quiet" title="{label}">is {label}</span></figcaption></figure>
"""


def _recipe(recipe: Mapping[str, Any]) -> str:
    fields = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_number(value)}</dd></div>\n"
        for name, value in recipe.items()
    )
    return f"""<section>
<h2>Recipe</h2>
<dl class="recipe">
{fields}</dl>
</section>
"""


def _footer() -> str:
    found = describe()
    facts = [
        found["date"],
        f"splitattn {found['splitattn']}" + (f" at {found['commit']}" if found["commit"] else ""),
        f"torch {found['torch']}",
        found["processor"],
    ]
    return f"<footer>{' · '.join(_text(fact) for fact in facts if fact)}</footer>\n"
