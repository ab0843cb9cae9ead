"""A checkpoint with wrong types is refused in one line, before a step is taken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from splitattn.errors import WeightsError
from splitattn.training.resume import State, Sums, restore, save

IDENTITY = {"recipe": {"epochs": 3}, "classes": ["a", "b"]}


def parts() -> dict[str, Any]:
    network = nn.Linear(2, 1)
    return {"model": network, "optimizer": torch.optim.AdamW(network.parameters(), lr=0.5)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    trained = parts()
    trained["model"](torch.ones(1, 2)).sum().backward()
    trained["optimizer"].step()
    line = {"kind": "epoch", "top1": 50.0}
    state = State(step=3, history=[line], epoch=Sums(figures={"loss": 1.5}, examples=2), best=1.0)
    states = {name: part.state_dict() for name, part in trained.items()}
    save(tmp_path / "last.pt", IDENTITY, state, states)
    return tmp_path / "last.pt"


def test_a_valid_checkpoint_is_restored_completely(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    again = parts()
    state, raised = restore(path, IDENTITY, again)
    assert raised is None
    assert (state.step, state.best, state.epoch.figures) == (3, 1.0, {"loss": 1.5})
    torch.testing.assert_close(again["model"].state_dict(), content["model"])
    torch.testing.assert_close(again["optimizer"].state_dict(), content["optimizer"])


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["state"].update(step="3"),
        lambda content: content["state"].update(step=-1),
        lambda content: content["state"].update(best=None),
        lambda content: content["state"].update(history=[3]),
        lambda content: content["state"].update(history={"kind": "epoch"}),
        lambda content: content["epoch"].update(figures={"loss": "low"}),
        lambda content: content["epoch"].update(examples=[2]),
        lambda content: content.update(recent=[]),
        lambda content: content.update(identity=[]),
        lambda content: content.update(model=3),
        lambda content: content["optimizer"]["param_groups"][0].update(lr="fast"),
        lambda content: content["optimizer"]["param_groups"][0].update(betas=0.9),
        lambda content: content["optimizer"]["state"][0].update(exp_avg=torch.ones(5)),
        lambda content: content["optimizer"]["state"].update({0: 7}),
    ],
)
def test_wrong_types_are_reported_in_one_line(
    path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(WeightsError, match="is not a checkpoint of this training") as error:
        restore(path, IDENTITY, parts())
    assert "\n" not in str(error.value)


def test_deeply_shared_values_are_refused(path: Path) -> None:
    value: Any = (1,)
    for _ in range(60):
        value = (value, value)
    torch.save(torch.load(path, weights_only=True) | {"identity": {"recipe": value}}, path)
    with pytest.raises(WeightsError, match="unfolds to more than its own size"):
        restore(path, IDENTITY, parts())
