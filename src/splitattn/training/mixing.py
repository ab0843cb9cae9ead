"""Targets of images, mixup and cutmix, and the loss with label smoothing.

Shapes: B batch, C classes, H and W rows and columns.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from splitattn.data.labeled import LabeledImages
from splitattn.training.recipes import Recipe


def targets_of(data: LabeledImages, labels: Tensor) -> Tensor:
    """Convert labels (B,) of `data` to float32 targets (B, C), 1 for each class of an image."""
    if data.label_sets is None:
        return F.one_hot(labels, len(data.classes)).float()
    targets = torch.zeros(len(labels), len(data.classes))
    for row, label in enumerate(labels.tolist()):
        targets[row, [*data.label_sets[label]]] = 1
    return targets


def mix(images: Tensor, targets: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Mix each image with its partner in the reversed batch; all pairs have the same share.

    Mixup (arXiv 1710.09412) blends the two images; cutmix (arXiv 1905.04899) pastes a rectangle of
    the partner. If a recipe has both, one is chosen with equal probability.

    Args:
        images: (B, 3, H, W) floats.
        targets: (B, C) shares of each class.

    Returns:
        Images and targets, mixed.
    """
    alphas = [
        (_mixup, recipe.mixup_alpha),
        (_cutmix, recipe.cutmix_alpha),
    ]
    on = [(how, alpha) for how, alpha in alphas if alpha]
    if not on:
        return images, targets
    how, alpha = on[int(torch.randint(len(on), ()))] if len(on) > 1 else on[0]
    mixed, share = how(images, float(torch.distributions.Beta(alpha, alpha).sample()))
    return mixed, targets.lerp(targets.flip(0), 1 - share)


def _mixup(images: Tensor, share: float) -> tuple[Tensor, float]:
    return images.lerp(images.flip(0), 1 - share), share


def _cutmix(images: Tensor, share: float) -> tuple[Tensor, float]:
    """Paste a rectangle with 1 - `share` of the area, clipped at the border."""
    height, width = images.shape[-2:]
    side = (1 - share) ** 0.5
    top, bottom = _span(height, side)
    left, right = _span(width, side)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(length: int, share: float) -> tuple[int, int]:
    center, half = int(torch.randint(length, ())), int(length * share) / 2
    return max(round(center - half), 0), min(round(center + half), length)


def smoothed_loss(
    logits: Tensor, targets: Tensor, recipe: Recipe, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of logits (B, C), in float32, with label smoothing: a scalar.

    Args:
        targets: (B, C), probabilities.
        weights: (C,), multiply the share of each class in a target; None for 1.
    """
    return F.cross_entropy(
        logits.float(), targets, weight=weights, label_smoothing=recipe.label_smoothing
    )
