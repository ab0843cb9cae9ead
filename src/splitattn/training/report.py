"""The report of a training: one HTML file without scripts or external resources."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from splitattn.environment import describe, processor_of
from splitattn.errors import counted, one_line
from splitattn.files import replacing
from splitattn.training.charts import Curve, draw

_STYLE = Path(__file__).with_name("report.css")
# What the caption of a chart calls its curves.
_KEYS = {
    "train": '<span class="key">training</span>',
    "val": '<span class="key val">validation</span>',
}

Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure over the epochs, in training and in validation.

    Attributes:
        title: the figure's name.
        unit: of its values; may be empty.
        figure: its key in the log, without `train_` or `val_`.
    """

    title: str
    unit: str = ""
    figure: str


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A figure at the top of the page: its name, its value as HTML, and a note."""

    name: str
    value: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """A task's part of the report; the page adds learning rate, recipe and environment.

    Attributes:
        title: the page's heading, plain text.
        headlines: the most important figures.
        details: HTML below them.
        charts: curves by epoch.
        columns: of the table of epochs: keys of the log's lines, with a title and a format each.
        sections: HTML after the curves.
    """

    title: str
    headlines: Sequence[Headline] = ()
    details: str = ""
    charts: Sequence[Chart] = (Chart(title="Loss", figure="loss"),)
    columns: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    sections: Sequence[str] = ()


def write_report(
    path: Path, report: Report, *, history: Sequence[Line], recipe: Mapping[str, Any]
) -> None:
    """Write the page; replaces the file.

    Args:
        report: the task's part.
        history: the lines of the training's log (see `training.log`).
        recipe: the recipe's fields.

    Raises:
        OSError: the file cannot be written.
    """
    top = [_header(report, history), _curves(report, history)]
    page = _page(report.title, [*top, *report.sections, _recipe(recipe), _footer()])
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _page(title: str, parts: Iterable[str]) -> str:
    # The policy forbids scripts and external resources, in case a name contains HTML.
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{text(title)}</title>
<style>
{_STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{"".join(parts)}</main>
</body>
</html>
"""


def text(value: object) -> str:
    """Escape an untrusted value for HTML, on one line."""
    return escape(one_line(str(value)))


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else text("none" if value is None else value)


def _header(report: Report, history: Sequence[Line]) -> str:
    epochs = epochs_of(history)
    seconds = sum(line["seconds"] for line in epochs)
    entries = "".join(
        f'<div><dt>{text(headline.name)}</dt><dd class="value">{headline.value}</dd>'
        f'<dd class="note">{text(headline.note)}</dd></div>\n'
        for headline in report.headlines
    )
    trained = f"Trained for {counted(len(epochs), 'epoch')} in {_duration(seconds)}."
    return f"""<header>
<h1>{text(report.title)}</h1>
<p class="quiet">{trained}</p>
<dl class="headline">
{entries}</dl>
{report.details}</header>
"""


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def epochs_of(history: Sequence[Line]) -> list[Line]:
    """The lines of epochs."""
    return [line for line in history if line["kind"] == "epoch"]


def _curves(report: Report, history: Sequence[Line]) -> str:
    steps, epochs = [line for line in history if line["kind"] == "train"], epochs_of(history)

    def train(key: str) -> Curve:
        points = [(line["epoch"], line[key]) for line in steps if key in line]
        return Curve(style="train", points=points)

    def val(key: str) -> Curve:
        # Validation comes at the end of an epoch.
        points = [(float(done), line[key]) for done, line in enumerate(epochs, 1) if key in line]
        return Curve(style="val", points=points, dotted=True)

    charts = [
        *(
            (chart.title, chart.unit, [train(chart.figure), val(f"val_{chart.figure}")])
            for chart in report.charts
        ),
        ("Learning rate", "", [train("learning_rate")]),
    ]
    figures = []
    for name, unit, curves in charts:
        legend = "".join(_KEYS[curve.style] for curve in curves if curve.points)
        caption = f'<b>{text(name)}</b> <span class="quiet">{text(unit)}</span>'
        if svg := draw(curves, title=f"{name} by epoch", x_label="epochs"):
            figures.append(
                f"<figure><figcaption><span>{caption}</span><span>{legend}</span></figcaption>\n"
                f"{svg}</figure>\n"
            )
    return f"""<section>
<h2>Curves</h2>
<p class="quiet">Training figures are of augmented examples, so they may be worse.</p>
<div class="charts">
{"".join(figures)}</div>
{_epoch_table(report.columns, epochs)}</section>
"""


def _epoch_table(columns: Mapping[str, tuple[str, str]], epochs: Sequence[Line]) -> str:
    columns = {**columns, "seconds": ("seconds", ".0f")}
    rows = [
        [str(done), *(format(line[key], form) for key, (_, form) in columns.items())]
        for done, line in enumerate(epochs, 1)
    ]
    return f"""<details><summary>Figures of every epoch</summary>
{table(["epoch", *(name for name, _ in columns.values())], rows)}</details>
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 0) -> str:
    """A table of cells in HTML; the first `names` columns hold names, the others figures."""

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


def _recipe(recipe: Mapping[str, Any]) -> str:
    fields = "".join(
        f"<div><dt>{text(name)}</dt><dd>{_number(value)}</dd></div>\n"
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
        processor_of(found),
    ]
    return f"<footer>{' · '.join(text(fact) for fact in facts if fact)}</footer>\n"
