"""A range test suggests a learning rate with which training goes well, for any task."""

import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from splitattn.errors import InputError
from splitattn.training.loop import train
from splitattn.training.range_test import RangeTest, range_test
from splitattn.training.task import Step
from tests.training.regression import RECIPE, Regression, Regressor, make_run


def test_the_suggestion_trains_better_than_much_lower_and_higher_rates(tmp_path: Path) -> None:
    steps: list[Step] = []
    output = tmp_path / "new"
    tested = range_test(Regressor(), Regression(), make_run(output), on_step=steps.append)

    def loss_with(factor: float) -> float:
        recipe = replace(RECIPE, learning_rate=factor * tested.suggestion, ema_decay=0.0)
        run = replace(make_run(tmp_path / f"{factor}"), recipe=recipe)
        losses: list[float] = []
        train(Regressor(), Regression(), run, on_step=lambda s: losses.append(s.figures["loss"]))
        return sum(losses[-3:])

    lower, suggested, higher = map(loss_with, (0.03, 1.0, 100.0))
    assert suggested < 0.5 * min(lower, higher)

    assert {path.name for path in output.iterdir()} == {"learning_rate.csv", "learning_rate.png"}
    assert len(steps) == len(tested.losses) <= 100
    with (output / "learning_rate.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == pytest.approx(tested.losses, rel=1e-5)
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates[0] == pytest.approx(RECIPE.learning_rate / 1000)
    ratios = [b / a for a, b in pairwise(rates)]
    assert ratios == pytest.approx([1e6 ** (1 / 99)] * len(ratios), rel=1e-4)
    with Image.open(output / "learning_rate.png") as plot:
        assert plot.size == (720, 440)
        colors = {color for _, color in plot.convert("RGB").getcolors(1 << 20) or ()}
    assert {(0x2F, 0x6F, 0xB3), (0xC2, 0x41, 0x0C)} <= colors  # the curve and the suggestion


def test_the_rate_of_a_step_is_the_recipes_for_its_batch(tmp_path: Path) -> None:
    network, rates = Regressor(), []
    recipe = replace(RECIPE, clip_norm=0.0, momentum=1e-9)
    run = replace(make_run(tmp_path), recipe=recipe)
    before = network.layers[0].weight.detach().clone()
    gradients = []

    def on_step(step: Step) -> None:
        if not rates:
            gradients.append(network.layers[0].weight.grad.clone())
            rates.append((step.learning_rate, network.layers[0].weight.detach().clone()))

    range_test(network, Regression(), run, on_step=on_step)
    [(rate, after)] = rates
    moved = (before - after) / (gradients[0] + recipe.weight_decay * before)
    assert moved.median().item() == pytest.approx(rate * recipe.batch_size / 256, rel=1e-3)


def test_no_rate_is_suggested_where_the_loss_only_rises() -> None:
    tested = RangeTest(learning_rates=(0.1, 1.0), losses=(1.0, 2.0), smoothed=(1.0, 1.5))
    with pytest.raises(InputError, match=r"lowers the loss, got none from 0\.1 to 1;"):
        _ = tested.suggestion
    falls = replace(tested, losses=(2.0, 1.0), smoothed=(2.0, 1.5))
    assert falls.suggestion == pytest.approx(0.1)
