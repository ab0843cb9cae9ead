"""Mixup and cutmix: targets match the mixed images."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from splitattn.data.labeled import LabeledImages
from splitattn.training.mixing import mix, smoothed_loss, targets_of
from splitattn.training.recipes import Recipe

LABELS = torch.tensor([0, 1, 2, 1])
TARGETS = torch.eye(3)[LABELS]


def one_color_each(size: int = 16) -> Tensor:
    """Images in which every value of image i is i."""
    return torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, size, size).clone()


def test_targets_are_the_classes_of_each_image() -> None:
    one = LabeledImages(
        origin="", classes=("a", "b", "c"), images="wxyz", labels=[0, 1, 2, 1], names="wxyz"
    )
    assert targets_of(one, LABELS).equal(TARGETS)
    several = replace(one, label_sets=((), (0, 2), (1,)))
    assert targets_of(several, LABELS).tolist() == [[0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_without_mixing_nothing_changes() -> None:
    images = torch.randn(4, 3, 8, 8)
    recipe = Recipe(mixup_alpha=0.0, cutmix_alpha=0.0)
    mixed, targets = mix(images, TARGETS, recipe)
    assert mixed.equal(images)
    assert targets.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_mixup_blends_the_batch_with_its_reverse() -> None:
    torch.manual_seed(3)
    images = torch.randn(4, 3, 8, 8)
    mixed, targets = mix(images, TARGETS, Recipe(mixup_alpha=0.4, cutmix_alpha=0.0))
    share = float(targets[0, 0])
    assert 0.01 < share < 0.99
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0))
    one_hot = torch.eye(3)[LABELS]
    torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.flip(0))


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_targets_are_the_shares_of_pixels(seed: int) -> None:
    torch.manual_seed(seed)
    images = one_color_each()
    mixed, targets = mix(images, TARGETS, Recipe(mixup_alpha=0.0, cutmix_alpha=1.0))
    own = (mixed[0, 0] == 0).float().mean()
    assert set(mixed[0].unique().tolist()) <= {0.0, 3.0}
    torch.testing.assert_close(targets[0], torch.tensor([own, 1 - own, 0]))
    rows = (mixed[0, 0] == 3).any(1).nonzero()
    columns = (mixed[0, 0] == 3).any(0).nonzero()
    if len(rows):
        area = (int(rows[-1] - rows[0]) + 1) * (int(columns[-1] - columns[0]) + 1)
        assert area == int((mixed[0, 0] == 3).sum())  # one rectangle
    assert images.equal(one_color_each())


def test_where_both_are_on_a_fair_coin_chooses() -> None:
    torch.manual_seed(0)
    recipe = Recipe(mixup_alpha=1.0, cutmix_alpha=1.0)
    blended = 0
    for _ in range(200):
        mixed, _ = mix(one_color_each(4), TARGETS, recipe)
        blended += not set(mixed[0].unique().tolist()) <= {0.0, 3.0}
    assert 70 < blended < 130


def test_the_loss_is_smoothed_cross_entropy_in_float32() -> None:
    logits = torch.randn(4, 3, dtype=torch.bfloat16)
    targets = torch.rand(4, 3).softmax(1)
    smoothed = 0.8 * targets + 0.2 / 3
    expected = -(smoothed * logits.float().log_softmax(1)).sum(1).mean()
    loss = smoothed_loss(logits, targets, Recipe(label_smoothing=0.2))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    weights = torch.tensor([0.5, 1.0, 3.0])
    expected = -(weights * smoothed * logits.float().log_softmax(1)).sum(1).mean()
    weighted = smoothed_loss(logits, targets, Recipe(label_smoothing=0.2), weights)
    torch.testing.assert_close(weighted, expected)
