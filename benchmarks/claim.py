"""The paper's claim at small scale: does choosing between splits pay, at equal cost?

usage: python benchmarks/claim.py DATA [--runs FOLDER] [--seeds 0 1 2] [--processes 2]
       python benchmarks/claim.py --speed

DATA is Tiny ImageNet (a folder of Parquet shards, or class folders). Networks of one depth and
width, with 0, 1, 2 and 4 splits, and beside them timm's SE and SK networks of the same depth and
width, learn its first hundred classes by one recipe. Ours pool before the 3x3 convolution, timm's
take strides in it, so that all have nearly the same cost; the rows say how nearly.

Sized for two hours on two processor cores. Networks this small learn faster one to a core than one
after the other on all of them, so `--processes` of them learn at once. A run that was stopped goes
on where it was, and one that is in benchmarks/claim.json is not repeated. All networks take their
first seed before any takes its second. With --speed a free machine times a training step and a
forward pass of each, in turn, for benchmarks/claim_speed.json. Needs the extra [dev], for timm and
fvcore.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from timm.models.resnet import Bottleneck, ResNet
from timm.models.sknet import SelectiveKernelBottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from splitattn import environment
from splitattn.architectures import Architecture
from splitattn.bench.spread import spread
from splitattn.data.labelled import LabelledImages
from splitattn.data.open import open_data
from splitattn.files import replacing
from splitattn.nn.resnest import ResNeSt
from splitattn.training.classification import Classification
from splitattn.training.loop import train
from splitattn.training.precision import autocast_dtype
from splitattn.training.recipes import Recipe
from splitattn.training.run import Run

OUTPUT = Path(__file__).with_suffix(".json")
SPEED_OUTPUT = OUTPUT.with_stem("claim_speed")
WARM_UP_ROUNDS, ROUNDS = 3, 20
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
    """timm's ResNet-D of the same depth and width, initialized and trained as ours are."""

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
    parser.add_argument("data", nargs="?", help="Tiny ImageNet")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim"), help="for checkpoints")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2, help="networks that learn at once")
    parser.add_argument("--speed", action="store_true", help="measure speed instead")
    parser.add_argument("--output", type=Path, metavar="JSON")
    arguments = parser.parse_args()
    if arguments.speed:
        write(arguments.output or SPEED_OUTPUT, speeds())
        return
    if arguments.data is None:
        parser.error("DATA must be given where --speed is not: Tiny ImageNet")
    output = arguments.output or OUTPUT
    rows = json.loads(output.read_text("utf-8")) if output.exists() else []
    done = {(row["network"], row["seed"]) for row in rows}
    threads = max(1, (os.cpu_count() or 1) // arguments.processes)
    pool = ProcessPoolExecutor(
        arguments.processes, get_context("spawn"), torch.set_num_threads, (threads,)
    )
    results = [
        pool.submit(measured, entrant.name, seed, arguments.data, arguments.runs)
        for seed in arguments.seeds
        for entrant in ENTRANTS
        if (entrant.name, seed) not in done
    ]
    try:
        for result in as_completed(results):
            rows.append(result.result())
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
            sys.stdout.flush()
            write(output, rows)
    finally:
        # After Ctrl-C each network that learns saves its state, and none begins.
        pool.shutdown(cancel_futures=True)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(path) as new:
        new.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def first_classes(data: LabelledImages) -> LabelledImages:
    kept = [i for i, label in enumerate(data.labels) if label < CLASSES]
    return replace(
        data,
        classes=data.classes[:CLASSES],
        images=[data.images[i] for i in kept],
        labels=[data.labels[i] for i in kept],
        names=[data.names[i] for i in kept],
    )


def measured(name: str, seed: int, data: str, runs: Path) -> dict[str, Any]:
    (entrant,) = (entrant for entrant in ENTRANTS if entrant.name == name)
    torch.manual_seed(seed)
    model = entrant.build()
    task = Classification(
        model=name,
        train=first_classes(open_data(data, "train")),
        val=first_classes(open_data(data, "val")),
    )
    run = Run(
        recipe=replace(RECIPE, seed=seed),
        output=runs / f"{name}-{seed}",
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    parameters = sum(weight.numel() for weight in model.parameters())
    result = train(model, task, run, resume=True).details
    return {
        "network": name,
        "what": entrant.what,
        "seed": seed,
        "top1": result.top1,
        "top5": result.top5,
        "loss": result.loss,
        "n": result.n,
        "parameters": parameters,
        "gmacs": gmacs(model),
        "classes": CLASSES,
        "training_images": task.examples,
        "recipe": asdict(run.recipe),
        "environment": environment.describe(),
    }


def speeds() -> list[dict[str, Any]]:
    """Images per second of a training step and of a forward pass, by all threads, in turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps: dict[str, dict[str, Callable[[], None]]] = {}
    for entrant in ENTRANTS:
        model = entrant.build().to(device).to(memory_format=torch.channels_last)
        steps[entrant.name] = {
            "training": training_step(model.train(), device),
            "inference": forward_pass(deepcopy(model).eval(), device),
        }
    seconds: dict[str, dict[str, list[float]]] = {
        name: {kind: [] for kind in kinds} for name, kinds in steps.items()
    }
    for i in range(WARM_UP_ROUNDS + ROUNDS):
        for name in list(steps)[:: -1 if i % 2 else 1]:
            for kind, step in steps[name].items():
                begin = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name][kind].append(time.perf_counter() - begin)
    where = environment.describe()
    return [
        {
            "network": name,
            "batch": RECIPE.batch_size,
            "rounds": ROUNDS,
            "images_per_second": {
                kind: spread([RECIPE.batch_size / t for t in values[WARM_UP_ROUNDS:]])
                for kind, values in kinds.items()
            },
            "environment": where,
        }
        for name, kinds in seconds.items()
    ]


def training_step(model: nn.Module, device: torch.device) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    batch = images(RECIPE.train_size, device)
    labels = torch.arange(RECIPE.batch_size, device=device) % CLASSES

    def step() -> None:
        with autocast(device):
            loss = F.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def forward_pass(model: nn.Module, device: torch.device) -> Callable[[], None]:
    batch = images(RECIPE.test_size, device)

    def step() -> None:
        with torch.inference_mode(), autocast(device):
            model(batch)

    return step


def autocast(device: torch.device) -> torch.autocast:
    dtype = autocast_dtype(RECIPE.precision, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def images(size: int, device: torch.device) -> Tensor:
    shape = (RECIPE.batch_size, 3, size, size)
    return torch.randn(shape, device=device).to(memory_format=torch.channels_last)


def gmacs(model: nn.Module) -> float:
    """Billions of multiply-accumulates for one image of the test size."""
    side = RECIPE.test_size
    image = torch.zeros(1, 3, side, side, device=next(model.parameters()).device)
    count = FlopCountAnalysis(model.eval(), image)
    return float(count.unsupported_ops_warnings(False).total()) / 1e9


if __name__ == "__main__":
    main()
