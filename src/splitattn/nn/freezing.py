"""Layers that stay frozen, also after they were moved into another network."""

from typing import Self

from torch import nn


class Freezable(nn.Module):
    """A layer that can be frozen: it then stays in evaluation mode, even after `.train()`.

    Base class of the layers that behave differently in training.

    Attributes:
        frozen: whether the layer stays in evaluation mode.
    """

    frozen: bool = False

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)


def freeze(part: nn.Module) -> None:
    """Turn off gradients of `part` and keep its layers in evaluation mode, even after `.train()`.

    Batch norms keep their statistics, and nothing is dropped at random. Each layer remembers that
    it is frozen, so this also holds after the layers are moved into another network.
    `requires_grad_(True)` makes parameters learn again.
    """
    _set_frozen(part, frozen=True)


def thaw(part: nn.Module) -> None:
    """Undo `freeze`: gradients are on, and the next `.train()` reaches all layers of `part`."""
    _set_frozen(part, frozen=False)


def _set_frozen(part: nn.Module, *, frozen: bool) -> None:
    for module in part.modules():
        if isinstance(module, Freezable):
            module.frozen = frozen
            module.train(module.training)
    part.requires_grad_(not frozen)
