"""What the reports of detectors and of segmenters have in common."""

from collections.abc import Mapping, Sequence

from PIL import Image

from splitattn.dense.drawing import LEGIBLE
from splitattn.images.encode import data_url
from splitattn.training.report import Headline, text


def headlines(
    names: Mapping[str, tuple[str, str]], figures: Mapping[str, float], measured: tuple[int, str]
) -> list[Headline]:
    """The figures, in percent, and how much was measured.

    Args:
        names: title and note of each figure; those that were not measured are left out.
        measured: how many images, and a note.
    """
    rows = [
        (name, f"{figures[key]:.2f}<small> %</small>", note)
        for key, (name, note) in names.items()
        if key in figures
    ]
    count, note = measured
    rows.append(("Images measured", f"{count:,}", note))
    return [Headline(name=name, value=value, note=note) for name, value, note in rows]


def notes(title: str, lines: Sequence[str]) -> str:
    """What was left out of the data, each line once, folded up beneath `title`."""
    if not lines:
        return ""
    rows = "".join(f"<li>{text(line)}</li>\n" for line in dict.fromkeys(lines))
    return f"<details><summary>{title}</summary>\n<ul>\n{rows}</ul>\n</details>\n"


def bar(value: float | None) -> str:
    """A percentage as a bar and a number; None was not measured."""
    if value is None:
        return "-"
    return f'<meter min="0" max="100" value="{value:.1f}"></meter> {value:.1f}'


def worst_images(legend: str, figures: Sequence[str]) -> str:
    """The section of the images with the most mistakes.

    Args:
        legend: what comes first and what second.
        figures: see `pair`; empty ones are left out.
    """
    if not any(figures):
        return ""
    return f"""<section>
<h2>Worst images</h2>
<p class="quiet">{legend}</p>
<div class="charts">
{"".join(figures)}</div>
</section>
"""


def pair(caption: str, truth: Image.Image, answer: Image.Image) -> str:
    """Two pictures with a caption above them, side by side if the page is wide enough."""
    cells = "".join(
        f'<img class="picture" style="width:49%" alt="" src="{data_url(p, quality=80)}">'
        for p in (truth, answer)
    )
    return f"<figure><figcaption>{text(caption)}</figcaption>\n{cells}</figure>\n"


def fitted(image: Image.Image, longest: int) -> Image.Image:
    """`image`, with a longer side of `LEGIBLE` to `longest` pixels."""
    side = max(image.size)
    scale = min(max(side, LEGIBLE), longest) / side
    width, height = (max(round(side * scale), 1) for side in image.size)
    return image.resize((width, height))
