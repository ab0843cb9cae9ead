"""The paper's claim at small scale: does choosing between splits pay, at equal cost?

usage: python benchmarks/claim.py DATA [--runs FOLDER] [--seeds 0 1 2]

DATA is Tiny ImageNet (a folder of Parquet shards, or class folders). Networks of one depth and
width, with 0, 1, 2 and 4 splits, and beside them timm's SE and SK networks of the same depth and
width, learn its first hundred classes by one recipe. Ours pool before the 3x3 convolution, timm's
take strides in it, so that all have nearly the same cost; the rows say how nearly.

Sized for two hours on two processor cores. A run that was stopped goes on where it was, and one
that is in benchmarks/claim.json is not repeated. All networks take their first seed before any
takes its second. Needs the extra [dev], for timm and fvcore.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from fvcore.nn import FlopCountAnalysis
from timm.models.resnet import Bottleneck, ResNet
from timm.models.sknet import SelectiveKernelBottleneck
from torch import nn

from splitattn import environment
from splitattn.architectures import Architecture
from splitattn.data.sources import LabelledImages, open_data
from splitattn.files import replacing
from splitattn.nn.resnest import ResNeSt
from splitattn.training.loop import train
from splitattn.training.recipes import Recipe
from splitattn.training.run import Run

OUTPUT = Path(__file__).with_suffix(".json")
CLASSES = 100
LAYERS, PLANES, STEM_WIDTH = (2, 2, 2, 2), 32, 16
RECIPE = Recipe(
    epochs=4,
    batch_size=128,
    learning_rate=0.2,
    warmup_epochs=0.5,
    weight_decay=5e-4,
    mixup_alpha=0.0,
    train_size=48,
    test_size=56,
    crop_scale=0.5,
    precision="auto",
)


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A network of the comparison."""

    name: str
    what: str
    build: Callable[[], nn.Module]


def split_attention(radix: int) -> ResNeSt:
    # The ablation's shape (paper table 1): its `fast` networks pool before the 3x3 convolution.
    architecture = Architecture(
        layers=LAYERS, planes=PLANES, stem_width=STEM_WIDTH, radix=radix, avd_first=True
    )
    return ResNeSt(architecture, num_classes=CLASSES)


class Peer(ResNet):  # type: ignore[misc]
    """timm's ResNet-D of the same depth and width, initialised and trained as ours are."""

    def __init__(self, block: type[nn.Module], arguments: dict[str, Any]) -> None:
        super().__init__(
            block,
            LAYERS,
            num_classes=CLASSES,
            channels=tuple(PLANES * 2**stage for stage in range(4)),
            stem_type="deep",
            stem_width=STEM_WIDTH,
            avg_down=True,
            block_args=arguments,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def set_drop_block(self, probability: float) -> None:
        assert not probability


ENTRANTS = (
    Entrant(name="0s", what="ResNet-D, a plain 3x3 convolution", build=lambda: split_attention(0)),
    Entrant(name="1s", what="one split and a gate, SE-like", build=lambda: split_attention(1)),
    Entrant(name="2s", what="two splits, ResNeSt", build=lambda: split_attention(2)),
    Entrant(name="4s", what="four splits", build=lambda: split_attention(4)),
    Entrant(
        name="SE",
        what="timm's SE-ResNet-D",
        build=lambda: Peer(Bottleneck, {"attn_layer": "se"}),
    ),
    Entrant(
        name="SK",
        what="timm's SK-ResNet-D",
        build=lambda: Peer(SelectiveKernelBottleneck, {"sk_kwargs": {"split_input": True}}),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="Tiny ImageNet")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim"), help="for checkpoints")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    arguments = parser.parse_args()
    splits = {name: first_classes(open_data(arguments.data, name)) for name in ("train", "val")}
    for seed in arguments.seeds:
        for entrant in ENTRANTS:
            rows = (
                json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else []
            )
            if any((row["network"], row["seed"]) == (entrant.name, seed) for row in rows):
                continue
            row = measured(entrant, seed, splits, arguments.runs / f"{entrant.name}-{seed}")
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            with replacing(arguments.output) as path:
                path.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")


def first_classes(data: LabelledImages) -> LabelledImages:
    kept = [i for i, label in enumerate(data.labels) if label < CLASSES]
    return replace(
        data,
        classes=data.classes[:CLASSES],
        images=[data.images[i] for i in kept],
        labels=[data.labels[i] for i in kept],
        names=[data.names[i] for i in kept],
    )


def measured(
    entrant: Entrant, seed: int, splits: dict[str, LabelledImages], output: Path
) -> dict[str, object]:
    torch.manual_seed(seed)
    model = entrant.build()
    run = Run(
        name=entrant.name,
        recipe=replace(RECIPE, seed=seed),
        train=splits["train"],
        val=splits["val"],
        output=output,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    parameters = sum(weight.numel() for weight in model.parameters())
    result = train(model, run, resume=True)  # type: ignore[arg-type]  # a Peer does as well
    log = [json.loads(line) for line in (output / "log.jsonl").read_text("utf-8").splitlines()]
    seconds = sum(line["seconds"] for line in log if line["kind"] == "epoch")
    return {
        "network": entrant.name,
        "what": entrant.what,
        "seed": seed,
        "top1": result.top1,
        "top5": result.top5,
        "loss": result.loss,
        "n": result.n,
        "parameters": parameters,
        "gmacs": gmacs(model),
        "training_images_per_second": RECIPE.epochs
        * run.steps_per_epoch
        * RECIPE.batch_size
        / seconds,
        "classes": CLASSES,
        "training_images": len(run.train),
        "recipe": asdict(run.recipe),
        "environment": environment.describe()
        | {"timm": timm.__version__, "threads": torch.get_num_threads()},
    }


def gmacs(model: nn.Module) -> float:
    """Billions of multiply-accumulates for one image of the test size."""
    side = RECIPE.test_size
    image = torch.zeros(1, 3, side, side, device=next(model.parameters()).device)
    count = FlopCountAnalysis(model.eval(), image)
    return float(count.unsupported_ops_warnings(False).total()) / 1e9


if __name__ == "__main__":
    main()
