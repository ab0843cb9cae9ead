"""Learning rates, schedules, weight decay and frozen stages."""

import numpy as np
import pytest
import torch

from splitattn.training.optimizer import (
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from splitattn.training.recipes import Recipe
from tests.training.runs import RECIPE, network


def test_the_learning_rate_warms_up_and_follows_a_cosine_to_zero() -> None:
    recipe = Recipe(epochs=10, warmup_epochs=2.0, batch_size=512, learning_rate=0.1)
    rates = [learning_rate(recipe, step, 100) for step in range(1000)]
    assert rates[0] == pytest.approx(0.2 / 201)
    assert rates[99] == pytest.approx(0.1 * 200 / 201)
    assert rates[200] == pytest.approx(0.2)
    assert max(rates) == rates[200]
    assert rates[600] == pytest.approx(0.1)
    assert 0 < rates[999] < 1e-5
    assert np.all(np.diff(rates[:200]) > 0)
    assert np.all(np.diff(rates[200:]) < 0)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("cosine", {250: 0.8536, 500: 0.5, 750: 0.1464}),
        ("step", {0: 1, 599: 1, 600: 0.1, 799: 0.1, 800: 0.01, 899: 0.01}),
        ("poly", {0: 1, 450: 0.5**0.9, 810: 0.1**0.9}),
    ],
)
def test_schedules_fall_from_the_peak(schedule: str, shares: dict[int, float]) -> None:
    steps = 1000 if schedule == "cosine" else 900
    recipe = Recipe(epochs=10, warmup_epochs=0.0, batch_size=256, schedule=schedule)  # type: ignore[arg-type]
    for step, share in shares.items():
        assert learning_rate(recipe, step, steps // 10) == pytest.approx(0.1 * share, rel=1e-3)


def test_norms_and_biases_are_not_decayed() -> None:
    model = network()
    decayed, others = make_optimizer(model, RECIPE).param_groups
    assert decayed["weight_decay"] == RECIPE.weight_decay
    assert others["weight_decay"] == 0
    assert decayed["nesterov"]
    names = {id(weight): name for name, weight in model.named_parameters()}
    # The official code selects by name and decays these six norms.
    norms = ["conv1.1", "conv1.4", *(f"layer{stage}.0.downsample.2" for stage in (1, 2, 3, 4))]
    undecayed = {names[id(weight)] for weight in others["params"]}
    assert {f"{norm}.weight" for norm in norms} <= undecayed
    shapes = {weight.ndim for weight in decayed["params"]}
    assert shapes == {2, 4}
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    assert all(weight.ndim == 1 for weight in others["params"])


def test_layer_decay_lowers_the_rate_of_layers_far_from_the_classifier() -> None:
    model = network()
    optimizer = make_optimizer(model, Recipe(layer_decay=0.5))
    set_learning_rate(optimizer, 0.8)
    rates = {id(w): group["lr"] for group in optimizer.param_groups for w in group["params"]}
    by_name = {name: rates[id(weight)] for name, weight in model.named_parameters()}
    assert by_name["fc.weight"] == by_name["fc.bias"] == 0.8
    assert by_name["layer4.0.conv3.weight"] == 0.4
    assert by_name["layer1.0.bn1.weight"] == 0.05
    assert by_name["conv1.0.weight"] == by_name["bn1.weight"] == 0.025
    slow = make_optimizer(model, Recipe(layer_decay=0.5, backbone_rate=0.1))
    scales = {id(w): group["scale"] for group in slow.param_groups for w in group["params"]}
    assert scales[id(model.fc.weight)] == 1
    assert scales[id(model.layer4[0].conv3.weight)] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("stages", "first_that_learns"), [(0, "conv1.0.weight"), (3, "layer3.0.conv1.weight")]
)
def test_frozen_stages_keep_their_weights_and_statistics(
    stages: int, first_that_learns: str
) -> None:
    recipe = Recipe(frozen_stages=stages)
    model = network()
    model.freeze_stages(stages)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = make_optimizer(model, recipe)
    set_learning_rate(optimizer, 0.1)
    torch.nn.init.ones_(model.layer4[0].bn3.weight)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    changed = [key for key, value in model.state_dict().items() if not value.equal(before[key])]
    assert changed[0] == first_that_learns
    assert model.drop.training
    assert model.layer1[0].bn1.training == (stages == 0)
    prefixes = ("conv1", "bn1", "layer1", "layer2")
    assert any(key.startswith(prefixes) for key in changed) == (stages == 0)
