"""Measure the training throughput of resnest50, with timm's resnest50d in the same run.

usage: python benchmarks/training_throughput.py [--batch 32] [--size 224] [--rounds 20]
           [--precision float32|bfloat16] [--memory-format channels_last|contiguous_format]
           [--mode eager|compiled] [--device cpu|cuda] [--output FILE]

Both networks start from the same weights and take one step each in every round, in alternating
order, so that a machine that slows down affects both. A step is forward, loss, backward and SGD.
The first rounds warm up and are not counted. A row with the times, their spread and the machine is
added to the JSON list in FILE. In mode "compiled" both networks are compiled by torch.compile.
Needs the extra [dev], for timm.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn import functional as F

from splitattn import environment
from splitattn.architectures import ARCHITECTURES
from splitattn.bench.spread import spread
from splitattn.files import replacing
from splitattn.nn.resnest import ResNeSt

OUTPUT = Path(__file__).with_suffix(".json")
WARM_UP_ROUNDS = 3
OURS, THEIRS = "splitattn resnest50", "timm resnest50d"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="side of an image in pixels")
    parser.add_argument(
        "--rounds", type=int, default=20, help="number of rounds that count, at least 2"
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--memory-format", choices=("channels_last", "contiguous_format"), default="channels_last"
    )
    parser.add_argument("--mode", choices=("eager", "compiled"), default="eager")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2, for the quartiles, got {arguments.rounds}")

    row = measured(arguments)
    rows = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else []
    with replacing(arguments.output) as path:
        path.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(row, indent=1) + "\n")


def measured(arguments: argparse.Namespace) -> dict[str, object]:
    # Measured before the networks are built here, since both might not fit into memory together.
    peak_memory = {name: in_a_process_of_its_own(name, arguments) for name in (OURS, THEIRS)}
    models = networks()
    parameters = {name: sum(p.numel() for p in m.parameters()) for name, m in models.items()}
    steps = {name: step_of(model, arguments) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(WARM_UP_ROUNDS + arguments.rounds):
        for name in (OURS, THEIRS) if i % 2 else (THEIRS, OURS):
            begin = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - begin)
    counted = {name: times[WARM_UP_ROUNDS:] for name, times in seconds.items()}
    rates = {name: [arguments.batch / t for t in times] for name, times in counted.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates[OURS], rates[THEIRS], strict=True)]
    return {
        "batch": arguments.batch,
        "size": arguments.size,
        "precision": arguments.precision,
        "memory_format": arguments.memory_format,
        "mode": arguments.mode,
        "device": arguments.device,
        "rounds": arguments.rounds,
        "warm_up_rounds": WARM_UP_ROUNDS,
        "seconds": {name: [round(t, 6) for t in times] for name, times in counted.items()},
        "images_per_second": {name: spread(values) for name, values in rates.items()},
        "ratio": spread(ratios),
        "peak_memory_bytes": peak_memory,
        "parameters": parameters,
        "environment": environment.describe(),
    }


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    ours = ResNeSt(ARCHITECTURES["resnest50"])
    theirs = timm.create_model("resnest50d", pretrained=False)
    theirs.load_state_dict(ours.state_dict())
    return {OURS: ours, THEIRS: theirs}


def step_of(model: nn.Module, arguments: argparse.Namespace) -> Callable[[], None]:
    """A function that runs one training step on a fixed batch and waits until it is done."""
    device = torch.device(arguments.device)
    memory_format = getattr(torch, arguments.memory_format)
    model.to(device).to(memory_format=memory_format).train()
    if arguments.mode == "compiled":
        model.compile()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
    images = images.contiguous(memory_format=memory_format)
    labels = torch.arange(arguments.batch, device=device) % 1000
    low = arguments.precision == "bfloat16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def in_a_process_of_its_own(name: str, arguments: argparse.Namespace) -> int | None:
    # A new process, since the peak of a process never falls.
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        return executor.submit(peak_memory, name, arguments).result()


def peak_memory(name: str, arguments: argparse.Namespace) -> int | None:
    """Peak bytes of three steps: of the tensors on a GPU, or of the whole process on a CPU.

    None if the system does not report it.
    """
    step = step_of(networks()[name], arguments)
    for _ in range(3):
        step()
    if on_gpu(arguments):
        return torch.cuda.max_memory_allocated(arguments.device)
    return environment.peak_memory()


def on_gpu(arguments: argparse.Namespace) -> bool:
    return torch.device(arguments.device).type == "cuda"


if __name__ == "__main__":
    main()
