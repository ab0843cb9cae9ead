"""Measure the speed of a detector in ONNX Runtime and OpenVINO, compared with PyTorch.

usage: python benchmarks/detectors.py --weights RUN --images FOLDER [--files FILE ...] [--count 8]
           [--rounds 9] [--threads N] [--output FILE]

In every round PyTorch (eager), ONNX Runtime, OpenVINO and the exported files find the objects in
the same images, one image at a time; the order rotates. The first round is not counted. Times
include resizing and non-maximum suppression, but not decoding. All use the same number of threads,
by default one for each core. A row is added to the JSON list in FILE: milliseconds per image of
each round, the speed relative to PyTorch, and how many of PyTorch's objects with a score of at
least 0.3 the others find too (same class, at most a pixel apart). Nothing else should run
meanwhile.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from splitattn import environment
from splitattn.dense.detector import Detector
from splitattn.files import replacing
from splitattn.images.decode import decode
from splitattn.images.paths import images_below

OUTPUT = Path(__file__).with_suffix(".json")
SCORE = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--files", type=Path, nargs="*", default=[])
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # read by ONNX Runtime and OpenVINO
    torch.set_num_threads(arguments.threads)
    detectors = {
        name: Detector(arguments.weights, engine=name)
        for name in ("torch", "onnxruntime", "openvino")
    }
    detectors |= {path.name: Detector(path) for path in arguments.files}
    paths = [*images_below(arguments.images, Counter())][: arguments.count]
    images = [decode(path) for path in paths]
    row = {
        "model": detectors["torch"].model,
        "sides": [detectors["torch"].sides.short, detectors["torch"].sides.long],
        "images": len(images),
        "threads": arguments.threads,
        "engines": {name: each.engine for name, each in detectors.items()},
        "environment": environment.describe(),
    } | measured(detectors, images, arguments.rounds)
    rows = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else []
    with replacing(arguments.output) as temporary:
        temporary.write_text(json.dumps([*rows, row], indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(
        json.dumps({key: row[key] for key in ("median", "times_as_fast", "same")}, indent=2) + "\n"
    )


def measured(
    detectors: dict[str, Detector], images: list[Image.Image], rounds: int
) -> dict[str, Any]:
    """Milliseconds per image, and the number of equal objects."""
    names = [*detectors]
    spent: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            for image in images:
                detectors[name].find(image, SCORE)
            seconds = time.perf_counter() - start
            if number:
                spent[name].append(round(1000 * seconds / len(images), 2))
    middle = {name: median(values) for name, values in spent.items()}
    ratios = {
        name: [a / b for a, b in zip(spent["torch"], values, strict=True)]
        for name, values in spent.items()
    }
    return {
        "rounds": rounds,
        "milliseconds": spent,
        "median": middle,
        "times_as_fast": {name: round(median(each), 2) for name, each in ratios.items()},
        "same": {name: same(detectors["torch"], each, images) for name, each in detectors.items()},
    }


def same(plain: Detector, other: Detector, images: list[Image.Image]) -> str:
    """How many of the objects of `plain` the detector `other` finds too, as text."""
    count = again = 0
    for image in images:
        expected, found = plain.find(image, SCORE), other.find(image, SCORE)
        for box, label in zip(expected.boxes, expected.labels, strict=True):
            off = np.abs(found.boxes - box).max(1, initial=0)
            again += bool(((off <= 1) & (found.labels == label)).any())
        count += len(expected)
    return f"{again} of {count}"


if __name__ == "__main__":
    main()
