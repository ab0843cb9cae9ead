"""Compare the speed of exported files with files that an older version wrote.

usage: python benchmarks/compare_exports.py OLD NEW [OLD NEW ...] [--batch-size 1 16] [--rounds 21]
           [--output FILE]

Each pair holds two files for the same engine: NEW as `splitattn export` writes it, OLD as an older
version wrote it. In every round both run once to warm up and once timed, in turns, at
each batch size. A row for each pair and batch size is added to the JSON list in FILE: milliseconds
of each round, and the ratio of the old file's time to the new one's: above 1, the new file is
faster. Nothing else should run meanwhile.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from splitattn import environment
from splitattn.bench.spread import spread
from splitattn.engines.engine import Engine
from splitattn.engines.onnx_runtime import OnnxEngine
from splitattn.engines.open_vino import OpenVinoEngine
from splitattn.engines.table import file_engine
from splitattn.files import replacing
from splitattn.weights.metadata import ModelMetadata

OUTPUT = Path(__file__).with_suffix(".json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="OLD NEW")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=21, help="at least 2")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    arguments = parser.parse_args()
    if len(arguments.files) % 2:
        parser.error("name two files for each comparison")
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2, for their spread, got {arguments.rounds}")
    rows = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else []
    pairs = zip(arguments.files[::2], arguments.files[1::2], strict=True)
    for old, new in pairs:
        engines = opened(old), opened(new)
        size = metadata(new).preprocessing.size
        for batch_size in arguments.batch_size:
            rows.append(
                {
                    "old": old.name,
                    "new": new.name,
                    "engine": engines[1].name,
                    "batch_size": batch_size,
                    "size": size,
                    "environment": environment.describe(),
                }
                | compared(engines, batch_size, size, arguments.rounds)
            )
            with replacing(arguments.output) as temporary:
                temporary.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def opened(path: Path) -> Engine:
    """The engine that runs a file. Its content is not checked, since another version wrote it."""
    return OnnxEngine(path) if path.suffix == ".onnx" else OpenVinoEngine(path)


def metadata(path: Path) -> ModelMetadata:
    """The metadata of a file of this version."""
    row = file_engine(path)
    assert row is not None, path
    return row.load_file_module().read_metadata(path)


def compared(
    engines: tuple[Engine, ...], batch_size: int, size: int, rounds: int
) -> dict[str, Any]:
    """Milliseconds of both engines, and the spread of their ratios."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, 3, size, size), dtype=np.float32)
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 2):
        for i in (0, 1) if turn % 2 else (1, 0):
            engines[i].logits(images)
            begin = time.perf_counter()
            engines[i].logits(images)
            if turn > 1:  # the first rounds compile and allocate
                seconds[i].append(time.perf_counter() - begin)
    old, new = ([round(1000 * each, 3) for each in times] for times in seconds)
    ratios = [a / b for a, b in zip(old, new, strict=True)]
    return {"old_milliseconds": old, "new_milliseconds": new, "ratio": spread(ratios)}


if __name__ == "__main__":
    main()
