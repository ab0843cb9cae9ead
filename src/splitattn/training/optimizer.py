"""The optimizer: learning rates and weight decay of all weights."""

import math
from collections.abc import Callable

import torch
from torch import nn

from splitattn.training.recipes import Recipe
from splitattn.training.stages import HEAD, depths

_DECAYED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of `step`: linear warm-up from zero, then the recipe's schedule.

    The peak is `recipe.learning_rate * batch_size / 256` (arXiv 1706.02677, section 2.1).
    """
    peak = recipe.learning_rate * recipe.batch_size / 256
    warmup = recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / (recipe.epochs * steps_per_epoch - warmup)
    return peak * _SCHEDULES[recipe.schedule](progress)


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _step(progress: float) -> float:
    return float(0.1 ** sum(progress >= drop for drop in (2 / 3, 8 / 9)))


def _poly(progress: float) -> float:
    return float((1 - progress) ** 0.9)


# Schedules: map the share of finished steps, from 0 to 1, to a share of the peak.
_SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "step": _step,
    "poly": _poly,
}


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over the weights that are not frozen.

    Weight decay applies only to the weights of convolutions and dense layers, by the module's
    class. The official code decides by name, and so also decays six norms. Each group has a `scale`
    for the learning rate: `recipe.layer_decay` to the power of its distance from the head, 1 for
    layer4 to 5 for the stem, times `recipe.backbone_rate` for stem and stages. The head is
    everything that is neither stem nor stage (see `stages`).
    """
    depth_of = depths(model)
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, _DECAYED)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for weight in model.parameters():
        if weight.requires_grad:
            decay = recipe.weight_decay if id(weight) in decayed else 0.0
            depth = depth_of.get(id(weight), HEAD)
            scale = recipe.layer_decay ** (HEAD - depth)
            scale *= 1.0 if depth == HEAD else recipe.backbone_rate
            groups.setdefault((scale, decay), []).append(weight)
    parts = [
        {"params": weights, "scale": scale, "weight_decay": decay}
        for (scale, decay), weights in groups.items()
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parts, lr=recipe.learning_rate)
    return torch.optim.SGD(parts, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each group to `rate` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
