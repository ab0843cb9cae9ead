"""The moving average of a network that is being trained."""

from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """Exponential moving average of weights and of batch norm's statistics.

    Early on it forgets faster than `decay` says, (1 + n) / (10 + n) after n updates, so that a
    short training is not the average of its first steps. Statistics are averaged too: those of
    today do not fit weights that are the average of many days.

    torch's AveragedModel does the same, but takes its counter to the GPU at every update, and so
    waits for all that is queued there.

    Args:
        model: what to follow; `module` is a copy of it, on the same device.
        decay: share of the old average that is kept, in the long run.
    """

    updates: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.module = deepcopy(model).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in what `model` has become; the first time, be its copy."""
        n = int(self.updates)
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        floats = [(ours, theirs) for ours, theirs in pairs if ours.is_floating_point()]
        counters = [(ours, theirs) for ours, theirs in pairs if not ours.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
        torch._foreach_copy_([a for a, _ in counters], [b for _, b in counters])
        self.updates += 1


def _tensors(model: nn.Module) -> chain[Tensor]:
    return chain(model.parameters(), model.buffers())
