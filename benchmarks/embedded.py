"""Accuracy and speed of the model inside the package, in fp32 and in int8.

usage: python benchmarks/embedded.py NAME=DATA ... --calibration DATA [--weights FILE]
           [--rounds 7] [--output FILE]

Each DATA is a data set for `splitattn evaluate` with a split called val, and NAME is its name in
the tables. Its images are labeled in float32 and by two int8 files, for ONNX Runtime and OpenVINO,
which are calibrated on the training images of --calibration. "kept" is the percentage of images
that keep their float32 label. The network alone is timed with batch 1 on one thread; engines take
turns. Needs the extra [int8].
"""

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

import splitattn
from splitattn import environment
from splitattn.bench.spread import spread
from splitattn.evaluation import Answer
from splitattn.files import replacing
from splitattn.opening import open_network, open_weights
from splitattn.weights.download import file_sha256
from splitattn.weights.resolve import resolve

ENDINGS = {"int8, ONNX Runtime": "onnx", "int8, OpenVINO": "xml"}
IMAGES = 50  # timed in one turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="+", metavar="NAME=DATA")
    parser.add_argument("--calibration", required=True, metavar="DATA")
    parser.add_argument("--weights", type=Path, help="instead of the model inside the package")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the timing, at least 2")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    network = open_weights(weights=given.weights)
    with tempfile.TemporaryDirectory() as folder:
        weights: dict[str, Path | None] = {"fp32": given.weights}
        for name, ending in ENDINGS.items():
            weights[name] = Path(folder, f"int8.{ending}")
            splitattn.export(
                weights[name],
                weights=given.weights,
                precision="int8",
                calibration=given.calibration,
            )
        sets = {}
        for pair in given.data:
            name, _, data = pair.partition("=")
            sets[name] = measured(data, weights)
        stored = {
            "environment": environment.describe(),
            "weights": network.weights,
            "sha256": file_sha256(resolve(weights=given.weights).path),
            "size": network.metadata.preprocessing.size,
            "sets": sets,
            "milliseconds": timed(weights, given.rounds),
        }
    with replacing(given.output) as temporary:
        temporary.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def measured(data: str, weights: dict[str, Path | None]) -> dict[str, dict[str, float]]:
    """For each precision: number of images, top-1, top-5, and labels equal to fp32, in percent."""
    rows: dict[str, dict[str, float]] = {}
    guesses: dict[str, list[str]] = {}
    for name, path in weights.items():
        answers: list[Answer] = []
        found = splitattn.evaluate(data, weights=path, on_answer=answers.append)
        guesses[name] = [answer.guess for answer in answers]
        kept = np.mean([a == b for a, b in zip(guesses[name], guesses["fp32"], strict=True)])
        rows[name] = {
            "n": found.n,
            "top1": round(found.top1, 2),
            "top5": round(found.top5, 2),
            "kept": round(100 * float(kept), 2),
        }
    return rows


def timed(weights: dict[str, Path | None], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds per image, by file and engine."""
    engines = {
        "fp32, ONNX Runtime": open_network(weights=weights["fp32"], engine="onnxruntime"),
        "fp32, OpenVINO": open_network(weights=weights["fp32"], engine="openvino"),
        **{name: open_network(weights=weights[name]) for name in ENDINGS},
    }
    preprocessing = engines["fp32, OpenVINO"].preprocessing
    side = preprocessing.size
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds + 1):  # the first round warms up
        for name, opened in engines.items():
            started = perf_counter()
            for _ in range(IMAGES):
                opened.engine.run(pixels, preprocessing)
            seconds[name].append((perf_counter() - started) / IMAGES)
    return {name: spread([1000 * one for one in times[1:]]) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
