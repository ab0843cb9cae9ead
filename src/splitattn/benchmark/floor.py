"""The least time that a machine needs for a network: its arithmetic and its bytes at peak rates."""

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_REPEATS = 15

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What this machine reaches where nothing is in the way.

    Attributes:
        multiply_adds: per second, by precision, of the product of two large square matrices.
        copied_bytes: per second, read and written, of a copy far larger than any cache.
    """

    multiply_adds: dict[str, float]
    copied_bytes: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one image asks for.

    Attributes:
        multiply_adds: of convolutions and dense layers.
        activations: numbers that those layers read and write, if none of them is kept in a cache.
        weights: numbers, read once for a batch.
    """

    multiply_adds: int
    activations: int
    weights: int


def measure_peaks(
    device: torch.device, *, side: int = 2048, copied_floats: int = 64 * 2**20
) -> Peaks:
    """Measure this machine, with PyTorch's number of threads.

    Args:
        side: of the square matrices that are multiplied.
        copied_floats: numbers of four bytes in the copied vector.
    """
    a = torch.randn(side, side, device=device)
    integers = torch.randint(-128, 127, (side, side), dtype=torch.int8, device=device)
    products: dict[str, Callable[[], Tensor]] = {
        "fp32": lambda: a @ a,
        "int8": lambda: torch._int_mm(integers, integers),
    }
    if device.type == "cuda":
        half, brain = a.half(), a.bfloat16()
        products |= {"fp16": lambda: half @ half, "bf16": lambda: brain @ brain}
    source = torch.randn(copied_floats, device=device)
    target = torch.empty_like(source)
    return Peaks(
        multiply_adds={
            name: side**3 / _seconds(product, device) for name, product in products.items()
        },
        copied_bytes=2 * source.nbytes / _seconds(lambda: target.copy_(source), device),
    )


def cost(network: nn.Module, size: int) -> Cost:
    """What an image of `size` pixels a side costs in `network`, counted without running it."""
    network = deepcopy(network).to("meta").eval()
    multiply_adds = activations = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal multiply_adds, activations
        assert isinstance(layer.weight, Tensor)
        multiply_adds += output.numel() * layer.weight[0].numel()
        activations += inputs[0].numel() + output.numel()

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    network(torch.empty(1, 3, size, size, device="meta"))
    return Cost(
        multiply_adds=multiply_adds,
        activations=activations,
        weights=sum(parameter.numel() for parameter in network.parameters()),
    )


def floor_seconds(cost: Cost, peaks: Peaks, *, precision: str, batch_size: int) -> float:
    """Whichever takes longer for a batch, the arithmetic or the bytes, each at its peak rate."""
    arithmetic = batch_size * cost.multiply_adds / peaks.multiply_adds[precision]
    moved = BYTES[precision] * (batch_size * cost.activations + cost.weights)
    return max(arithmetic, moved / peaks.copied_bytes)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of several runs, after as many that are not counted."""
    times = []
    for _ in range(2 * _REPEATS):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[_REPEATS:])
