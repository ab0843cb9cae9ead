"""Train detectors and segmenters from the embedded model, about twenty minutes each.

usage: python benchmarks/dense.py SET DATA [--seeds 0 1 2] [--start embedded random]
           [--threads 2] [--runs FOLDER] [--set KEY=VALUE ...] [--output FILE]

SET is one of
    bccd     boxes of blood cells (COCO): FCOS, AP50 on val and test
    raccoon  boxes of raccoons (VOC): FCOS, AP50 on one image in five
    nuclei   single nuclei (COCO with run lengths): Mask R-CNN, mask AP50 on val
    camvid   streets, 11 classes (images and masks): FPN, mIoU on test

For every seed a network is trained from the embedded weights with the preset `finetune` and the
changes of the set. With `--start random` another one is trained from random weights in the way of
torchvision's references, with the same head, images and epochs. A stopped run continues, and a run
that is in benchmarks/dense.json is not repeated, unless the package has other weights now.

benchmarks/dense_epochs.json has the time of one epoch, measured on two cores with nothing else
running: `--seeds 0 --set epochs=1 warmup_epochs=0 --runs runs/epochs --output
benchmarks/dense_epochs.json`; for camvid also `first_train_size=288`, which is its largest size.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from splitattn import environment
from splitattn.files import replacing
from splitattn.launch import train
from splitattn.training.recipes import TaskName
from splitattn.weights.catalogue import embedded_entry
from splitattn.workflows import evaluate

OUTPUT = Path(__file__).with_suffix(".json")
# As in torchvision's references: random weights, SGD, no EMA, and batch norms that learn.
RANDOM = (
    *("pretrained=false", "frozen_stages=0", "frozen_batch_norm=false", "layer_decay=1.0"),
    *("optimizer=sgd", "learning_rate=0.16", "weight_decay=1e-4", "ema_decay=0.0"),
)


@dataclass(frozen=True, kw_only=True)
class Set:
    """A data set and how it is learned.

    Attributes:
        task, head: of the training.
        figure: the name of the figure that is reported.
        splits: the splits on which it is measured after training.
        changes: overrides of the preset `finetune`.
    """

    task: TaskName
    head: str
    figure: str
    splits: tuple[str, ...]
    changes: tuple[str, ...]


SETS = {
    "bccd": Set(
        task="detection",
        head="fcos",
        figure="ap50",
        splits=("val", "test"),
        changes=("epochs=14", "train_size=320", "test_size=320"),
    ),
    "raccoon": Set(
        task="detection",
        head="fcos",
        figure="ap50",
        splits=("val",),
        changes=("epochs=30", "train_size=256", "test_size=256"),
    ),
    "nuclei": Set(
        task="detection",
        head="mask_rcnn",
        figure="mask_ap50",
        splits=("val",),
        changes=("epochs=6", "train_size=320", "test_size=320", "frozen_stages=1"),
    ),
    "camvid": Set(
        task="segmentation",
        head="fpn",
        figure="miou",
        splits=("val", "test"),
        changes=("epochs=60", "train_size=288", "first_train_size=192", "test_size=360"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--start", nargs="+", choices=("embedded", "random"), default=["embedded"])
    parser.add_argument("--threads", type=int, default=2, help="processor cores for training")
    parser.add_argument("--runs", type=Path, default=Path("runs/dense"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else []
    for seed in arguments.seeds:
        for start in arguments.start:
            key = {"set": arguments.set, "start": start, "seed": seed}
            key["changes"] = arguments.overrides
            same = [row for row in rows if all(row[name] == key[name] for name in key)]
            weights = embedded_entry().sha256 if start == "embedded" else None
            if any(row["sha256"] == weights for row in same):
                continue
            began = weights[:8] if weights else start
            output = arguments.runs / f"{arguments.set}-{began}-{seed}"
            row = key | measured(SETS[arguments.set], arguments.data, key, output)
            sys.stdout.write(
                f"{arguments.set} {start} {seed}: {row['figures']} in "
                f"{row['training_seconds']:.0f} s\n"
            )
            sys.stdout.flush()
            # Rows of earlier weights are replaced.
            rows = [*(row for row in rows if row not in same), row]
            with replacing(arguments.output) as path:
                path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measured(chosen: Set, data: str, key: dict[str, Any], output: Path) -> dict[str, Any]:
    entry = embedded_entry()
    random = key["start"] == "random"
    train(
        data,
        output,
        model=entry.model,
        weights=None if random else entry.tag,
        head=chosen.head,
        recipe="finetune",
        overrides=[
            *chosen.changes,
            *(RANDOM if random else ()),
            f"seed={key['seed']}",
            *key["changes"],
        ],
        resume=True,
    )
    log = [json.loads(line) for line in (output / "log.jsonl").read_text("utf-8").splitlines()]
    epochs = [line for line in log if line["kind"] == "epoch"]
    figures = {}
    for split in chosen.splits:
        found: Any = evaluate(data, weights=output, split=split)
        figures[f"{split}_{chosen.figure}"] = found.figures[chosen.figure]
    return {
        "model": entry.model,
        "weights": None if random else entry.tag,
        "sha256": None if random else entry.sha256,
        "head": chosen.head,
        "figures": figures,
        "epochs": len(epochs),
        # Includes the measurement after each epoch.
        "training_seconds": sum(line["seconds"] for line in epochs),
        "threads": torch.get_num_threads(),
        "environment": environment.describe(),
    }


if __name__ == "__main__":
    main()
