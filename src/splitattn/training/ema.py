"""The exponential moving average (EMA) of a network that is being trained."""

from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of weights and batch norm statistics.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the first steps of a short
    training do not dominate. Statistics are averaged too, since those of the last step do not fit
    averaged weights.

    This replaces torch's `AveragedModel`, which copies a counter to the GPU at every update and
    waits for all queued work there.

    Args:
        model: the network to average.
        decay: share of the old average that each update keeps, in the long run.

    Attributes:
        module: the averaged network, a copy of `model` on the same device.
        updates: number of updates so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = deepcopy(model).requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the current weights of `model`; the first update copies them."""
        n = self.updates
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        floats = [(ours, theirs) for ours, theirs in pairs if ours.is_floating_point()]
        counters = [(ours, theirs) for ours, theirs in pairs if not ours.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
        if counters:
            torch._foreach_copy_([a for a, _ in counters], [b for _, b in counters])
        self.updates += 1


def _tensors(model: nn.Module) -> chain[Tensor]:
    return chain(model.parameters(), model.buffers())
