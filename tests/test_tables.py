"""Tables and charts show the figures of the stored measurements."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import charts
import measured_tables
import pytest

from splitattn.weights.catalogue import embedded_entry

WHERE = {
    "date": "2026-01-02",
    "commit": "0123456789ab",
    "processor": "a processor",
    "threads": 2,
    "gpu": None,
    "torch": "2.0",
    "timm": "1.0",
    "openvino": "3.0",
    "onnxruntime": "4.0",
    "nncf": "5.0",
}


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    monkeypatch.setattr(measured_tables, "BENCHMARKS", tmp_path)

    def store(name: str, content: Any) -> None:
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")

    return store


def cells(table: str, first: str) -> list[str]:
    """The other cells of the row whose first cell is `first`."""
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_a_table_without_measurements_says_so(stored: Callable[[str, Any], None]) -> None:
    table = measured_tables.measured(measured_tables.finetuning)
    assert table() == "Not measured yet: there is no `benchmarks/finetuning.json`."
    stored("finetuning", [tuned("embedded", 80.0), tuned("random", 60.0)])
    assert "80.00" in table()


def tuned(start: str, top1: float) -> dict[str, Any]:
    return {
        "start": start,
        "weights": "a:b" if start == "embedded" else None,
        "sha256": "0123456789" if start == "embedded" else None,
        "top1": top1,
        "training_seconds": 90,
        "training_images": 3000,
        "n": 800,
        "recipe": {"epochs": 24, "seed": int(top1)},
        "environment": WHERE,
    }


def test_finetuning_is_the_mean_of_its_seeds(stored: Callable[[str, Any], None]) -> None:
    stored("finetuning", [tuned("embedded", 80.0), tuned("random", 60.0), tuned("embedded", 82.0)])
    table = measured_tables.finetuning()
    assert cells(table, "`a:b`") == ["81.00 ± 1.41", "24", "1.5", "2"]
    assert cells(table, "random weights") == ["60.00", "24", "1.5", "1"]
    assert "3,000 photographs to learn from, 800 to measure; a processor" in table


def test_weights_of_one_name_and_two_contents_are_two_rows(
    stored: Callable[[str, Any], None],
) -> None:
    entry = embedded_entry()
    now = tuned("embedded", 80.0) | {"weights": f"{entry.model}:{entry.tag}"}
    now |= {"sha256": entry.sha256}
    stored("finetuning", [now | {"sha256": "89abcdef01"}, now | {"top1": 90.0}])
    table = measured_tables.finetuning()
    assert cells(table, f"`{entry.model}:{entry.tag}`")[0] == "90.00"
    assert cells(table, f"`{entry.model}:{entry.tag}`, an earlier one (89abcdef)")[0] == "80.00"
    chart = charts.finetuning()
    labels = re.findall(r'class="label".*>(.+)</text>', chart)
    assert labels == [f"{entry.tag}, 89abcdef", entry.tag]
    assert bars(chart) == [("ours", "80.0"), ("ours", "90.0")]


def bars(chart: str) -> list[tuple[str, str]]:
    """The style of each bar and the text behind it."""
    return re.findall(r'<rect class="(\w+)" .*/>\n *<text x="[\d.]+" y="\d+">([\d.]+)<', chart)


def test_the_chart_of_detectors_has_a_panel_for_each_figure(
    stored: Callable[[str, Any], None],
) -> None:
    row = {"model": "a", "start": "random", "weights": None, "sha256": None}
    boxes = row | {"set": "cells", "head": "fcos"}
    pixels = row | {"set": "streets", "head": "fpn", "figures": {"val_miou": 50.0}}
    stored(
        "dense",
        [
            boxes | {"figures": {"val_ap50": 40.0, "test_ap50": 60.0}},
            pixels,
            boxes | {"figures": {"val_ap50": 42.0, "test_ap50": 64.0}},
        ],
    )
    chart = charts.dense()
    assert re.findall(r'class="panel".*>(.+)</text>', chart) == ["ap50 in %", "miou in %"]
    labels = re.findall(r'class="label".*>(.+)</text>', chart)
    assert labels == ["cells, fcos, random", "streets, fpn, random"]
    assert bars(chart) == [("ours", "62.0"), ("peer", "41.0"), ("peer", "50.0")]
    assert chart.count('class="range"') == 2  # one seed has no deviation


def test_the_chart_of_training_has_a_panel_for_each_device(
    stored: Callable[[str, Any], None],
) -> None:
    def row(rate: float, **changes: object) -> dict[str, Any]:
        rates = {"median": rate, "quartile1": rate - 1, "quartile3": rate + 1}
        twice = {key: 2 * value for key, value in rates.items()}
        rates_of = {"images_per_second": {"splitattn": twice, "timm": rates}}
        plan = {"precision": "bfloat16", "batch": 16, "rounds": 20, "environment": WHERE}
        return rates_of | plan | changes

    gpu = {"environment": WHERE | {"gpu": "a GPU"}, "mode": "compile"}
    stored("training_throughput", [row(5.0), row(500.0, **gpu), row(7.0, precision="float32")])
    chart = charts.training()
    panels = re.findall(r'class="panel".*>(.+)</text>', chart)
    assert panels == ["images per second, a processor", "images per second, a GPU"]
    labels = re.findall(r'class="label".*>(.+)</text>', chart)
    assert labels == ["bfloat16, batch 16", "float32, batch 16", "bfloat16, batch 16, compile"]
    rates = [rate for style, rate in bars(chart) if style == "ours"]
    assert rates == ["10.0", "14.0", "1000.0"]


def test_the_chart_of_a_service_stands_without_other_services(
    stored: Callable[[str, Any], None],
) -> None:
    rounds = [{"predict": rate, "served": rate - 20} for rate in (200.0, 240.0, 280.0)]
    report = {
        "environment": WHERE | {"cores": 2},
        "throughput": {"clients": 16, "rounds": rounds},
    }
    stored("serving", report)
    assert bars(charts.serving()) == [("ours", "220"), ("peer", "240")]
    turn = {"images_per_second": 30.0, "p99": 500.0}
    peers = {"splitattn": [turn] * 2, "another": [turn] * 2}
    stored("serving", report | {"peers": {"rounds": peers}})
    more = [("ours", "30"), ("peer", "30"), ("ours", "500"), ("peer", "500")]
    assert bars(charts.serving())[2:] == more


def test_the_chart_of_bulk_labeling_is_by_the_clock(stored: Callable[[str, Any], None]) -> None:
    turns = {"predict": 10.0, "files": 12.5, "bucket": 20.0}
    rates = {name: [{"seconds": seconds}] * 2 for name, seconds in turns.items()}
    stored("bulk", {"rates": rates | {"images": 1000, "environment": WHERE}})
    assert bars(charts.bulk()) == [("peer", "100"), ("ours", "80"), ("ours", "50")]


def test_a_row_with_an_instruction_set_shows_it(stored: Callable[[str, Any], None]) -> None:
    known = tuned("embedded", 80.0)
    known["environment"] = WHERE | {"instruction_set": "AVX2"}
    stored("finetuning", [known, tuned("random", 60.0)])
    origins = measured_tables.finetuning().splitlines()[-1]
    assert "a processor (AVX2), 2 threads" in origins
    assert "; a processor, 2 threads" in origins


def test_two_recipes_have_no_mean(stored: Callable[[str, Any], None]) -> None:
    other = tuned("random", 61.0) | {"recipe": {"epochs": 30, "seed": 1}}
    stored("finetuning", [tuned("embedded", 80.0), tuned("random", 60.0), other])
    with pytest.raises(ValueError, match="must have one recipe"):
        measured_tables.finetuning()


def test_rows_measured_before_a_recipe_field_existed_mix_with_later_ones(
    stored: Callable[[str, Any], None],
) -> None:
    old = tuned("random", 60.0) | {"recipe": {"epochs": 24, "saved_precision": "float32"}}
    new = {"epochs": 24, "saved_precision": "fp32", "sampling": "uniform", "white_level": None}
    stored("finetuning", [tuned("embedded", 80.0), old, tuned("random", 62.0) | {"recipe": new}])
    assert cells(measured_tables.finetuning(), "random weights")[0] == "61.00 ± 1.41"
    other = tuned("random", 62.0) | {"recipe": new | {"sampling": "balanced"}}
    stored("finetuning", [tuned("embedded", 80.0), old, other])
    with pytest.raises(ValueError, match="must have one recipe"):
        measured_tables.finetuning()


def test_the_claim_has_accuracy_and_cost(stored: Callable[[str, Any], None]) -> None:
    row = {
        "what": "two splits",
        "network": "2s",
        "n": 5000,
        "parameters": 4_480_000,
        "gmacs": 0.0463,
        "attention_widths": [32, 64],
        "classes": 100,
        "training_images": 50_000,
        "recipe": {"epochs": 4, "train_size": 48, "test_size": 56},
        "environment": WHERE,
    }
    rows = [row | {"seed": seed, "top1": 30.0 + seed} for seed in range(3)]
    plain = [other | {"network": "0s", "attention_widths": []} for other in rows]
    far = [other | {"network": "SE", "top1": other["top1"] + 10} for other in rows]
    stored("claim", [*plain, *rows, *far, far[0] | {"network": "SK"}])
    rates = {"training": {"median": 411.2}, "inference": {"median": 1234.5}}
    speed = {"batch": 128, "rounds": 20, "environment": WHERE | {"threads": 4}}
    names = ("0s", "2s", "SE", "SK")
    stored("claim_speed", [speed | {"network": n, "images_per_second": rates} for n in names])
    table = measured_tables.claim()
    # Over seeds: Student's 97.5 % quantile for four degrees of freedom, 2.776, times
    # sqrt(1/3 + 1/3). Over images: 1.96 times the deviation of two shares of 31 % (or of 31 and
    # 41 %) of 5,000, which is 1.81 (or 1.87).
    assert cells(table, "SE")[2] == "+10.00 (+7.1 to +12.9): shown"
    assert cells(table, "SK")[2] == "+9.00: not shown"  # one seed has no spread
    assert cells(table, "2s") == [
        "two splits",
        "31.00 ± 1.00",
        "+0.00 (-2.9 to +2.9): not shown",
        "3",
        "32, 64",
        "4.48 M",
        "0.0463",
        "411",
        "1234",
    ]
    accuracy, rates_line = table.splitlines()[-1].split(" Rates: ")
    assert "5,000 validation images of 100 classes, 4 epochs of 50,000 images" in accuracy
    assert "a processor, 2 threads" in accuracy
    assert "batches of 128, 48 pixels in training and 56 in inference" in rates_line
    assert "a processor, 4 threads" in rates_line


def test_bulk_labeling_is_measured_by_the_clock_and_by_processor_time(
    stored: Callable[[str, Any], None],
) -> None:
    plain = {"seconds": 10.0, "busy": 9.0}
    bucket = {"seconds": 16.0, "busy": 10.0}
    places = ("folders", "one folder", "a bucket")
    memory = {place: {"2000": 90e6, "20000": 100e6, "200000": 110e6} for place in places}
    memory["one folder"]["200000"] = 136e6
    report = {
        "environment": WHERE | {"cores": 2},
        "photographs": 20_000,
        "rates": {
            "environment": WHERE | {"date": "2026-02-01"},
            "images": 2000,
            **{"predict": [plain], "files": [plain], "bucket": [bucket]},
        },
        "faults": {
            "killed": {"worker": 10, "driver": 10},
            **dict.fromkeys(("requests", "refused", "rows"), 1),
            **dict.fromkeys(("images_twice", "images_lost", "any_label_differs"), 0),
        },
        "peak_memory_of_listing": memory,
    }
    stored("bulk", report)
    table = measured_tables.bulk()
    assert cells(table, "bucket") == ["125", "0.62 (0.62-0.62)", "0.90"]
    assert "2026-02-01" in table  # date of the rates
    assert WHERE["date"] in table  # date of the other parts
    costs = measured_tables.bulk_costs()
    assert costs.startswith("A core labels 200 photographs of a bucket in a second of processor")
    assert cells(costs, "processors") == [
        "139 to 222 core-hours, or 2.2 to 3.5 hours on 64 cores",
        "a core labels 200 to 125 photographs a second",
    ]
    assert cells(costs, "money for them")[0] == "6.94 to 11.11 $"
    assert cells(costs, "listing")[0] == "0.50 $, and 4 hours before anything is labeled"
    assert cells(costs, "memory of listing") == [
        "110 MB, as for 200,000",
        "each file in one folder takes 200 bytes more, for its name",
    ]
    assert cells(costs, "what a killed actor loses")[0] == "up to 80 core-seconds"


def ladder(times: Callable[[str, str, str, str], list[float]]) -> dict[str, Any]:
    """A report of every network in every engine, ours in two forms."""
    ways = [way for ways in measured_tables.ENGINES.values() for way in ways]
    return {
        "plan": {"size": None, "rounds": 3, "batch_sizes": [1]},
        "environment": WHERE,
        "peaks": {"multiply_adds": {"fp32": 50e9, "int8": 200e9}, "copied_bytes": 8e9},
        "rows": [
            {
                "network": network,
                "form": form,
                "engine": engine,
                "precision": precision,
                "batch_size": 1,
                "milliseconds": times(network, form, engine, precision),
                "roofline_milliseconds": 5.0,
                "peak_memory": 500e6,
                "difference": 1e-6,
                "same_labels": 100.0,
            }
            for network in measured_tables.NETWORKS
            for form in (
                ("branches", "grouped") if network.startswith("splitattn") else ("as trained",)
            )
            for engine, precision in ways
        ],
    }


def test_the_form_of_the_engine_and_the_best_format_stand_for_a_network(
    stored: Callable[[str, Any], None],
) -> None:
    def times(network: str, form: str, engine: str, _: str) -> list[float]:
        if network == "timm resnest50d":
            return [60.0] * 3 if engine == "torch NCHW" else [80.0] * 3
        return [40.0] * 3 if form == "branches" else [30.0] * 3

    first, second = measured_tables.LADDERS.values()
    other = ladder(lambda *rung: [2 * turn for turn in times(*rung)])
    stored(first, ladder(times))
    stored(second, other | {"environment": WHERE | {"processor": "another"}})
    table = measured_tables.inference()
    ours, twin, *_ = cells(table, "PyTorch")
    assert (ours, twin) == ("**40.0**", "60.0")
    assert "\nAVX-512: another, 2 threads" in table
    parts = measured_tables.ladder().split("### ")[1:]
    for part, name, processor, turns, rate in (
        (parts[0], "AMX", "a processor", "60.0 (60.0-60.0)", "16.7"),
        (parts[1], "AVX-512", "another", "120.0 (120.0-120.0)", "8.3"),
    ):
        assert part.startswith(f"{name}\n\n{processor}, 2 threads")
        line = cells(part, "timm resnest50d | as trained | torch NCHW | fp32")
        assert line[3:6] == ["1", turns, rate]


def test_a_ratio_is_that_of_turns_of_one_round(stored: Callable[[str, Any], None]) -> None:
    """If the machine slows down, the ratio of medians would differ."""

    def times(network: str, form: str, *_: str) -> list[float]:
        if network == "timm resnest50d":
            return [20.0, 100.0, 1000.0]
        return [10.0, 100.0, 500.0] if form == "branches" else [2000.0] * 3

    def steady(network: str, _: str, engine: str, *__: str) -> list[float]:
        if network.startswith("timm"):
            return [30.0 if engine == "openvino" else 40.0] * 3
        return [10.0] * 3

    first, second = measured_tables.LADDERS.values()
    stored(first, ladder(times))
    stored(second, ladder(steady))
    table = measured_tables.inference()
    ratio, other = cells(table, "ResNeSt-50 int8 against timm's, both in OpenVINO")
    assert ratio == "**2.00** (1.50-2.00)"
    assert other == "**3.00** (3.00-3.00)"
    for engine, expected in (("OpenVINO", 3), ("ONNX Runtime", 4)):
        line = cells(table, f"ResNeSt-50-fast int8 against ResNet-50-D int8, {engine}")
        assert line[1] == f"**{expected}.00** ({expected}.00-{expected}.00)"


@pytest.mark.parametrize("batch", [1, 16])
def test_the_chart_of_speed_says_milliseconds_per_image(
    batch: int, stored: Callable[[str, Any], None]
) -> None:
    def times(network: str, *_: str) -> list[float]:
        return [30.0 * batch] * 3 if network.startswith("splitattn") else [40.0 * batch] * 3

    report = ladder(times)
    report["plan"]["batch_sizes"] = [batch]
    for row in report["rows"]:
        row["batch_size"] = batch
    for name in measured_tables.LADDERS.values():
        stored(name, report)
    chart = charts.inference("AMX")
    assert bars(chart) == [("ours", "30.0"), ("peer", "40.0")] * len(measured_tables.ENGINES)
    widths = re.findall(r'<rect class="(ours|peer)" .*?width="([\d.]+)" height="14" rx', chart)
    # Squares of 14 pixels are in the legend.
    widths = [(style, width) for style, width in widths if width != "14"]
    ours, peers = ({float(w) for style, w in widths if style == kind} for kind in ("ours", "peer"))
    assert ours.pop() / peers.pop() == pytest.approx(30 / 40, abs=1e-3)
    assert "a processor, 2 threads" in chart
    assert measured_tables.speed().count("1.33") == 2 * len(measured_tables.LADDERS)


def test_decoding_is_grouped_by_the_input_of_the_network(
    stored: Callable[[str, Any], None],
) -> None:
    how = {"size": 224, "crop_fraction": 0.875, "order": "crop-resize", "interpolation": "bicubic"}
    spread = {"median": 2.5, "quartile1": 2.25, "quartile3": 2.75}
    quartiles = {"quartile1": 0.04, "quartile3": 0.15}
    seconds = {"exact": {"median": 0.125} | quartiles, "fast": {"median": 0.05} | quartiles}
    report = {
        "environment": WHERE | {"pillow": "12.0", "cores": 2},
        "times": [
            {"preprocessing": how, "images": 24, "rounds": 7, "ratio": spread}
            | {"seconds_per_image": seconds}
        ],
        "pixels": [
            {"set": "12 megapixels", "preprocessing": how, "mean_change": 0.25},
            {"set": "others", "preprocessing": how, "mean_change": 9.0},
        ],
        "labels": [
            {"set": "others", "labels_kept": 99, "images": 100}
            | {"largest_probability_change": 0.0125}
        ],
        "predict": {"model": "net", "engine": "ours", "rounds": 7, "ratio": spread}
        | {"images_per_second": {"exact": {"median": 10.0}, "fast": {"median": 25.0}}},
    }
    stored("decoding", [report])
    table = measured_tables.decoding()
    first = "224 px, 88% of the image, crop-resize"
    assert cells(table, first) == ["125", "50", "**2.50** (2.25-2.75)", "0.25 of 255"]
    assert "24 photographs of 12 megapixels, one thread, n = 7" in table
    assert "others: 99 of 100 labels kept, probabilities changed by at most 0.013." in table
    assert "25.0 of these photographs a second instead of 10.0, **2.50** times as fast" in table
    assert bars(charts.decoding()) == [("ours", "50"), ("peer", "125")]


def test_startup_is_shown_in_seconds_and_memory(stored: Callable[[str, Any], None]) -> None:
    assert "startup.json" in measured_tables.measured(measured_tables.startup)()
    cases = {
        "first label": {"seconds": [0.8, 0.9, 1.0], "peak_memory": [200e6] * 3},
        "timm script": {"seconds": [7.0, 8.0, 9.0], "peak_memory": [900e6] * 3},
    }
    stored("startup", {"cases": cases, "environment": WHERE | {"cores": 2}})
    table = measured_tables.startup()
    assert cells(table, "a timm script that labels one photograph")[0] == "8.00 (7.50-8.50)"
    assert "takes 0.90 s and 200 MB" in measured_tables.startup_chart()
    chart = charts.startup()
    assert [value for _, value in bars(chart)] == ["0.90", "8.00", "200", "900"]


def test_charts_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, charts.__file__, "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_int8_is_shown_with_its_loss_of_accuracy(stored: Callable[[str, Any], None]) -> None:
    for name, top1 in (("openvino", 54.5), ("onnx", 55.25)):
        agreement = {"n": 10000, "same_labels": 94.23, "top1": top1, "reference_top1": 55.0}
        report = {"engine": f"by {name}", "bytes": 9_800_000, "agreement": agreement}
        stored(f"eight_bits_{name}", report | {"environment": WHERE})
    table = measured_tables.eight_bits()
    where = "a processor"
    assert cells(table, "by openvino") == [where, "55.00", "**54.50**", "-0.50", "94.2", "9.8"]
    assert cells(table, "by onnx") == [where, "55.00", "**55.25**", "+0.25", "94.2", "9.8"]
    assert "10,000 images; a processor, 2 threads, 2026-01-02" in table
