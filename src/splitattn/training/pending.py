"""Figures of a step, which a GPU may still be computing."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Pending:
    """Figures of a step whose copy from the device may not be finished.

    Args:
        step: counted from 0.
        learning_rate: of the step.
        names: of the figures.
        totals: the figures, one for each name, on any device.
    """

    def __init__(
        self, step: int, learning_rate: float, names: Sequence[str], totals: Tensor
    ) -> None:
        self.step = step
        self.learning_rate = learning_rate
        self._names = names
        self._totals = totals
        self._arrived: torch.cuda.Event | None = None
        if totals.is_cuda:
            # Copy now: reading the device's tensor later would also wait for the next step.
            self._totals = torch.empty_like(totals, device="cpu", pin_memory=True)
            self._totals.copy_(totals, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def figures(self) -> dict[str, float]:
        """The figures by name; waits until they have arrived."""
        if self._arrived:
            self._arrived.synchronize()
        return dict(zip(self._names, self._totals.tolist(), strict=True))
