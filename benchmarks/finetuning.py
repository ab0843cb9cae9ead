"""Compare fine-tuning the embedded model with equally long training from random weights.

usage: python benchmarks/finetuning.py DATA [--runs FOLDER] [--seeds 0 1 2] [--threads 1]
                                    [--starts embedded random]

DATA is a data set of photographs, such as flowers-5. For every seed, one network starts from the
embedded weights and another from random weights; both see the same crops for the same number of
epochs. The recipe was chosen for the first network, on the validation images that are measured
here. The second has no layer decay, which would be a handicap from random weights. A stopped run
continues, and a run that is in benchmarks/finetuning.json is not repeated, unless the package has
other weights now.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from splitattn import create_model, environment
from splitattn.data.sources import open_data
from splitattn.files import replacing
from splitattn.training.classification import Classification
from splitattn.training.loop import train
from splitattn.training.recipe_files import load_recipe
from splitattn.training.recipes import Recipe
from splitattn.training.run import Run
from splitattn.weights.catalogue import embedded_entry

OUTPUT = Path(__file__).with_suffix(".json")
# Overrides of the preset `finetune`. The data set is small, and its photographs have only about 32
# pixels of detail, so crops are small and vary much, over many epochs (docs/log.md).
CHANGES = (
    "train_size=64",
    "test_size=64",
    "epochs=24",
    "learning_rate=0.2",
    "layer_decay=0.9",
    "weight_decay=5e-4",
    "ema_decay=0.99",
    "first_train_size=48",
    "crop_scale=0.25",
    "auto_augment=trivial",
    "random_erasing=0.1",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="photographs, with a train and a val split")
    parser.add_argument("--runs", type=Path, default=Path("runs/finetuning"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--starts", nargs="+", choices=("embedded", "random"), default=["embedded", "random"]
    )
    parser.add_argument("--threads", type=int, default=1, help="processor cores for training")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = embedded_entry().model
    tuned = load_recipe("finetune", [*CHANGES, *arguments.overrides], model=model)
    scratch = replace(tuned, layer_decay=1.0)
    rows = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else []
    for seed in arguments.seeds:
        for start in arguments.starts:
            recipe = replace(tuned if start == "embedded" else scratch, seed=seed)
            same = [r for r in rows if (r["start"], r["recipe"]) == (start, asdict(recipe))]
            weights = embedded_entry().sha256 if start == "embedded" else None
            if any(row["sha256"] == weights for row in same):
                continue
            began = weights[:8] if weights else start
            row = measured(arguments.data, start, recipe, arguments.runs / f"{began}-{seed}")
            sys.stdout.write(
                f"{start} {seed}: {row['top1']:.2f} % in {row['training_seconds']:.0f} s\n"
            )
            sys.stdout.flush()
            # Rows of earlier weights are replaced.
            rows = [*(row for row in rows if row not in same), row]
            with replacing(arguments.output) as path:
                path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measured(data: str, start: str, recipe: Recipe, output: Path) -> dict[str, object]:
    entry = embedded_entry()
    task = Classification(
        model=entry.model, train=open_data(data, "train"), val=open_data(data, "val")
    )
    run = Run(
        recipe=recipe,
        output=output,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    torch.manual_seed(recipe.seed)
    network = create_model(
        entry.model,
        weights=entry.tag if start == "embedded" else None,
        num_classes=len(task.train.classes),
        **recipe.network_arguments(),
    )
    result = train(network, task, run, resume=True).details
    log = [json.loads(line) for line in (output / "log.jsonl").read_text("utf-8").splitlines()]
    return {
        "start": start,
        "weights": f"{entry.model}:{entry.tag}" if start == "embedded" else None,
        "sha256": entry.sha256 if start == "embedded" else None,
        "seed": recipe.seed,
        "top1": result.top1,
        "loss": result.loss,
        "n": result.n,
        "training_seconds": sum(line["seconds"] for line in log if line["kind"] == "epoch"),
        "training_images": task.examples,
        "recipe": asdict(recipe),
        "environment": environment.describe(),
    }


if __name__ == "__main__":
    main()
