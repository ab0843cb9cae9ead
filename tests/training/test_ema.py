"""The EMA of weights and statistics, and its decay."""

import pytest
import torch

from splitattn.training.ema import EMA
from tests.training.runs import network


def test_the_ema_follows_weights_and_statistics_with_a_lower_decay_early_on() -> None:
    model = network()
    ema = EMA(model, 0.5)
    found = []
    for value in (1.0, 2.0, 4.0):
        torch.nn.init.constant_(model.fc.weight, value)
        torch.nn.init.constant_(model.bn1.running_mean, value)
        ema.update(model)
        weight, mean = ema.module.fc.weight[0, 0], ema.module.bn1.running_mean[0]
        assert weight == mean
        found.append(float(weight))
    first_decay, second_decay = 2 / 11, 3 / 12  # both are still below 0.5
    second = first_decay + (1 - first_decay) * 2
    assert found == pytest.approx([1.0, second, second_decay * second + (1 - second_decay) * 4])
    for _ in range(20):
        ema.update(model)
    before = float(ema.module.fc.weight[0, 0])
    torch.nn.init.constant_(model.fc.weight, 0.0)
    ema.update(model)
    assert float(ema.module.fc.weight[0, 0]) == pytest.approx(0.5 * before)


def test_batch_counters_are_copied() -> None:
    model = network()
    ema = EMA(model, 0.9)
    ema.update(model)
    model.bn1.num_batches_tracked.fill_(7)
    ema.update(model)
    assert int(ema.module.bn1.num_batches_tracked) == 7


def test_the_ema_needs_no_gradients_and_does_not_change_the_network() -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ema = EMA(model, 0.9)
    ema.update(model)
    assert not any(weight.requires_grad for weight in ema.module.parameters())
    assert all(weight.requires_grad for weight in model.parameters())
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
