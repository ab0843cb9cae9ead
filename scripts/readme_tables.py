"""Write what README.md says about the models and of measurements, from the code and benchmarks/.

usage: python scripts/readme_tables.py [--check]

Rewrites the text between the markers in README.md; with --check changes nothing and exits with
status 1 if that text is stale. Needs the extra [dev], for fvcore.
"""

import argparse
import json
import re
import sys
import warnings
from pathlib import Path

import torch

from splitattn.architectures import ARCHITECTURES
from splitattn.errors import WeightsError
from splitattn.nn.resnest import ResNeSt
from splitattn.weights.catalogue import (
    PublishedMetrics,
    default_preprocessing,
    embedded_entry,
    entries,
)
from splitattn.weights.store import local_path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if stale")
    arguments = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = old
    for name, content in (("models", models), ("embedded", embedded), ("training", training)):
        new = between_markers(new, name, content())
    if arguments.check and new != old:
        sys.exit("README.md is stale: run python scripts/readme_tables.py")
    if not arguments.check:
        README.write_text(new, encoding="utf-8")


def between_markers(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        sys.exit(f"README.md must hold the markers {begin} and {end}, in this order")
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
    """Parameters, and multiply-accumulates for one image of `size` pixels a side."""
    with torch.device("meta"):
        model = ResNeSt(ARCHITECTURES[name], num_classes=num_classes).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # fvcore traces a real run; the values do not matter, and zeros are fast.
    model = model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore lives on torch.jit
        from fvcore.nn import FlopCountAnalysis

        count = FlopCountAnalysis(model, torch.zeros(1, 3, size, size))
        count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return parameters, count.total()


def linked(published: PublishedMetrics) -> str:
    """The accuracy, as a link to the address that its source ends in."""
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
        f"{len(entry.classes)} classes, images of {entry.preprocessing.size} pixels, "
        f"{entry.licence}. Trained by: {entry.source}."
    )
    if measured := entry.measured:
        text += (
            f"\n\nMeasured by this project on {measured.date}: **{measured.top1:.2f} % top-1** and "
            f"{measured.top5:.2f} % top-5 on the {measured.n:,} images of {measured.dataset}, by\n"
            f"`{measured.command}`."
        )
    return text


def training() -> str:
    """Rows of benchmarks/training_throughput.json."""
    lines = [
        "| device | precision | batch | splitattn resnest50 | timm resnest50d | ratio (quartiles) "
        "| peak memory | measured |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in json.loads((ROOT / "benchmarks" / "training_throughput.json").read_text("utf-8")):
        where, ratio = row["environment"], row["ratio"]
        rates = [f"{rate['median']:.2f}" for rate in row["images_per_second"].values()]
        peaks = " / ".join(f"{peak / 1e9:.1f}" for peak in row["peak_memory_bytes"].values())
        cells = (
            where["gpu"] or f"{where['processor']}, {where['threads']} threads",
            row["precision"],
            f"{row['batch']} at {row['size']}",
            *rates,
            f"**{ratio['median']:.2f}** ({ratio['quartile1']:.2f}-{ratio['quartile3']:.2f})",
            f"{peaks} GB",
            f"{where['date']}, `{where['commit']}`, torch {where['torch']}, timm {where['timm']}, "
            f"n = {row['rounds']}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
