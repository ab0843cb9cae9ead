"""Draw the charts in docs/charts/ from the measurements in benchmarks/.

usage: python scripts/charts.py [--check]

With --check changes nothing and exits with status 1 if a chart is stale. A chart whose measurement
does not exist yet is left out.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from measured_tables import ENGINES, LADDERS, NETWORKS, best, read

from splitattn.bench.spread import spread
from splitattn.environment import processor_of

CHARTS = Path(__file__).parents[1] / "docs" / "charts"

STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
  text { fill: #1f2933; }
  .title { font-size: 15px; font-weight: 600; }
  .note { font-size: 12px; fill: #5a6672; }
  .label { text-anchor: end; }
  .card { fill: #fcfbf8; stroke: #d8d3c6; }
  .ours { fill: #2f6fb3; }
  .peer { fill: #aab4be; }
  .best { font-weight: 600; }
  .range { stroke: #1f2933; stroke-width: 1.2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e9ee; }
    .note { fill: #a3afbb; }
    .card { fill: #151b22; stroke: #38424d; }
    .ours { fill: #5b9fe0; }
    .peer { fill: #66727f; }
    .range { stroke: #e4e9ee; }
  }
"""

# In pixels.
WIDTH = 880
MARGIN = 20
LABELS = 150
GAP = 30
VALUES = 50  # to the right of the longest bar
TOP = 84
BAR = 13


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a panel.

    Attributes:
        style: its class in the style sheet: "ours" or "peer".
        low, value, high: the quartiles and the median.
        text: what is written behind it.
    """

    style: str
    low: float
    value: float
    high: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Bars beside each other's labels: for each label one group of bars."""

    title: str
    groups: Sequence[Sequence[Bar]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if stale")
    arguments = parser.parse_args()
    for name, draw in ALL.items():
        path = CHARTS / f"{name}.svg"
        try:
            new = draw()
        except FileNotFoundError:
            continue
        if arguments.check and (not path.exists() or path.read_text(encoding="utf-8") != new):
            sys.exit(f"{path.name} is stale: run python scripts/charts.py")
        if not arguments.check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(new, encoding="utf-8")


def inference(machine: str) -> str:
    """Milliseconds per image of ResNeSt-50 in each engine, beside timm's."""
    report = read(LADDERS[machine])
    ours, peer, *_ = NETWORKS
    where, plan = report["environment"], report["plan"]
    panels = []
    for batch in plan["batch_sizes"]:
        groups = []
        for ways in ENGINES.values():
            bars = []
            for style, network in (("ours", ours), ("peer", peer)):
                turns = spread(best(report["rows"], network, ways, batch)["milliseconds"])
                low, value, high = (
                    turns[key] / batch for key in ("quartile1", "median", "quartile3")
                )
                bars.append(Bar(style=style, low=low, value=value, high=high, text=f"{value:.1f}"))
            groups.append(bars)
        panels.append(Panel(title=f"batch {batch}", groups=groups))
    return drawn(
        title="ResNeSt-50: milliseconds per image, less is better",
        legend=(("ours", "splitattn"), ("peer", "timm")),
        labels=list(ENGINES),
        panels=panels,
        note=f"{machine}: {processor_of(where)}, {where['threads']} threads, {where['date']}; "
        f"{plan['size'] or 224} pixels; medians and quartiles of {plan['rounds']} turns",
    )


STARTUP_LABELS = {
    "first label": "predict",
    "resnest50": "predict, ResNeSt-50",
    "export resnest50": "export, ResNeSt-50",
    "timm script": "timm script",
}


def startup() -> str:
    """Seconds and peak memory of whole processes."""
    report = read("startup")
    cases, where = report["cases"], report["environment"]
    panels = []
    for title, key, unit, decimals in (
        ("seconds", "seconds", 1.0, 2),
        ("peak memory in MB", "peak_memory", 1e6, 0),
    ):
        groups = []
        for name, case in cases.items():
            turns = spread([value / unit for value in case[key]])
            bar = Bar(
                style="peer" if name.startswith("timm") else "ours",
                low=turns["quartile1"],
                value=turns["median"],
                high=turns["quartile3"],
                text=f"{turns['median']:.{decimals}f}",
            )
            groups.append([bar])
        panels.append(Panel(title=title, groups=groups))
    rounds = min(len(case["seconds"]) for case in cases.values())
    return drawn(
        title="One command, from start to end",
        legend=(("ours", "splitattn, without PyTorch"), ("peer", "timm")),
        labels=[STARTUP_LABELS.get(name, name) for name in cases],
        panels=panels,
        note=f"{processor_of(where)}, {where['cores']} cores, {where['date']}; "
        f"medians and quartiles of {rounds} runs",
    )


def drawn(
    *,
    title: str,
    legend: Sequence[tuple[str, str]],
    labels: Sequence[str],
    panels: Sequence[Panel],
    note: str,
) -> str:
    """An SVG file with the panels side by side."""
    count = max(len(group) for panel in panels for group in panel.groups)
    pitch = count * (BAR + 1) + 12
    height = TOP + len(labels) * pitch + 40
    width = (WIDTH - 2 * MARGIN - LABELS - GAP * (len(panels) - 1)) / len(panels)
    parts = [
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="12"/>',
        f'<text class="title" x="{MARGIN}" y="32">{escape(title)}</text>',
    ]
    x = WIDTH - MARGIN
    for style, text in reversed(legend):
        x -= 8 * len(text) + 30
        parts.append(f'<rect class="{style}" x="{x}" y="21" width="13" height="13" rx="2"/>')
        parts.append(f'<text x="{x + 19}" y="32">{escape(text)}</text>')
    for row, label in enumerate(labels):
        y = TOP + row * pitch + count * (BAR + 1) / 2 + 4
        parts.append(
            f'<text class="label" x="{MARGIN + LABELS - 12}" y="{y:.1f}">{escape(label)}</text>'
        )
    for number, panel in enumerate(panels):
        left = MARGIN + LABELS + number * (width + GAP)
        parts.append(
            f'<text class="note" x="{left:.1f}" y="{TOP - 14}">{escape(panel.title)}</text>'
        )
        parts += _bars(panel, left=left, width=width - VALUES, pitch=pitch)
    parts.append(f'<text class="note" x="{MARGIN}" y="{height - 16}">{escape(note)}</text>')
    body = "\n".join(f"  {part}" for part in parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="title">\n  <title id="title">{escape(title)}</title>\n'
        f"  <style>{STYLE}  </style>\n{body}\n</svg>\n"
    )


def _bars(panel: Panel, *, left: float, width: float, pitch: int) -> list[str]:
    longest = max(bar.high for group in panel.groups for bar in group)
    parts = []
    for row, group in enumerate(panel.groups):
        least = min(bar.value for bar in group)
        for place, bar in enumerate(group):
            y = TOP + row * pitch + place * (BAR + 1)
            low, length, high = (width * x / longest for x in (bar.low, bar.value, bar.high))
            middle = y + BAR / 2
            style = "best" if len(group) > 1 and bar.value == least else ""
            parts.append(
                f'<rect class="{bar.style}" x="{left:.1f}" y="{y}" width="{length:.1f}" '
                f'height="{BAR}" rx="2"/>'
            )
            parts.append(
                f'<line class="range" x1="{left + low:.1f}" x2="{left + high:.1f}" '
                f'y1="{middle}" y2="{middle}"/>'
            )
            parts.append(
                f'<text class="{style}" x="{left + max(length, high) + 7:.1f}" '
                f'y="{y + 11}">{bar.text}</text>'
            )
    return parts


ALL: dict[str, Callable[[], str]] = {
    "inference": lambda: inference("AMX"),
    "inference_avx512": lambda: inference("AVX-512"),
    "startup": startup,
}


if __name__ == "__main__":
    main()
