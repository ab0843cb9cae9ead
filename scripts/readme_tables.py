"""Write the tables of README.md and docs/, from code, docstrings and benchmarks/.

usage: python scripts/readme_tables.py [--check]

Rewrites the text between the markers in README.md and docs/; with --check changes nothing and exits
with status 1 if that text is stale.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import measured_tables
import recipe_tables
import torch

from splitattn.architectures import ARCHITECTURES
from splitattn.bench import roofline
from splitattn.environment import processor_of
from splitattn.errors import WeightsError
from splitattn.nn.resnest import ResNeSt
from splitattn.weights.cache import local_path
from splitattn.weights.catalogue import (
    PublishedMetrics,
    default_preprocessing,
    embedded_entry,
    entries,
)

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if stale")
    arguments = parser.parse_args()
    for path, sections in DOCUMENTS.items():
        old = path.read_text(encoding="utf-8")
        new = old
        for name, content in sections.items():
            new = between_markers(new, path, name, content())
        if arguments.check and new != old:
            sys.exit(f"{path.name} is stale: run python scripts/readme_tables.py")
        if not arguments.check:
            path.write_text(new, encoding="utf-8")


def between_markers(text: str, path: Path, name: str, content: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        sys.exit(f"{path.name} must hold the markers {begin} and {end}, in this order")
    return f"{head}{begin}\n{content}\n{end}{tail}"


def models() -> str:
    lines = [
        "| model | layers | splits | parameters | GMACs | published top-1 | weights |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for name, architecture in ARCHITECTURES.items():
        weights = entries(name)
        splits = f"{architecture.radix}s{architecture.cardinality}x{architecture.bottleneck_width}d"
        size = default_preprocessing(name).size
        parameters, macs = cost(name, size, len(weights[0].classes) if weights else 1000)
        published = next((entry.published for entry in weights if entry.published), None)
        cells = (
            f"`{name}`",
            ", ".join(map(str, architecture.layers)),
            splits,
            f"{parameters / 1e6:.1f} M",
            f"{macs / 1e9:.2f} at {size}",
            linked(published) if published else "",
            ", ".join(f"`{entry.tag}`" for entry in weights),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cost(name: str, size: int, num_classes: int) -> tuple[int, int]:
    """Parameters, and multiply-accumulates for one image of `size` pixels a side.

    Convolutions and linear layers are counted. Published figures also count batch norms and
    pooling, which is at most one percent more.
    """
    with torch.device("meta"):  # counting needs no values
        model = ResNeSt(ARCHITECTURES[name], num_classes=num_classes)
    counted = roofline.cost(model, size)
    return counted.weights, counted.multiply_adds


def linked(published: PublishedMetrics) -> str:
    """The accuracy, as a link to the address at the end of its source."""
    source = re.fullmatch(r"(.+) \((\S+)\)", published.source)
    if source is None:
        sys.exit(f"a published figure's source must end in (address), got {published.source!r}")
    return f'[{published.top1:.2f}](https://{source[2]} "{source[1]}")'


def embedded() -> str:
    try:
        entry = embedded_entry()
    except WeightsError:
        return "This build of the package holds no weights yet."
    megabytes = local_path(entry).stat().st_size / 1e6
    text = (
        f"The model inside the package is `{entry.name}` ({megabytes:.1f} MB): "
        f"{len(entry.classes):,} classes, images of {entry.preprocessing.size} pixels, "
        f"{entry.license}. Trained by: {entry.source}."
    )
    if measured := entry.measured:
        text += (
            f"\n\nMeasured by this project on {measured.date}: **{measured.top1:.2f} % top-1** and "
            f"{measured.top5:.2f} % top-5 on the {measured.n:,} images of {measured.dataset}, by\n"
            f"`{measured.command}`."
        )
    return text


def embedded_figures() -> str:
    stored = json.loads((ROOT / "benchmarks" / "embedded.json").read_text(encoding="utf-8"))
    lines = [
        "| images | n | precision | top-1 % | top-5 % | labels kept % |",
        "|---|---:|---|---:|---:|---:|",
        *(
            f"| {images} | {row['n']:,} | {precision} | {row['top1']:.2f} | {row['top5']:.2f} | "
            f"{row['kept']:.2f} |"
            for images, rows in stored["sets"].items()
            for precision, row in rows.items()
        ),
        "",
        "| network at batch 1, one thread | ms |",
        "|---|---:|",
        *(
            f"| {name} | {ms['median']:.2f} ({ms['quartile1']:.2f}-{ms['quartile3']:.2f}) |"
            for name, ms in stored["milliseconds"].items()
        ),
    ]
    where = stored["environment"]
    origin = f"{processor_of(where)}, {where['date']}, by `benchmarks/embedded.py`."
    return "\n".join([*lines, "", origin])


DOCUMENTS = {
    ROOT / "README.md": {
        "speed": measured_tables.speed,
        "startup": measured_tables.measured(measured_tables.startup_chart),
        "embedded": embedded,
    },
    ROOT / "docs" / "models.md": {"models": models, "embedded": embedded},
    ROOT / "docs" / "reference" / "recipes.md": {
        "presets": recipe_tables.presets,
        "fields": recipe_tables.recipe_fields,
    },
    ROOT / "docs" / "photographs.md": {"embedded-figures": embedded_figures},
    ROOT / "docs" / "howto" / "bulk.md": {
        "bulk_costs": measured_tables.measured(measured_tables.bulk_costs)
    },
    ROOT / "docs" / "benchmarks.md": {
        table.__name__: measured_tables.measured(table)
        for table in (
            measured_tables.inference,
            measured_tables.ladder,
            measured_tables.startup,
            measured_tables.eight_bits,
            measured_tables.end_to_end,
            measured_tables.decoding,
            measured_tables.training,
            measured_tables.claim,
            measured_tables.finetuning,
            measured_tables.dense,
            measured_tables.detectors,
            measured_tables.serving,
            measured_tables.bulk,
        )
    },
}


if __name__ == "__main__":
    main()
