"""The roofline: the least time that a machine needs for a network, at its peak rates."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitattn.bench.peaks import Peaks

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one image costs.

    Attributes:
        multiply_adds: of convolutions and dense layers.
        activations: numbers that those layers read and write, if none of them is kept in a cache.
        weights: numbers, read once for a batch.
    """

    multiply_adds: int
    activations: int
    weights: int


def cost(network: nn.Module, size: int) -> Cost:
    """The cost of an image of `size` pixels a side, counted without running `network`."""
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


def roofline_seconds(cost: Cost, peaks: Peaks, *, precision: str, batch_size: int) -> float:
    """Seconds for a batch: the longer of arithmetic and memory traffic, each at its peak rate."""
    arithmetic = batch_size * cost.multiply_adds / peaks.multiply_adds[precision]
    moved = BYTES[precision] * (batch_size * cost.activations + cost.weights)
    return max(arithmetic, moved / peaks.copied_bytes)
