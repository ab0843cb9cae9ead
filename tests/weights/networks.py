"""A small network that has a name, as only networks with one have weights."""

from collections.abc import Mapping
from functools import cache

import pytest
import torch
from torch import Tensor

from splitattn.architectures import ARCHITECTURES
from splitattn.nn.resnest import ResNeSt
from splitattn.weights.layouts import Spelling
from tests.nn.networks import randomize_norms, small

SMALL = "resnest_small"
Shapes = dict[str, tuple[int, ...]]


def add_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, SMALL, small(layers=(1, 2, 1, 1)))


@cache
def small_network() -> ResNeSt:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResNeSt(small(layers=(1, 2, 1, 1)), num_classes=6).eval()
        randomize_norms(network)
    return network


@cache
def shapes_of(model: str) -> Shapes:
    with torch.device("meta"):
        network = ResNeSt(ARCHITECTURES[model])
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def spelt(state: Mapping[str, Tensor], spelling: Spelling) -> dict[str, Tensor]:
    """The state dict as a file of that spelling has it, without what the layout has no name for."""
    return {own: value for key, value in state.items() if (own := spelling.own(key))}
