"""Small networks and random weights that the tests of the network share."""

import torch
from torch import nn

from splitattn.architectures import Architecture
from splitattn.nn.resnest import Bottleneck


def small(
    radix: int = 2, cardinality: int = 1, *, layers: tuple[int, int, int, int] = (1, 1, 1, 1)
) -> Architecture:
    """A small architecture with every idea of the paper, a quarter as wide."""
    return Architecture(
        layers=layers, radix=radix, cardinality=cardinality, planes=16, stem_width=8
    )


def randomize_norms(model: nn.Module) -> None:
    """Give all batch norms random weights and running statistics, as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.75, 2.25)
    wake_residuals(model)


def wake_residuals(model: nn.Module) -> None:
    """Give the residual branches, which are zero in a new network, random scales.

    The scale falls with the number of blocks, so that logits are of order one at any depth.
    """
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    for block in blocks:
        nn.init.uniform_(block.bn3.weight, 0.5 / len(blocks) ** 0.5, 1.5 / len(blocks) ** 0.5)


def images(batch: int = 2, height: int = 64, width: int = 64, channels: int = 3) -> torch.Tensor:
    """Noise around a random color for each image: to a network, all pure noise looks alike."""
    colors = torch.randn(batch, channels, 1, 1)
    return colors + torch.randn(batch, channels, height, width)
