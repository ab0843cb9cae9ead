"""Draw the charts in docs/charts/ from the measurements in benchmarks/.

usage: python scripts/charts.py [--check]

With --check it changes nothing and exits with status 1 if a chart is stale. A chart without a
stored measurement is left out.
"""

import argparse
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from measured_tables import ENGINES, LADDERS, NETWORKS, Row, best, grouped, is_earlier, read

from splitattn.bench.spread import spread
from splitattn.environment import processor_of

CHARTS = Path(__file__).parents[1] / "docs" / "charts"

STYLE = """
  text { font: 14px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
  text { fill: #1f2933; }
  .title { font-size: 16px; font-weight: 600; }
  .panel { font-weight: 600; }
  .note { font-size: 12px; fill: #5a6672; }
  .label { text-anchor: end; }
  .card { fill: #fcfbf8; stroke: #d8d3c6; }
  .ours { fill: #2f6fb3; }
  .peer { fill: #aab4be; }
  .range { stroke: #1f2933; stroke-width: 1.4; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e9ee; }
    .note { fill: #a3afbb; }
    .card { fill: #151b22; stroke: #38424d; }
    .ours { fill: #5b9fe0; }
    .peer { fill: #66727f; }
    .range { stroke: #e4e9ee; }
  }
"""

# All in pixels but NOTE. A phone shows charts at two thirds of their size.
WIDTH = 520
MARGIN = 18
LETTER = 8.8  # width of a letter in a label
GAP = 12  # between a label and its bars
VALUES = 56  # space for text to the right of the longest bar
BAR = 14
NOTE = 72  # letters in a line of the note


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a panel.

    Attributes:
        style: its class in the style sheet: "ours" or "peer".
        low, value, high: the bar ends at the value; a line shows the range.
        text: the text behind the bar.
    """

    style: str
    low: float
    value: float
    high: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Bars on one scale; each label has one or several."""

    title: str
    rows: Mapping[str, Sequence[Bar]]


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


def startup() -> str:
    """Seconds and peak memory of whole processes."""
    report = read("startup")
    cases, where = report["cases"], report["environment"]
    labels = {
        "first label": "predict",
        "resnest50": "predict, ResNeSt-50",
        "export resnest50": "export, ResNeSt-50",
    }
    panels = []
    for title, key, unit, decimals in (
        ("seconds", "seconds", 1.0, 2),
        ("peak memory in MB", "peak_memory", 1e6, 0),
    ):
        rows = {
            labels.get(name, name): [
                measured(
                    "peer" if name.startswith("timm") else "ours",
                    [value / unit for value in case[key]],
                    decimals,
                )
            ]
            for name, case in cases.items()
        }
        panels.append(Panel(title=title, rows=rows))
    rounds = min(len(case["seconds"]) for case in cases.values())
    return drawn(
        title="One command, from start to end",
        legend={"ours": "splitattn, without PyTorch", "peer": "timm"},
        panels=panels,
        note=f"Less is better. {processor_of(where)}, {where['cores']} cores, {where['date']}; "
        f"medians and quartiles of {rounds} runs",
    )


def inference(machine: str) -> str:
    """Milliseconds per image of ResNeSt-50 in each engine, compared with timm's."""
    report = read(LADDERS[machine])
    ours, peer, *_ = NETWORKS
    where, plan = report["environment"], report["plan"]
    panels = []
    for batch in plan["batch_sizes"]:
        rows = {}
        for engine, ways in ENGINES.items():
            turns = [
                best(report["rows"], network, ways, batch)["milliseconds"]
                for network in (ours, peer)
            ]
            rows[engine] = [
                measured(style, [value / batch for value in values], 1)
                for style, values in zip(("ours", "peer"), turns, strict=True)
            ]
        panels.append(Panel(title=f"milliseconds per image, batch {batch}", rows=rows))
    return drawn(
        title=f"ResNeSt-50 on a processor with {machine}",
        legend={"ours": "splitattn", "peer": "timm"},
        panels=panels,
        note=f"Less is better. {processor_of(where)}, {where['threads']} threads, "
        f"{where['date']}; {plan['size'] or 224} pixels; medians and quartiles of "
        f"{plan['rounds']} turns",
    )


def eight_bits() -> str:
    """Accuracy in float32 and in int8, by engine."""
    reports = [read(f"eight_bits_{name}") for name in ("openvino", "onnx")]
    rows = {
        _engine(report): [
            exact("ours", report["agreement"]["top1"], 2),
            exact("peer", report["agreement"]["reference_top1"], 2),
        ]
        for report in reports
    }
    return drawn(
        title="Accuracy in int8",
        legend={"ours": "int8", "peer": "float32"},
        panels=[Panel(title="top-1 %", rows=rows)],
        note=f"More is better. {reports[0]['agreement']['n']:,} images; {_where(reports)}",
    )


def end_to_end() -> str:
    """Images per second for a folder, compared with the limit of decoding and the network."""
    reports = read("end_to_end")
    panels = []
    for device, own in grouped(reports, lambda row: _device(row["environment"])):
        rows = {
            _engine(row): [
                quartiles("ours", row["images_per_second"]["predict"], 0),
                quartiles("peer", row["images_per_second"]["parallel"], 0),
            ]
            for row in own
        }
        panels.append(Panel(title=f"images per second, {device}", rows=rows))
    return drawn(
        title="From files to labels",
        legend={"ours": "predict", "peer": "decoding and network side by side"},
        panels=panels,
        note=f"More is better. Medians and quartiles of {reports[0]['rounds']} rounds",
    )


def decoding() -> str:
    """Milliseconds to decode a large photograph, in full and at reduced scale."""
    report = read("decoding")[-1]
    rows = {
        f"{row['preprocessing']['size']} px, {row['preprocessing']['order']}": [
            quartiles("ours", row["seconds_per_image"]["fast"], 0, factor=1000),
            quartiles("peer", row["seconds_per_image"]["exact"], 0, factor=1000),
        ]
        for row in report["times"]
    }
    first, where = report["times"][0], report["environment"]
    return drawn(
        title="Decoding a photograph of 12 megapixels",
        legend={"ours": "at reduced scale", "peer": "in full"},
        panels=[Panel(title="milliseconds, by the network's input", rows=rows)],
        note=f"Less is better. {processor_of(where)}, one thread, {where['date']}; medians and "
        f"quartiles of {first['rounds']} rounds",
    )


def serving() -> str:
    """Throughput of the service, compared with `predict` and with other services."""
    report = read("serving")
    where, rounds = report["environment"], report["throughput"]["rounds"]
    rates = {
        "splitattn serve": [measured("ours", [turn["served"] for turn in rounds], 0)],
        "splitattn predict": [measured("peer", [turn["predict"] for turn in rounds], 0)],
    }
    panels = [Panel(title="images per second, the model inside the package", rows=rates)]
    peers = report.get("peers", {"rounds": {}})
    for key, title in (
        ("images_per_second", "images per second, ResNeSt-50"),
        ("p99", "milliseconds until 99 % are answered, less is better"),
    ):
        rows = {
            name: [
                measured(
                    "ours" if name == "splitattn" else "peer", [turn[key] for turn in turns], 0
                )
            ]
            for name, turns in peers["rounds"].items()
        }
        panels += [Panel(title=title, rows=rows)] if rows else []
    return drawn(
        title=f"A service with {report['throughput']['clients']} clients",
        legend={},
        panels=panels,
        note=f"{processor_of(where)}, {where['cores']} cores for clients and service, "
        f"{where['date']}; medians and quartiles",
    )


def bulk() -> str:
    """Images per second of `predict` and of `bulk`, on one core."""
    rates = read("bulk")["rates"]
    where = rates["environment"]
    labels = {"predict": "predict", "files": "bulk, a folder", "bucket": "bulk, a bucket"}
    rows = {
        label: [
            measured(
                "peer" if name == "predict" else "ours",
                [rates["images"] / turn["seconds"] for turn in rates[name]],
                0,
            )
        ]
        for name, label in labels.items()
    }
    return drawn(
        title="Labeling on one core",
        legend={},
        panels=[Panel(title="images per second", rows=rows)],
        note=f"More is better. {processor_of(where)}, {where['date']}; medians and quartiles of "
        f"{len(rates['predict'])} turns",
    )


def training() -> str:
    """Images per second of a training step, compared with timm's."""
    reports = read("training_throughput")
    panels = []
    for device, own in grouped(reports, lambda row: _device(row["environment"])):
        rows = {
            _training_label(row): [
                quartiles(style, rate, 1)
                for style, rate in zip(
                    ("ours", "peer"), row["images_per_second"].values(), strict=True
                )
            ]
            for row in own
        }
        panels.append(Panel(title=f"images per second, {device}", rows=rows))
    return drawn(
        title="A training step of ResNeSt-50",
        legend={"ours": "splitattn", "peer": "timm"},
        panels=panels,
        note=f"More is better. Medians and quartiles of {reports[0]['rounds']} rounds",
    )


def _training_label(row: Row) -> str:
    mode = row.get("mode", "eager")
    return f"{row['precision']}, batch {row['batch']}" + ("" if mode == "eager" else f", {mode}")


def claim() -> str:
    """Top-1 and training speed of networks with different numbers of splits."""
    reports, speeds = read("claim"), {row["network"]: row for row in read("claim_speed")}
    accuracy, rates = {}, {}
    for name, own in grouped(reports, lambda row: str(row["network"])):
        style = "peer" if name == "0s" else "ours"
        accuracy[name] = [seeds(style, [row["top1"] for row in own])]
        rates[name] = [quartiles(style, speeds[name]["images_per_second"]["training"], 0)]
    return drawn(
        title="Splits at equal depth and width",
        legend={"ours": "attention", "peer": "a plain convolution"},
        panels=[
            Panel(title="top-1 %", rows=accuracy),
            Panel(title="training images per second", rows=rates),
        ],
        note="More is better. Means and deviations over seeds; medians and quartiles of rates",
    )


def finetuning() -> str:
    """Top-1 after fine-tuning, from trained and from random weights."""
    rows = {
        label: [seeds("ours" if own[0]["weights"] else "peer", [row["top1"] for row in own])]
        for label, own in grouped(read("finetuning"), _start)
    }
    return drawn(
        title="Five kinds of flowers",
        legend={"ours": "trained weights", "peer": "random weights"},
        panels=[Panel(title="top-1 %", rows=rows)],
        note="More is better. Mean and standard deviation over seeds",
    )


def _start(row: Row) -> str:
    if row["weights"] is None:
        return "random weights"
    tag = row["weights"].partition(":")[2]
    return f"{tag}, {row['sha256']:.8}" if is_earlier(row["weights"], row["sha256"]) else tag


def dense() -> str:
    """Accuracy of detectors and segmenters on each measured split."""
    reports = read("dense")
    splits = {"test": "ours", "val": "peer"}
    panels: dict[str, dict[str, list[Bar]]] = {}
    for label, own in grouped(reports, _dense_label):
        for split, figure in sorted(name.split("_", 1) for name in own[0]["figures"]):
            values = [row["figures"][f"{split}_{figure}"] for row in own]
            bars = panels.setdefault(f"{figure.replace('_', ' ')} in %", {}).setdefault(label, [])
            bars.append(seeds(splits[split], values))
    return drawn(
        title="Detectors and segmenters",
        legend={style: split for split, style in splits.items()},
        panels=[Panel(title=title, rows=rows) for title, rows in panels.items()],
        note="More is better. Mean and standard deviation over seeds",
    )


def _dense_label(row: Row) -> str:
    start = ""
    if row["start"] == "torchvision":
        start = ", torchvision, random"
    elif row["weights"] is None:
        start = ", random"
    elif is_earlier(f"{row['model']}:{row['weights']}", row["sha256"]):
        start = f", {row['sha256']:.8}"
    return f"{row['set']}, {row['head']}{start}"


def measured(style: str, values: Sequence[float], decimals: int) -> Bar:
    """A bar with median and quartiles of several measurements."""
    return quartiles(style, spread(values), decimals)


def quartiles(
    style: str, figures: Mapping[str, float], decimals: int, *, factor: float = 1.0
) -> Bar:
    """A bar with stored median and quartiles, multiplied by `factor`."""
    low, value, high = (factor * figures[key] for key in ("quartile1", "median", "quartile3"))
    return Bar(style=style, low=low, value=value, high=high, text=f"{value:.{decimals}f}")


def seeds(style: str, values: Sequence[float]) -> Bar:
    """A bar with mean and standard deviation; for one seed, without a range."""
    mean = statistics.mean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Bar(
        style=style, low=mean - deviation, value=mean, high=mean + deviation, text=f"{mean:.1f}"
    )


def exact(style: str, value: float, decimals: int) -> Bar:
    """A bar without a range."""
    return Bar(style=style, low=value, value=value, high=value, text=f"{value:.{decimals}f}")


def _engine(row: Row) -> str:
    """The name of the engine, without version and device."""
    name = str(row["engine"]).partition(" on ")[0].rpartition(" ")[0]
    return "PyTorch" if name == "torch" else name


def _device(where: Row) -> str:
    return str(where["gpu"] or processor_of(where))


def _where(rows: Iterable[Row]) -> str:
    return "; ".join(dict.fromkeys(_device(row["environment"]) for row in rows))


def drawn(*, title: str, legend: Mapping[str, str], panels: Sequence[Panel], note: str) -> str:
    """An SVG file with the panels below one another.

    Args:
        legend: the meaning of each style.
        note: text below the panels, in small letters.
    """
    labels = max(len(label) for panel in panels for label in panel.rows)
    left = MARGIN + LETTER * labels + GAP
    parts = [f'<text class="title" x="{MARGIN}" y="32">{escape(title)}</text>']
    y, x = 42, float(MARGIN)
    for style, text in legend.items():
        parts.append(f'<rect class="{style}" x="{x:.1f}" y="{y}" width="14" height="14" rx="2"/>')
        parts.append(f'<text x="{x + 20:.1f}" y="{y + 12}">{escape(text)}</text>')
        x += LETTER * len(text) + 40
    y += 26 if legend else 4
    for panel in panels:
        parts.append(f'<text class="panel" x="{MARGIN}" y="{y + 14}">{escape(panel.title)}</text>')
        y += 24
        longest = max(bar.high for bars in panel.rows.values() for bar in bars)
        for label, bars in panel.rows.items():
            height = len(bars) * (BAR + 1)
            parts.append(
                f'<text class="label" x="{left - GAP:.1f}" y="{y + height / 2 + 5:.1f}">'
                f"{escape(label)}</text>"
            )
            scale = (WIDTH - MARGIN - VALUES - left) / longest
            for place, bar in enumerate(bars):
                parts += _bar(bar, left=left, top=y + place * (BAR + 1), scale=scale)
            y += height + 9
        y += 8
    for line in textwrap.wrap(note, NOTE):
        y += 16
        parts.append(f'<text class="note" x="{MARGIN}" y="{y - 6}">{escape(line)}</text>')
    y += 6
    card = f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{y - 1}" rx="12"/>'
    body = "\n".join(f"  {part}" for part in [card, *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" '
        f'viewBox="0 0 {WIDTH} {y}" role="img" aria-labelledby="title">\n'
        f'  <title id="title">{escape(title)}</title>\n  <style>{STYLE}  </style>\n{body}\n</svg>\n'
    )


def _bar(bar: Bar, *, left: float, top: int, scale: float) -> list[str]:
    low, end, high = (left + scale * value for value in (bar.low, bar.value, bar.high))
    middle = top + BAR / 2
    parts = [
        f'<rect class="{bar.style}" x="{left:.1f}" y="{top}" width="{end - left:.1f}" '
        f'height="{BAR}" rx="2"/>',
        f'<text x="{high + 7:.1f}" y="{top + 12}">{bar.text}</text>',
    ]
    if bar.low < bar.high:
        parts.append(
            f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>'
        )
    return parts


ALL: dict[str, Callable[[], str]] = {
    "startup": startup,
    "inference": lambda: inference("AMX"),
    "inference_avx512": lambda: inference("AVX-512"),
    "eight_bits": eight_bits,
    "end_to_end": end_to_end,
    "decoding": decoding,
    "serving": serving,
    "bulk": bulk,
    "training": training,
    "claim": claim,
    "finetuning": finetuning,
    "dense": dense,
}


if __name__ == "__main__":
    main()
