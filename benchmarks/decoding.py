"""Compare fast decoding with exact decoding: time, pixels and labels.

usage: python benchmarks/decoding.py [--photographs 24] [--rounds 7] [--data DATA ...]
           [--model NAME] [--weights NAME|FILE] [--engine NAME] [--output FILE]

Two sets of photographs are always measured: scikit-image's, saved as JPEG at their own size, and
photographs of 12 megapixels (4000x3000, JPEG quality 90) made from them. Each of the latter is a
random crop of 0.7 to 1 of a photograph, enlarged with a Lanczos filter. Enlarging leaves no detail
at the size of a pixel, so files would be small and decoding fast. Therefore the photograph's own
detail (what a blur of 2 pixels removes at its own size) is added in mirrored tiles, with sensor
noise of standard deviation 3. This gives files of 2 to 5 MB, like those of phones. --data adds data
sets.

Exact and fast decoding take turns, image by image, on one thread; decoding and preprocessing are
timed, for several preprocessings. Then a Classifier labels every set with both. It is timed on the
photographs of 12 megapixels, on all cores, in turns. A row for each run is added to the JSON list
in FILE. Needs scikit-image.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from splitattn import Classifier, environment
from splitattn.bench.spread import spread
from splitattn.data.sources import open_data
from splitattn.errors import ImageError
from splitattn.files import replacing
from splitattn.images.decode import ImageSource, decode_reduced
from splitattn.images.preprocess import preprocess_reduced
from splitattn.preprocessing import Preprocessing, center_crop, least_side

OUTPUT = Path(__file__).with_suffix(".json")
PHOTOGRAPHS = ("astronaut", "cat", "chelsea", "coffee", "rocket")
WIDTH, HEIGHT = 4000, 3000
PREPROCESSINGS = (
    center_crop(96),
    center_crop(224),
    Preprocessing(size=224, crop_fraction=0.875, order="resize-crop"),
    center_crop(416),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--photographs", type=int, default=24, help="number of photographs of 12 megapixels"
    )
    parser.add_argument("--rounds", type=int, default=7, help="at least 2")
    parser.add_argument("--data", nargs="*", default=[], help="data sets; their split val is used")
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2, for their spread, got {arguments.rounds}")
    large = [twelve_megapixels(number) for number in range(arguments.photographs)]
    sets: dict[str, Sequence[ImageSource]] = {
        "12 megapixels": large,
        "scikit-image": [saved(original(name)) for name in PHOTOGRAPHS],
    }
    for data in arguments.data:
        sets[Path(data).name] = open_data(data, "val").images
    classifiers = {
        decoding: Classifier(
            arguments.model, arguments.weights, engine=arguments.engine, decoding=decoding
        )
        for decoding in ("exact", "fast")
    }
    row = {
        "megabytes": spread([len(content) / 1e6 for content in large]),
        "times": [timed(large, own, arguments.rounds) for own in PREPROCESSINGS],
        "pixels": [pixels(name, sets[name], own) for name in sets for own in PREPROCESSINGS],
        "labels": labels(sets, classifiers),
        "predict": predicted(large, classifiers, arguments.rounds),
        "environment": environment.describe(),
    }
    sys.stdout.write(json.dumps(row, indent=1) + "\n")
    rows = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else []
    with replacing(arguments.output) as path:
        path.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")


def original(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def saved(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def twelve_megapixels(number: int) -> bytes:
    """A JPEG file of 4000x3000 pixels, made as the module's docstring says."""
    random = np.random.default_rng(number)
    photograph = original(PHOTOGRAPHS[number % len(PHOTOGRAPHS)])
    width = int(random.uniform(0.7, 1) * min(photograph.width, photograph.height * WIDTH / HEIGHT))
    height = width * HEIGHT // WIDTH
    left = int(random.integers(photograph.width - width + 1))
    top = int(random.integers(photograph.height - height + 1))
    crop = photograph.crop((left, top, left + width, top + height))
    enlarged = crop.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    smooth = crop.filter(ImageFilter.GaussianBlur(2))
    detail = np.asarray(crop, dtype=np.float32) - np.asarray(smooth, dtype=np.float32)
    noise = random.normal(0, 3, (HEIGHT, WIDTH, 3)).astype(np.float32)
    whole = np.asarray(enlarged, dtype=np.float32) + mirrored(detail) + noise
    return saved(Image.fromarray(whole.round().clip(0, 255).astype(np.uint8)))


def mirrored(tile: NDArray[np.float32]) -> NDArray[np.float32]:
    """4000x3000 pixels of `tile` and its mirror images, without seams."""
    rows, columns = HEIGHT - tile.shape[0], WIDTH - tile.shape[1]
    return np.pad(tile, ((0, rows), (0, columns), (0, 0)), mode="symmetric")


def timed(images: Sequence[bytes], preprocessing: Preprocessing, rounds: int) -> dict[str, object]:
    least = {"exact": None, "fast": least_side(preprocessing)}
    seconds: dict[str, list[float]] = {"exact": [], "fast": []}
    for number in range(rounds):
        totals = dict.fromkeys(seconds, 0.0)
        for image in images:
            for decoding in list(least)[:: -1 if number % 2 else 1]:
                begin = time.perf_counter()
                preprocess_reduced(decode_reduced(image, least[decoding]), preprocessing)
                totals[decoding] += time.perf_counter() - begin
        for decoding, total in totals.items():
            seconds[decoding].append(total / len(images))
    ratios = [exact / fast for exact, fast in zip(*seconds.values(), strict=True)]
    return {
        "preprocessing": described(preprocessing),
        "images": len(images),
        "rounds": rounds,
        "seconds_per_image": {name: spread(values) for name, values in seconds.items()},
        "ratio": spread(ratios),
    }


def pixels(
    name: str, images: Sequence[ImageSource], preprocessing: Preprocessing
) -> dict[str, object]:
    """Differences of the network's input from that of exact decoding, in units of 0 to 255."""
    least = least_side(preprocessing)
    largest, means = 0, []
    for image in images:
        fast = decode_reduced(image, least)
        if fast.scale == 1:
            continue
        exact = preprocess_reduced(decode_reduced(image, None), preprocessing)
        change = np.abs(np.subtract(exact, preprocess_reduced(fast, preprocessing), dtype=int))
        largest = max(largest, int(change.max()))
        means.append(float(change.mean()))
    return {
        "set": name,
        "preprocessing": described(preprocessing),
        "images": len(images),
        "reduced": len(means),
        "largest_change": largest,
        "mean_change": round(float(np.mean(means)), 4) if means else 0.0,
    }


def described(preprocessing: Preprocessing) -> dict[str, object]:
    fields = asdict(preprocessing)
    return {name: fields[name] for name in ("size", "crop_fraction", "order", "interpolation")}


def predicted(
    images: Sequence[bytes], classifiers: dict[str, Classifier], rounds: int
) -> dict[str, object]:
    """Images per second of `predict` on all cores, and the speedup of fast decoding."""
    rates: dict[str, list[float]] = {name: [] for name in classifiers}
    for number in range(rounds + 1):
        for name in list(classifiers)[:: -1 if number % 2 else 1]:
            begin = time.perf_counter()
            for result in classifiers[name].predict_stream(images):
                if isinstance(result, ImageError):
                    raise result
            if number:  # the first round warms up
                rates[name].append(len(images) / (time.perf_counter() - begin))
    return {
        "model": classifiers["fast"].model,
        "engine": classifiers["fast"].engine.name,
        "images": len(images),
        "rounds": rounds,
        "images_per_second": {name: spread(values) for name, values in rates.items()},
        "ratio": spread([fast / exact for exact, fast in zip(*rates.values(), strict=True)]),
    }


def labels(
    sets: dict[str, Sequence[ImageSource]], classifiers: dict[str, Classifier]
) -> list[dict[str, object]]:
    """The number of equal first labels, and the differences of probabilities."""
    exact, fast = classifiers["exact"], classifiers["fast"]
    rows: list[dict[str, object]] = []
    for name, images in sets.items():
        changes = []
        same = 0
        for one, other in zip(answers(exact, images), answers(fast, images), strict=True):
            same += int(one.argmax() == other.argmax())
            changes.append(float(np.abs(one - other).max()))
        rows.append(
            {
                "set": name,
                "model": exact.model,
                "preprocessing": described(exact.preprocessing),
                "images": len(changes),
                "changed_by_decoding": sum(change > 0 for change in changes),
                "labels_kept": same,
                "largest_probability_change": round(max(changes), 5),
                "median_probability_change": round(float(np.median(changes)), 5),
            }
        )
    return rows


def answers(classifier: Classifier, images: Sequence[ImageSource]) -> list[NDArray[np.float64]]:
    """The probabilities of all classes, in order of index, for each image."""
    found = []
    for result in classifier.predict_stream(images, topk=len(classifier.classes)):
        if isinstance(result, ImageError):
            raise result
        ordered = sorted(result, key=lambda prediction: prediction.index)
        found.append(np.array([prediction.probability for prediction in ordered]))
    return found


if __name__ == "__main__":
    main()
