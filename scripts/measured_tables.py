"""The measurements in benchmarks/*.json as Markdown, for readme_tables.py and charts.py."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from scipy import stats

from splitattn.bench.spread import spread
from splitattn.engines.table import ENGINES as ENGINE_ROWS
from splitattn.environment import processor_of
from splitattn.weights.catalogue import embedded_entry

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

Row = dict[str, Any]
Key = TypeVar("Key")

# The measured ladders, by the processor's instruction set. Tables show times of the first ladder
# and ratios of all.
LADDERS = {"AMX": "inference_cpu_amx", "AVX-512": "inference_cpu_avx512"}

# The form of the network that each engine gets.
FORMS = {row.name: row.form for row in ENGINE_ROWS}

# Our networks, and those of other projects that people run.
NETWORKS = (
    "splitattn resnest50",
    "timm resnest50d",
    "splitattn resnest50_fast_2s1x64d",
    "timm resnet50d",
    "torchvision resnet50",
)
OURS = tuple(name for name in NETWORKS if name.startswith("splitattn"))
# The columns of a table, with the ladder's engine and precision. For PyTorch, the faster of two
# memory formats counts.
ENGINES = {
    "PyTorch": (("torch", "fp32"), ("torch NCHW", "fp32")),
    "torch.compile": (("compile", "fp32"),),
    "ONNX Runtime": (("onnxruntime", "fp32"),),
    "OpenVINO": (("openvino", "fp32"),),
    "ONNX Runtime int8": (("onnxruntime", "int8"),),
    "OpenVINO int8": (("openvino", "int8"),),
}


def training() -> str:
    lines = [
        "| device | way | precision | batch | splitattn resnest50 | timm resnest50d "
        "| ratio (quartiles) | peak memory | measured |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in read("training_throughput"):
        where, ratio = row["environment"], row["ratio"]
        rates = [f"{rate['median']:.2f}" for rate in row["images_per_second"].values()]
        peaks = " / ".join(f"{peak / 1e9:.1f}" for peak in row["peak_memory_bytes"].values())
        cells = (
            _device(where),
            f"{row.get('mode', 'eager')}, {row['memory_format']}",
            row["precision"],
            f"{row['batch']} at {row['size']}",
            *rates,
            f"**{ratio['median']:.2f}** ({ratio['quartile1']:.2f}-{ratio['quartile3']:.2f})",
            f"{peaks} GB",
            f"{_origin(where, 'torch', 'timm')}, n = {row['rounds']}",
        )
        lines.append(_line(cells))
    return "\n".join(lines)


def inference() -> str:
    """Milliseconds by engine and network on one machine, and the main ratios on all machines."""
    reports = {machine: read(name) for machine, name in LADDERS.items()}
    machine, report = next(iter(reports.items()))
    rows = report["rows"]
    parts = [
        f"Median of {report['plan']['rounds']} turns in ms at {report['plan']['size'] or 224} "
        f"pixels; {machine}: {_ladder_origin(report)}."
    ]
    for batch in report["plan"]["batch_sizes"]:
        head = [f"batch {batch}", *(f"{name.replace(' ', ' `')}`" for name in NETWORKS)]
        lines = [_line(head), _line(["---", *("---:" for _ in NETWORKS)])]
        for engine, ways in ENGINES.items():
            found = [best(rows, name, ways, batch) for name in NETWORKS]
            fastest = min(median_milliseconds(row) for row in found[:2])
            cells = [
                f"**{median_milliseconds(row):.1f}**"
                if median_milliseconds(row) == fastest
                else f"{median_milliseconds(row):.1f}"
                for row in found
            ]
            lines.append(_line([engine, *cells]))
        parts.append("\n".join(lines))
    parts.append("\n".join(_ratios(reports)))
    parts.extend(
        f"{other}: {_ladder_origin(reports[other])}." for other in reports if other != machine
    )
    return "\n\n".join(parts)


def ladder() -> str:
    """The ladder, with a line for each rung."""
    parts = []
    for machine, name in LADDERS.items():
        report = read(name)
        rates = report["peaks"]["multiply_adds"]
        peaks = ", ".join(f"{2e-9 * rate:.0f} in {kind}" for kind, rate in rates.items())
        lines = [
            f"### {machine}",
            "",
            f"{_ladder_origin(report)}, n = {report['plan']['rounds']}. The machine reaches "
            f"{peaks} billion operations a second, and copies memory at "
            f"{1e-9 * report['peaks']['copied_bytes']:.1f} GB/s, reads and writes together.",
            "",
            "| network | form | engine | precision | batch | ms (quartiles) | images/s "
            "| x roofline | peak MB | difference | same labels |",
            "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        rungs = sorted(
            report["rows"], key=lambda row: (row["batch_size"], median_milliseconds(row))
        )
        parts.append("\n".join([*lines, *map(_rung, rungs)]))
    return "\n\n".join(parts)


def _rung(row: Row) -> str:
    turns, memory = spread(row["milliseconds"]), row["peak_memory"]
    return _line(
        (
            row["network"],
            row["form"],
            row["engine"],
            row["precision"],
            str(row["batch_size"]),
            f"{turns['median']:.1f} ({turns['quartile1']:.1f}-{turns['quartile3']:.1f})",
            f"{1000 * row['batch_size'] / turns['median']:.1f}",
            f"{turns['median'] / row['roofline_milliseconds']:.2f}",
            "" if memory is None else f"{memory / 1e6:.0f}",
            f"{row['difference']:.0e}",
            f"{row['same_labels']:.0f}%",
        )
    )


def _ladder_origin(report: Row) -> str:
    where = report["environment"]
    libraries = ("torch", "timm", "openvino", "onnxruntime", "nncf")
    return f"{_device(where)}, {_origin(where, *libraries)}"


def claim() -> str:
    """Mean and deviation over seeds, the difference from "0s", and the cost of each network."""
    rows, speeds = read("claim"), {row["network"]: row for row in read("claim_speed")}
    lines = [
        "| network | | top-1 % | against 0s (95 %) | seeds | attention widths | parameters | GMACs "
        "| training images/s | inference images/s |",
        "|---|---|---:|---|---:|---|---:|---:|---:|---:|",
    ]
    plain = [row for row in rows if row["network"] == "0s"]
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        rates = speeds[name]["images_per_second"]
        cells = (
            name,
            own[0]["what"],
            _mean([row["top1"] for row in own]),
            "" if name == "0s" else _against(own, plain),
            str(len(own)),
            ", ".join(map(str, own[0]["attention_widths"])),
            f"{own[0]['parameters'] / 1e6:.2f} M",
            f"{own[0]['gmacs']:.4f}",
            *(f"{rates[kind]['median']:.0f}" for kind in ("training", "inference")),
        )
        lines.append(_line(cells))
    recipe, first = _one_recipe(rows), rows[0]
    speed = next(iter(speeds.values()))
    lines += [
        "",
        "Intervals hold the error of the seeds and that of the validation set, as if two networks' "
        "mistakes were independent. "
        f"Accuracy: {first['n']:,} validation images of {first['classes']} classes, "
        f"{recipe['epochs']} epochs of {first['training_images']:,} images; {_origins(rows)}. "
        f"Rates: batches of {speed['batch']}, {recipe['train_size']} pixels in training and "
        f"{recipe['test_size']} in inference, as PyTorch runs them (ours not fused), median of "
        f"{speed['rounds']} rounds; {_origins(speeds.values())}.",
    ]
    return "\n".join(lines)


def finetuning() -> str:
    """Fine-tuning from trained weights, compared with random weights."""
    rows = read("finetuning")
    lines = ["| from | top-1 % | epochs | minutes | seeds |", "|---|---:|---:|---:|---:|"]
    for start, own in grouped(rows, lambda row: (row["weights"], row["sha256"])):
        name = _start(*start)
        epochs = _one_recipe(own)["epochs"]
        minutes = statistics.median(row["training_seconds"] for row in own) / 60
        top1 = _mean([row["top1"] for row in own])
        lines.append(_line((name, top1, str(epochs), f"{minutes:.1f}", str(len(own)))))
    first = rows[0]
    lines += [
        "",
        f"{first['training_images']:,} photographs to learn from, {first['n']} to measure; "
        f"{_origins(rows)}.",
    ]
    return "\n".join(lines)


def _start(weights: str | None, sha256: str | None) -> str:
    """The initial weights of a training, marked if the package has other weights now."""
    if weights is None:
        return "random weights"
    earlier = f", an earlier one ({sha256:.8})" if is_earlier(weights, sha256) else ""
    return f"`{weights}`{earlier}"


def is_earlier(weights: str, sha256: str | None) -> bool:
    """Whether the weights have the name of the embedded ones but another hash."""
    now = embedded_entry()
    return weights == f"{now.model}:{now.tag}" and sha256 not in (None, now.sha256)


def dense() -> str:
    """Accuracy of detectors and segmenters that are trained from the embedded model."""
    rows = read("dense")
    # Other programs ran during the trainings, so times come from separate measurements.
    epochs = read("dense_epochs")
    epoch = {(row["set"], row["start"]): row["training_seconds"] for row in epochs}
    lines = [
        "| data | head | from | figures % | epochs | minutes on two cores | seeds |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    by = ("set", "start", "sha256", "changes")
    for key, own in grouped(rows, lambda row: tuple(str(row[name]) for name in by)):
        figures = ", ".join(
            f"{name.replace('_', ' ')} {_mean([row['figures'][name] for row in own])}"
            for name in own[0]["figures"]
        )
        first, seeds = own[0], len(own)
        if first["start"] == "torchvision":
            start = f"random weights, {first['model']}"
            minutes: float | None = sum(row["processor_seconds"] for row in own) / seeds / 120
        else:
            weights = first["weights"] and f"{first['model']}:{first['weights']}"
            start = _start(weights, first["sha256"])
            seconds = epoch.get(key[:2])
            minutes = seconds and first["epochs"] * seconds / 60
        passes = f"{statistics.mean(row['epochs'] for row in own):.3g}"
        shown = "" if minutes is None else f"{minutes:.0f}"
        cells = (key[0], f"`{first['head']}`", start, figures, passes, shown, str(seeds))
        lines.append(_line(cells))
    lines += ["", f"{_origins(rows, 'torch', 'torchvision')}."]
    lines += [f"Minutes: {_origins(epochs, 'torch', 'torchvision')}."]
    return "\n".join(lines)


def detectors() -> str:
    """The speed of a detector in each engine and exported file."""
    (row,) = read("detectors")
    lines = [
        "| network in | ms an image | times as fast | PyTorch's boxes, found to the pixel |",
        "|---|---:|---:|---:|",
    ]
    for name, engine in row["engines"].items():
        where = "PyTorch, eager" if name == "torch" else engine.partition(" on ")[0]
        cells = (
            f"{where}, exported as `{name}`" if Path(name).suffix else where,
            f"{row['median'][name]:.0f}",
            f"{row['times_as_fast'][name]:.2f}",
            row["same"][name],
        )
        lines.append(_line(cells))
    short, _ = row["sides"]
    lines += [
        "",
        f"`{row['model']}` with the head `fcos`, images with a shorter side of {short} pixels, one "
        f"at a time, {row['images']} of them, n = {row['rounds']} in turns; "
        f"{_origins([row], 'torch', 'onnxruntime', 'openvino')}.",
    ]
    return "\n".join(lines)


def eight_bits() -> str:
    """The loss of accuracy by int8, by engine, from the reports of `splitattn export`."""
    lines = [
        "| engine | processor | top-1 %, float32 | top-1 %, int8 | points | same labels % "
        "| megabytes |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    reports = [read(f"eight_bits_{name}") for name in ("openvino", "onnx")]
    for report in reports:
        measured = report["agreement"]
        cells = (
            report["engine"],
            processor_of(report["environment"]),
            f"{measured['reference_top1']:.2f}",
            f"**{measured['top1']:.2f}**",
            f"{measured['top1'] - measured['reference_top1']:+.2f}",
            f"{measured['same_labels']:.1f}",
            f"{report['bytes'] / 1e6:.1f}",
        )
        lines.append(_line(cells))
    lines += ["", f"{reports[0]['agreement']['n']:,} images; {_origins(reports, 'torch', 'nncf')}."]
    return "\n".join(lines)


def end_to_end() -> str:
    """Throughput for a folder of photographs, by engine."""
    lines = [
        "| model | engine | processor | decoding alone | network alone | both at once | `predict` "
        "| reached (quartiles) | first label |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    rows = read("end_to_end")
    for row in rows:
        rate, ratio = row["images_per_second"], row["ratio"]
        cells = (
            f"`{row['model']}`",
            row["engine"],
            processor_of(row["environment"]),
            *(f"{rate[n]['median']:.0f}" for n in ("decode", "network", "parallel", "predict")),
            f"**{ratio['median']:.0%}** ({ratio['quartile1']:.0%}-{ratio['quartile3']:.0%})",
            f"{row['seconds_to_first_label']['median']:.1f} s",
        )
        lines.append(_line(cells))
    first = rows[0]
    width, height = first["image_size"]
    lines += [
        "",
        f"Images per second, {first['images']:,} JPEGs of {width}x{height} pixels, batches of "
        f"{first['batch']}, n = {first['rounds']}; "
        f"{_origins(rows, 'torch', 'onnxruntime', 'openvino')}.",
    ]
    return "\n".join(lines)


def decoding() -> str:
    """Decoding large photographs in full and at reduced scale, by the input of the network."""
    report = read("decoding")[-1]
    lines = [
        "| network's input | exact, ms | fast, ms | speedup (quartiles) | mean change of a pixel |",
        "|---|---:|---:|---:|---:|",
    ]
    large = {
        json.dumps(row["preprocessing"]): row
        for row in report["pixels"][::-1]
        if row["set"] == "12 megapixels"
    }
    for row in report["times"]:
        how, ratio = row["preprocessing"], row["ratio"]
        milliseconds = (1000 * row["seconds_per_image"][n]["median"] for n in ("exact", "fast"))
        cells = (
            f"{how['size']} px, {how['crop_fraction']:.0%} of the image, {how['order']}",
            *(f"{value:.0f}" for value in milliseconds),
            f"**{ratio['median']:.2f}** ({ratio['quartile1']:.2f}-{ratio['quartile3']:.2f})",
            f"{large[json.dumps(how)]['mean_change']:.2f} of 255",
        )
        lines.append(_line(cells))
    labels = "; ".join(
        f"{row['set']}: {row['labels_kept']} of {row['images']} labels kept, "
        f"probabilities changed by at most {row['largest_probability_change']:.3f}"
        for row in report["labels"]
    )
    first, where = report["times"][0], report["environment"]
    whole = report["predict"]
    rates, ratio = whole["images_per_second"], whole["ratio"]
    lines += [
        "",
        f"{first['images']} photographs of 12 megapixels, one thread, n = {first['rounds']}; "
        f"{processor_of(where)}, {_origin(where, 'pillow')}. {labels}.",
        "",
        f"`predict` as a whole, `{whole['model']}` in {whole['engine']} on {where['cores']} cores: "
        f"{rates['fast']['median']:.1f} of these photographs a second instead of "
        f"{rates['exact']['median']:.1f}, **{ratio['median']:.2f}** times as fast "
        f"({ratio['quartile1']:.2f}-{ratio['quartile3']:.2f}), n = {whole['rounds']}.",
    ]
    return "\n".join(lines)


def _ratios(reports: dict[str, Row]) -> Iterator[str]:
    """The speed of ours relative to others, from turns of the same round."""
    ours, twin, fast, plain, _ = NETWORKS
    every = tuple(way for ways in ENGINES.values() for way in ways if way[1] == "fp32")
    eager, int8 = ENGINES["PyTorch"], ENGINES["OpenVINO int8"]
    onnx_int8 = ENGINES["ONNX Runtime int8"]
    columns = [
        (machine, batch) for machine in reports for batch in reports[machine]["plan"]["batch_sizes"]
    ]
    yield _line(["times as fast (quartiles)", *(f"{name}, batch {n}" for name, n in columns)])
    yield _line(["---", *("---:" for _ in columns)])
    for name, (first, its_ways), (second, other_ways) in (
        ("ResNeSt-50 int8 against timm's, both in OpenVINO", (ours, int8), (twin, int8)),
        ("ResNeSt-50 int8 against timm's in PyTorch, float32", (ours, int8), (twin, eager)),
        ("ResNeSt-50 in float32, each in its best engine", (ours, every), (twin, every)),
        ("ResNeSt-50 in PyTorch", (ours, eager), (twin, eager)),
        ("ResNeSt-50-fast in float32 against timm's ResNet-50-D", (fast, every), (plain, every)),
        ("ResNeSt-50-fast int8 against ResNet-50-D int8, OpenVINO", (fast, int8), (plain, int8)),
        (
            "ResNeSt-50-fast int8 against ResNet-50-D int8, ONNX Runtime",
            (fast, onnx_int8),
            (plain, onnx_int8),
        ),
    ):
        cells = []
        for machine, batch in columns:
            rows = reports[machine]["rows"]
            times = speedup(rows, (first, its_ways), (second, other_ways), batch)
            quartiles = f"{times['quartile1']:.2f}-{times['quartile3']:.2f}"
            cells.append(f"**{times['median']:.2f}** ({quartiles})")
        yield _line([name, *cells])


def speedup(
    rows: list[Row],
    ours: tuple[str, Iterable[tuple[str, str]]],
    theirs: tuple[str, Iterable[tuple[str, str]]],
    batch: int,
) -> dict[str, float]:
    """The speed of `ours` relative to `theirs`: the spread of ratios of paired turns."""
    a, b = best(rows, *ours, batch), best(rows, *theirs, batch)
    pairs = zip(b["milliseconds"], a["milliseconds"], strict=True)
    return spread([other / own for other, own in pairs])


def speed() -> str:
    """The README's chart of the ladder, and its ratios on every machine."""
    ours, twin, *_ = NETWORKS
    fp32 = tuple(way for ways in ENGINES.values() for way in ways if way[1] == "fp32")
    reports = {machine: read(name) for machine, name in LADDERS.items()}
    first = next(iter(reports.values()))
    batches = first["plan"]["batch_sizes"]
    head = ["speedup over timm's `resnest50d`", *(f"batch {batch}" for batch in batches)]
    lines = [_line(head), _line(["---", *("---:" for _ in batches)])]
    for name, ways in (
        ("int8, both in OpenVINO", ENGINES["OpenVINO int8"]),
        ("fp32, each in its fastest engine", fp32),
    ):
        for other, report in reports.items():
            ratios = (speedup(report["rows"], (ours, ways), (twin, ways), n) for n in batches)
            lines.append(_line([f"{name}, {other}", *(f"{x['median']:.2f}" for x in ratios)]))
    return "\n".join(
        (
            "![Milliseconds per image of ResNeSt-50 in each engine, splitattn and timm]"
            "(docs/charts/inference.svg)",
            "",
            *lines,
            "",
            "AMX and AVX-512 are instruction sets of x86 processors. AMX is the newer one.",
        )
    )


STARTUP = {
    "first label": "`predict`, the model inside the package",
    "resnest50": "`predict`, a ResNeSt-50",
    "export resnest50": "`export` of a ResNeSt-50 to ONNX, with its parity report",
    "timm script": "a timm script that labels one photograph",
}


def startup() -> str:
    """Time and memory of whole commands."""
    report = read("startup")
    lines = ["| process | seconds (quartiles) | peak memory |", "|---|---:|---:|"]
    for name, case in report["cases"].items():
        seconds = spread(case["seconds"])
        lines.append(
            _line(
                (
                    STARTUP.get(name, name),
                    f"{seconds['median']:.2f} "
                    f"({seconds['quartile1']:.2f}-{seconds['quartile3']:.2f})",
                    f"{statistics.median(case['peak_memory']) / 1e6:.0f} MB",
                )
            )
        )
    where = report["environment"]
    lines += [
        "",
        f"Whole processes, n = {len(next(iter(report['cases'].values()))['seconds'])}; "
        f"{processor_of(where)}, {where['cores']} cores, {_origin(where, 'onnxruntime')}.",
    ]
    return "\n".join(lines)


def startup_chart() -> str:
    """The README's chart of startup times."""
    cases = read("startup")["cases"]
    first, peer = (
        statistics.median(cases[name]["seconds"]) for name in ("first label", "timm script")
    )
    memory = statistics.median(cases["first label"]["peak_memory"]) / 1e6
    return "\n".join(
        (
            "![Seconds and peak memory of whole processes](docs/charts/startup.svg)",
            "",
            f"`splitattn predict photo.jpg` takes {first:.2f} s and {memory:.0f} MB from start to "
            f"end. A script that labels one photograph with timm takes {peer:.2f} s.",
        )
    )


def serving() -> str:
    """The results of a service under load, and its limits."""
    report = read("serving")
    single, overload = report["single"], report["overload"]
    ends, hostile = report["ends"], report["hostile"]
    after, again = ends["after_sigterm"], ends["ready_after_sigkill"]
    answered = sum(after["statuses"].values())
    rows = [
        ("ready after start", f"{report['ready']['median']:.2f} s", "1.5 s", "ready"),
        (
            "throughput of 16 clients against `predict`",
            f"{report['throughput']['median_ratio']:.2f}",
            "0.85 or more",
            "throughput",
        ),
        (
            "one client, p50 and p99",
            f"{single['p50']:.1f} and {single['p99']:.1f} ms",
            f"{single['p50_at_most']:.1f} and {single['p99_at_most']:.1f} ms",
            "single",
        ),
        (
            f"{overload['clients']} clients, half as many again as it can serve: accepted p99, "
            "refused p99",
            f"{overload['accepted_p99']:.0f} and {overload['refused_p99']:.1f} ms",
            f"{overload['accepted_p99_at_most']:.0f} and 20 ms",
            "overload",
        ),
        (
            f"memory over {report['memory']['requests']:,} requests of mixed files",
            f"{100 * report['memory']['growth']:+z.1f} %",
            "5 %",
            "memory",
        ),
        (
            "idle connections, slow bodies, hostile and mutated requests: server errors",
            f"{sum(hostile['server_errors'].values())} of {sum(hostile['statuses'].values()):,}",
            "none",
            "hostile",
        ),
        (
            f"SIGTERM under load, {ends['rounds']} times: lost; ready after SIGKILL, largest",
            f"{after['lost']} of {answered:,}; {again['largest']:.1f} s",
            f"none; {again['at_most']} s",
            "ends",
        ),
        (
            "probabilities against `predict`, at batches of 1 to 8",
            f"{report['equality']['largest_difference']:.0e}",
            "1e-5",
            "equality",
        ),
    ]
    lines = ["| what | measured | aim | met |", "|---|---:|---:|---|"]
    lines += [
        _line((what, value, aim, "yes" if report[part]["met"] else "**no**"))
        for what, value, aim, part in rows
    ]
    where = report["environment"]
    parts = (part for _, _, _, part in rows)
    commits = ", ".join(dict.fromkeys(f"`{report[part]['commit']}`" for part in parts))
    lines += [
        "",
        f"Clients and service on the same {where['cores']} cores, {processor_of(where)}, "
        f"{where['date']}, {commits}, openvino {where['openvino']}.",
    ]
    if peers := report.get("peers"):
        lines += ["", *_peers(peers)]
    return "\n".join(lines)


def _peers(peers: Row) -> Iterator[str]:
    yield "| service | runs in | images/s | p99, ms | one client p50, ms |"
    yield "|---|---|---:|---:|---:|"
    for name, row in peers["median"].items():
        yield _line(
            (
                name,
                peers["runs_in"].get(name, ""),
                f"{row['images_per_second']:.1f}",
                f"{row['p99']:.0f}",
                f"{row['single_p50']:.0f}",
            )
        )
    yield ""
    yield f"`{peers['model']}` with random weights, {peers['clients']} clients, n = 3 in turns."


def bulk() -> str:
    """The rate of `splitattn bulk` compared with `predict`, and its labels after kills."""
    report = read("bulk")
    rates, faults = report["rates"], report["faults"]
    predict, measured, where = rates["predict"], rates["environment"], report["environment"]
    lines = ["| on one core | images/s | of `predict` (range) | by processor time |"]
    lines += ["|---|---:|---:|---:|"]
    for name in ("predict", "files", "bucket"):
        pairs = list(zip(predict, rates[name], strict=True))
        rate = statistics.median(rates["images"] / ours["seconds"] for _, ours in pairs)
        clock = [plain["seconds"] / ours["seconds"] for plain, ours in pairs]
        busy = statistics.median(plain["busy"] / ours["busy"] for plain, ours in pairs)
        spread_of = f"{statistics.median(clock):.2f} ({min(clock):.2f}-{max(clock):.2f})"
        lines.append(_line((name, f"{rate:.0f}", spread_of, f"{busy:.2f}")))
    killed, memory = faults["killed"], report["peak_memory_of_listing"]
    listing = "; ".join(
        f"{place}, "
        + ", ".join(f"{int(count):,}: {size / 1e6:.0f} MB" for count, size in sizes.items())
        for place, sizes in memory.items()
    )
    lines += [
        "",
        f"{rates['images']:,} photographs, n = {len(predict)} in turns, each command on one core "
        f"and the store of the bucket on another; {processor_of(measured)}, "
        f"{_origin(measured, 'openvino')}.",
        "",
        f"After {killed['worker']} kills of a worker and {killed['driver']} of the driver, with "
        f"{faults['refused']:,} of {faults['requests']:,} requests answered 503: "
        f"{faults['rows']:,} rows of {report['photographs']:,} photographs, "
        f"{faults['images_twice']} twice, {faults['images_lost']} lost, "
        f"{faults['any_label_differs']} with other labels than `predict`. Memory of listing, "
        f"by images in {listing}. {processor_of(where)}, {where['cores']} cores, "
        f"{_origin(where, 'openvino')}.",
    ]
    return "\n".join(lines)


# The assumptions of `bulk_costs`: a plan, prices in $, and the seconds for a page of a listing.
PHOTOGRAPHS, CORES, PART, PAGE = 100_000_000, 64, 10_000, 1_000
CORE_HOUR, THOUSAND_GETS, THOUSAND_LISTS = 0.05, 0.0004, 0.005
LIST_SECONDS = 0.15


def bulk_costs() -> str:
    """Time and cost of 100 million photographs in a bucket, by measured rates, assumed prices."""
    report = read("bulk")
    images, rows = report["rates"]["images"], report["rates"]["bucket"]
    memory = report["peak_memory_of_listing"]
    busy = statistics.median(row["busy"] / images for row in rows)
    clock = statistics.median(row["seconds"] / images for row in rows)
    hours = [PHOTOGRAPHS * seconds / 3600 for seconds in (busy, clock)]
    counts = sorted(map(int, memory["one folder"]))[-2:]
    fewer, more = (memory["one folder"][str(count)] for count in counts)
    each_name = (more - fewer) / (counts[1] - counts[0])
    peak = max(memory[place][str(counts[1])] for place in ("folders", "a bucket"))
    pages = PHOTOGRAPHS / PAGE
    rates = f"{1 / busy:.0f} to {1 / clock:.0f}"
    cells = (
        ("what", "how much", "if"),
        ("---", "---", "---"),
        (
            "processors",
            f"{hours[0]:.0f} to {hours[1]:.0f} core-hours, or {hours[0] / CORES:.1f} to "
            f"{hours[1] / CORES:.1f} hours on {CORES} cores",
            f"a core labels {rates} photographs a second",
        ),
        (
            "money for them",
            f"{hours[0] * CORE_HOUR:.2f} to {hours[1] * CORE_HOUR:.2f} $",
            f"a core costs {CORE_HOUR} $ an hour",
        ),
        (
            "reading",
            f"{PHOTOGRAPHS / 1000 * THOUSAND_GETS:.0f} $",
            f"1,000 GET cost {THOUSAND_GETS} $, and no bytes leave the region",
        ),
        (
            "listing",
            f"{pages / 1000 * THOUSAND_LISTS:.2f} $, and {pages * LIST_SECONDS / 3600:.0f} hours "
            "before anything is labeled",
            f"1,000 LIST cost {THOUSAND_LISTS} $, each gives {PAGE:,} keys and takes "
            f"{LIST_SECONDS} s",
        ),
        ("parts", f"{PHOTOGRAPHS // PART:,} files", f"`--shard-size` is {PART:,}"),
        (
            "memory of listing",
            f"{peak / 1e6:.0f} MB, as for {counts[1]:,}",
            f"each file in one folder takes {each_name:.0f} bytes more, for its name",
        ),
        (
            "what a killed actor loses",
            f"up to {PART * clock:.0f} core-seconds",
            "a shard is labeled anew",
        ),
    )
    return "\n".join(
        [
            f"A core labels {1 / busy:.0f} photographs of a bucket in a second of processor time "
            f"({busy * 1e3:.1f} ms each), and {1 / clock:.0f} in a second by the clock, with the "
            "store on another core. Costs are given for both.",
            "",
            *map(_line, cells),
        ]
    )


def best(rows: list[Row], network: str, ways: Iterable[tuple[str, str]], batch: int) -> Row:
    """The fastest row of a network; for ours, in the form that the engine gets by default."""
    found = [
        row
        for row in rows
        if row["network"] == network
        and row["batch_size"] == batch
        and (row["engine"], row["precision"]) in ways
        and row["form"] == (FORMS.get(row["engine"]) if network in OURS else "as trained")
    ]
    return min(found, key=median_milliseconds)


def grouped(rows: Iterable[Row], key: Callable[[Row], Key]) -> Iterator[tuple[Key, list[Row]]]:
    """Group rows by key, in the order in which the keys first occur."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    yield from groups.items()


def median_milliseconds(row: Row) -> float:
    return statistics.median(row["milliseconds"])


def _mean(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def _against(rows: Sequence[Row], others: Sequence[Row]) -> str:
    """The difference in top-1 of `rows` from `others`, and whether it is significant at 95 %.

    Welch's interval over the seeds and the binomial interval over the validation images, which all
    seeds share, are independent, so their squares are added.
    """
    first, second = ([row["top1"] for row in group] for group in (rows, others))
    difference = statistics.mean(first) - statistics.mean(second)
    if min(len(first), len(second)) < 2:
        return f"{difference:+.2f}: not shown"
    welch = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    seeds = (welch.high - welch.low) / 2
    shares = [statistics.mean(group) / 100 for group in (first, second)]
    variance = sum(share * (1 - share) for share in shares) / rows[0]["n"]
    images = 100 * statistics.NormalDist().inv_cdf(0.975) * math.sqrt(variance)
    half = math.hypot(seeds, images)
    shown = "shown" if abs(difference) > half else "not shown"
    return f"{difference:+.2f} ({difference - half:+.1f} to {difference + half:+.1f}): {shown}"


def _device(where: Row) -> str:
    return where["gpu"] or f"{processor_of(where)}, {where['threads']} threads"


def _origin(where: Row, *libraries: str) -> str:
    versions = [f"{name} {where[name]}" for name in libraries]
    return ", ".join([where["date"], f"`{where['commit']}`", *versions])


def _origins(rows: Iterable[Row], *libraries: str) -> str:
    """Where the rows of a table were measured."""
    found = (row["environment"] for row in rows)
    libraries = libraries or ("torch", "timm")
    return "; ".join(dict.fromkeys(f"{_device(w)}, {_origin(w, *libraries)}" for w in found))


def _one_recipe(rows: Sequence[Row]) -> Row:
    """The recipe that all rows share but for the seed. Rows of two recipes must not be averaged.

    A row that was measured before a field existed gets the field's default, which turns it off.
    """
    from splitattn.training.recipes import Recipe  # imports PyTorch, which no other table needs

    defaults = {field.name: field.default for field in fields(Recipe)}
    recipes = [defaults | _respelled(row["recipe"]) | {"seed": None} for row in rows]
    if any(recipe != recipes[0] for recipe in recipes):
        raise ValueError("rows with one name must have one recipe; remove those of older ones")
    return recipes[0]


def _respelled(recipe: Row) -> Row:
    """The recipe with today's names: fp32 was called float32."""
    return {name: "fp32" if value == "float32" else value for name, value in recipe.items()}


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def read(name: str) -> Any:
    return json.loads((BENCHMARKS / f"{name}.json").read_text("utf-8"))


def measured(table: Callable[[], str]) -> Callable[[], str]:
    """A function that gives the table, or a line that says that nothing is measured yet."""

    def text() -> str:
        try:
            return table()
        except FileNotFoundError as error:
            return f"Not measured yet: there is no `benchmarks/{Path(error.filename).name}`."

    return text
