"""What is frozen stays as it is, in whatever network it ends up."""

from typing import Self

from torch import nn


class Freezable(nn.Module):
    """A layer that acts otherwise in training, for which being frozen means evaluation for good.

    Attributes:
        frozen: whether the layer evaluates, whatever `train` says.
    """

    frozen: bool = False

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)


def freeze(part: nn.Module) -> None:
    """No gradients for `part`, and evaluation whatever `train` says.

    So batch norms keep their statistics, and nothing is dropped at random.
    It belongs to the layers themselves, so it also holds in a network that somebody puts together
    from them. Parameters can be woken as everywhere, by `requires_grad_`.
    """
    _set_frozen(part, frozen=True)


def thaw(part: nn.Module) -> None:
    """Undo `freeze`; the next `train` reaches all of `part` again."""
    _set_frozen(part, frozen=False)


def _set_frozen(part: nn.Module, *, frozen: bool) -> None:
    for module in part.modules():
        if isinstance(module, Freezable):
            module.frozen = frozen
            module.train(module.training)
    part.requires_grad_(not frozen)
