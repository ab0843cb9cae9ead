"""Measure `predict` on a folder, compared with decoding and the network running side by side.

usage: python benchmarks/end_to_end.py [--model NAME] [--engines torch openvino ...]
           [--images 2016] [--rounds 5] [--output FILE]

The images are JPEGs of 500x375 pixels: crops of scikit-image's photographs, most of them enlarged.
Four measurements take turns in every round; the first round does not count:
`Classifier.predict_stream` over the folder; decoding alone; the network alone, on as many decoded
images; and the last two at the same time but independently, which is the upper limit for the first.
The time to a first label is that of the whole command `splitattn predict` on one photograph. A row
for each engine is added to the JSON list in FILE. Needs the extra [dev], for scikit-image.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import skimage.data
import torch
from PIL import Image

from splitattn import Classifier, create_model, environment
from splitattn.bench.spread import spread
from splitattn.errors import ImageError
from splitattn.files import replacing
from splitattn.images.decode import decode
from splitattn.images.preprocess import preprocess
from splitattn.weights.catalogue import default_preprocessing
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata

OUTPUT = Path(__file__).with_suffix(".json")
PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket")
WIDTH, HEIGHT = 500, 375
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--engines", nargs="+", default=["torch", "onnxruntime", "openvino"])
    parser.add_argument("--images", type=int, default=2016, help="whole batches")
    parser.add_argument("--rounds", type=int, default=5, help="at least 2")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2, for their spread, got {arguments.rounds}")
    if arguments.images < 1 or arguments.images % BATCH:
        parser.error(f"--images must be whole batches of {BATCH}, got {arguments.images}")
    rows = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else []
    with TemporaryDirectory() as folder:
        files = photographs(Path(folder), arguments.images)
        weights = random_weights(Path(folder), arguments.model) if arguments.model else None
        for engine in arguments.engines:
            row = measured(files, engine, weights, arguments.rounds)
            sys.stdout.write(json.dumps(row, indent=1) + "\n")
            rows.append(row)
            with replacing(arguments.output) as path:
                path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def photographs(folder: Path, count: int) -> list[Path]:
    """`count` different JPEGs: crops of photographs, resized to 500x375 pixels."""
    whole = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in PHOTOGRAPHS]
    random = np.random.default_rng(0)
    files = []
    for i in range(count):
        image = whole[i % len(whole)]
        share = random.uniform(0.6, 1)
        width = int(share * min(image.width, image.height * WIDTH / HEIGHT))
        height = width * HEIGHT // WIDTH
        left = int(random.integers(image.width - width + 1))
        top = int(random.integers(image.height - height + 1))
        files.append(folder / f"{i:05d}.jpg")
        image.resize(
            (WIDTH, HEIGHT), Image.Resampling.BICUBIC, (left, top, left + width, top + height)
        ).save(files[-1], quality=90)
    return files


def random_weights(folder: Path, model: str) -> Path:
    """Write a file of random weights: speed does not depend on their values."""
    torch.manual_seed(0)
    path = folder / "random.safetensors"
    metadata = ModelMetadata(
        model=model,
        classes=tuple(str(i) for i in range(1000)),
        preprocessing=default_preprocessing(model),
    )
    write_checkpoint(path, create_model(model).state_dict(), metadata)
    return path


def measured(
    files: list[Path], engine: str, weights: Path | None, rounds: int
) -> dict[str, object]:
    classifier = Classifier(weights=weights, engine=engine)
    classifier.engine.warm_up(BATCH, classifier.preprocessing)
    pixels = np.stack(
        [preprocess(decode(file), classifier.preprocessing) for file in files[:BATCH]]
    )
    batches = len(files) // BATCH

    def predict() -> None:
        for result in classifier.predict_stream(files, batch_size=BATCH):
            if isinstance(result, ImageError):
                raise result

    def decode_all() -> None:
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(
                lambda file: preprocess(decode(file), classifier.preprocessing), files
            ):
                pass

    def run_all() -> None:
        for _ in range(batches):
            classifier.engine.run(pixels, classifier.preprocessing)

    def both() -> None:
        with ThreadPoolExecutor(1) as pool:
            decoding = pool.submit(decode_all)
            run_all()
            decoding.result()

    tasks = {"predict": predict, "decode": decode_all, "network": run_all, "parallel": both}
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for i in range(1 + rounds):
        for name in list(tasks)[:: -1 if i % 2 else 1]:
            begin = time.perf_counter()
            tasks[name]()
            if i:
                seconds[name].append(time.perf_counter() - begin)
    first = [first_label(files[i], engine, weights) for i in range(rounds)]
    ratios = [
        best / real for best, real in zip(seconds["parallel"], seconds["predict"], strict=True)
    ]
    return {
        "model": classifier.model,
        "engine": classifier.engine.name,
        "images": len(files),
        "image_size": [WIDTH, HEIGHT],
        "batch": BATCH,
        "rounds": rounds,
        "images_per_second": {
            name: spread([len(files) / t for t in times]) for name, times in seconds.items()
        },
        "ratio": spread(ratios),
        "seconds_to_first_label": spread(first),
        "environment": environment.describe(),
    }


def first_label(file: Path, engine: str, weights: Path | None) -> float:
    own = [] if weights is None else ["--weights", str(weights)]
    command = [sys.executable, "-m", "splitattn", "predict", str(file), "--engine", engine, *own]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
