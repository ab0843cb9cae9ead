"""The optimiser: which weights learn, how fast, and which of them decay."""

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from splitattn.nn.resnest import ResNeSt
from splitattn.training.recipes import Recipe

# From the stem, 0, to the classifier: what `layer_decay` and `frozen_stages` count.
_CLASSIFIER = 5
_STEM = ("conv1", "bn1", "relu", "maxpool")

_Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate of `step`: linear warm-up from zero, then half a cosine to zero.

    The peak is `recipe.learning_rate * batch_size / 256` (arXiv 1706.02677, section 2.1).
    """
    peak = recipe.learning_rate * recipe.batch_size / 256
    warmup = recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / (recipe.epochs * steps_per_epoch - warmup)
    return peak * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(model: ResNeSt, recipe: Recipe) -> torch.optim.SGD:
    """Nesterov SGD over the weights that are not frozen.

    Only the weights of convolutions and dense layers decay. The kind of the module decides, not its
    name: by name, the official code decays six norms. Each group says in `scale` by what to
    multiply the learning rate: `recipe.layer_decay` to the power of its distance from the
    classifier.
    """
    decayed = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            decay = recipe.weight_decay if id(weight) in decayed else 0.0
            scale = recipe.layer_decay ** (_CLASSIFIER - _depth(name))
            groups.setdefault((scale, decay), []).append(weight)
    return torch.optim.SGD(
        [
            {"params": weights, "scale": scale, "weight_decay": decay}
            for (scale, decay), weights in groups.items()
        ],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group of weights its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def freeze(model: ResNeSt, recipe: Recipe) -> None:
    """The first `recipe.frozen_stages` of stem and stages get no gradients."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(_depth(name) >= recipe.frozen_stages)


def set_training_mode(model: ResNeSt, recipe: Recipe) -> None:
    """Training mode, except for what is frozen: its norms keep their statistics too."""
    model.train()
    for name, module in model.named_children():
        if _depth(name) < recipe.frozen_stages:
            module.eval()


def make_average(model: ResNeSt, recipe: Recipe) -> AveragedModel | None:
    """The exponential moving average of the weights, if the recipe has one.

    Early on it forgets faster than `ema_decay` says, (1 + n) / (10 + n) after n steps, so that a
    short training is not the average of its first steps. The statistics of batch norm are averaged
    too: those of today do not fit weights that are the average of many days.
    """
    if not recipe.ema_decay:
        return None

    def update(average: _Tensors, current: _Tensors, steps: torch.Tensor | int) -> None:
        del steps  # on the device, where reading it would wait for all that is queued
        n = int(averaged.n_averaged)
        decay = min(recipe.ema_decay, (1 + n) / (10 + n))
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, current, 1 - decay)
        else:  # counters of batches
            torch._foreach_copy_(average, current)

    averaged = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return averaged


def _depth(name: str) -> int:
    """How far from the stem, 0, a parameter or module is; the classifier is the farthest."""
    if name.startswith("layer"):
        return int(name[len("layer")])
    return 0 if name.partition(".")[0] in _STEM else _CLASSIFIER
