"""Test the paper's claim at small scale: does attention between splits help at equal cost?

usage: python benchmarks/claim.py DATA [--scale small] [--runs FOLDER] [--seeds 0 1 2]
                                       [--processes 2]
       python benchmarks/claim.py --speed

DATA is Tiny ImageNet (a folder of Parquet shards, or class folders). Networks with 0, 1, 2 and 4
splits, and timm's SE and SK networks, all of the same depth and width, are trained on its first
classes with the same recipe and initialization. Ours pool before the 3x3 convolution and timm's
have strides in it, so that all have nearly the same cost. Each row has the cost and the width of
the attention, which is narrower in timm's networks.

`--scale small` takes about two hours on two processor cores, `full` is ResNeSt-50 on all classes
and needs a GPU, `quick` shows that the script runs. Small networks train faster on one core each
than one after the other on all cores, so `--processes` of them are trained at once. A stopped run
continues, and a run that is in the output is not repeated. All networks are trained with the first
seed before any is with the second. With --speed, a training step and a forward pass of each network
are timed in turn for benchmarks/claim_speed.json; nothing else should run meanwhile. Needs the
extra [dev], for timm and fvcore.
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
from splitattn.data.labeled import LabeledImages
from splitattn.data.sources import open_data
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


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of the networks, the number of classes and the recipe."""

    layers: tuple[int, int, int, int]
    planes: int
    stem_width: int
    classes: int
    recipe: Recipe


SMALL = Scale(
    layers=(2, 2, 2, 2),
    planes=32,
    stem_width=16,
    classes=100,
    recipe=Recipe(
        epochs=4,
        batch_size=128,
        learning_rate=0.2,
        warmup_epochs=0.5,
        weight_decay=5e-4,
        mixup_alpha=0.0,
        train_size=48,
        test_size=56,
        test_crop_fraction=1.0,
        crop_scale=0.5,
        precision="auto",
    ),
)
SCALES = {
    "quick": Scale(
        layers=(1, 1, 1, 1),
        planes=16,
        stem_width=8,
        classes=3,
        recipe=replace(
            SMALL.recipe, epochs=1, batch_size=8, train_size=32, test_size=32, precision="fp32"
        ),
    ),
    "small": SMALL,
    "full": Scale(
        layers=(3, 4, 6, 3),
        planes=64,
        stem_width=32,
        classes=200,
        recipe=replace(SMALL.recipe, epochs=20, warmup_epochs=1.0, train_size=56, test_size=64),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A network of the comparison."""

    what: str
    build: Callable[[Scale], nn.Module]


def split_attention(radix: int) -> Callable[[Scale], nn.Module]:
    def build(scale: Scale) -> nn.Module:
        # As in the paper's ablation (table 1): `fast` networks pool before the 3x3 convolution.
        architecture = Architecture(
            layers=scale.layers,
            planes=scale.planes,
            stem_width=scale.stem_width,
            radix=radix,
            avd_first=True,
        )
        return ResNeSt(architecture, num_classes=scale.classes)

    return build


def peer(block: type[nn.Module], arguments: dict[str, Any]) -> Callable[[Scale], nn.Module]:
    """timm's ResNet-D of the same depth and width. Like ours, it starts with zero residuals."""

    def build(scale: Scale) -> nn.Module:
        network = ResNet(
            block,
            scale.layers,
            num_classes=scale.classes,
            channels=tuple(scale.planes * 2**stage for stage in range(4)),
            stem_type="deep",
            stem_width=scale.stem_width,
            avg_down=True,
            block_args=arguments,
        )
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        return network

    return build


ENTRANTS = {
    "0s": Entrant(what="ResNet-D, a plain 3x3 convolution", build=split_attention(0)),
    "1s": Entrant(what="one split and a gate, SE-like", build=split_attention(1)),
    "2s": Entrant(what="two splits, ResNeSt", build=split_attention(2)),
    "4s": Entrant(what="four splits", build=split_attention(4)),
    "SE": Entrant(what="timm's SE-ResNet-D", build=peer(Bottleneck, {"attn_layer": "se"})),
    "SK": Entrant(
        what="timm's SK-ResNet-D",
        build=peer(SelectiveKernelBottleneck, {"sk_kwargs": {"split_input": True}}),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="?", help="Tiny ImageNet")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim"), help="for checkpoints")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--processes", type=int, default=2, help="networks that are trained at once"
    )
    parser.add_argument("--speed", action="store_true", help="measure speed instead")
    parser.add_argument("--output", type=Path, metavar="JSON")
    arguments = parser.parse_args()
    if arguments.speed:
        write(arguments.output or SPEED_OUTPUT, speeds())
        return
    if arguments.data is None:
        parser.error("DATA must be given where --speed is not: Tiny ImageNet")
    suffix = "" if arguments.scale == "small" else f"_{arguments.scale}"
    output = arguments.output or OUTPUT.with_stem(f"claim{suffix}")
    rows = json.loads(output.read_text("utf-8")) if output.exists() else []
    done = {(row["network"], row["seed"]) for row in rows}
    threads = max(1, (os.cpu_count() or 1) // arguments.processes)
    pool = ProcessPoolExecutor(
        arguments.processes, get_context("spawn"), torch.set_num_threads, (threads,)
    )
    results = [
        pool.submit(measured, name, seed, arguments.data, arguments.runs, arguments.scale)
        for seed in arguments.seeds
        for name in ENTRANTS
        if (name, seed) not in done
    ]
    try:
        for result in as_completed(results):
            rows.append(result.result())
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
            sys.stdout.flush()
            write(output, rows)
    finally:
        # After Ctrl-C, trainings in progress save their state, and no other begins.
        pool.shutdown(cancel_futures=True)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(path) as new:
        new.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def first_classes(data: LabeledImages, count: int) -> LabeledImages:
    kept = [i for i, label in enumerate(data.labels) if label < count]
    return replace(
        data,
        classes=data.classes[:count],
        images=[data.images[i] for i in kept],
        labels=[data.labels[i] for i in kept],
        names=[data.names[i] for i in kept],
    )


def measured(name: str, seed: int, data: str, runs: Path, scale_name: str) -> dict[str, Any]:
    """Train one network; returns its row of the output."""
    entrant, scale = ENTRANTS[name], SCALES[scale_name]
    torch.manual_seed(seed)
    model = entrant.build(scale)
    task = Classification(
        model=name,
        train=first_classes(open_data(data, "train"), scale.classes),
        val=first_classes(open_data(data, "val"), scale.classes),
    )
    run = Run(
        recipe=replace(scale.recipe, seed=seed),
        output=runs / f"{scale_name}-{name}-{seed}",
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
        "gmacs": gmacs(model, scale.recipe.test_size),
        "attention_widths": attention_widths(model),
        "classes": scale.classes,
        "training_images": task.examples,
        "recipe": asdict(run.recipe),
        "environment": environment.describe(),
    }


def attention_widths(model: nn.Module) -> list[int]:
    """Hidden width of the attention in the first block of each stage."""
    stages = [getattr(model, f"layer{i}")[0] for i in range(1, 5)]
    return [
        layer.out_channels
        for block in stages
        for name, layer in block.named_modules()
        if name.endswith((".fc1", ".fc_reduce"))
    ]


def speeds() -> list[dict[str, Any]]:
    """Images per second of a training step and a forward pass; networks take turns."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps: dict[str, dict[str, Callable[[], None]]] = {}
    for name, entrant in ENTRANTS.items():
        model = entrant.build(SMALL).to(device).to(memory_format=torch.channels_last)
        steps[name] = {
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
            "batch": SMALL.recipe.batch_size,
            "rounds": ROUNDS,
            "images_per_second": {
                kind: spread([SMALL.recipe.batch_size / t for t in values[WARM_UP_ROUNDS:]])
                for kind, values in kinds.items()
            },
            "environment": where,
        }
        for name, kinds in seconds.items()
    ]


def training_step(model: nn.Module, device: torch.device) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    batch = images(SMALL.recipe.train_size, device)
    labels = torch.arange(SMALL.recipe.batch_size, device=device) % SMALL.classes

    def step() -> None:
        with autocast(device):
            loss = F.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def forward_pass(model: nn.Module, device: torch.device) -> Callable[[], None]:
    batch = images(SMALL.recipe.test_size, device)

    def step() -> None:
        with torch.inference_mode(), autocast(device):
            model(batch)

    return step


def autocast(device: torch.device) -> torch.autocast:
    dtype = autocast_dtype(SMALL.recipe.precision, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def images(size: int, device: torch.device) -> Tensor:
    shape = (SMALL.recipe.batch_size, 3, size, size)
    return torch.randn(shape, device=device).to(memory_format=torch.channels_last)


def gmacs(model: nn.Module, side: int) -> float:
    """Billions of multiply-accumulates for one image of `side` pixels."""
    image = torch.zeros(1, 3, side, side, device=next(model.parameters()).device)
    count = FlopCountAnalysis(model.eval(), image)
    return float(count.unsupported_ops_warnings(False).total()) / 1e9


if __name__ == "__main__":
    main()
