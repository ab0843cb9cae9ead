"""A small network in the table of architectures, since only named networks have weights."""

from collections.abc import Mapping
from functools import cache

import pytest
import torch
from torch import Tensor

from splitattn.architectures import ARCHITECTURES
from splitattn.nn.resnest import ResNeSt
from splitattn.weights.layouts import KeyMapping
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
    return ARCHITECTURES[model].shapes()


def renamed(state: Mapping[str, Tensor], key_mapping: KeyMapping) -> dict[str, Tensor]:
    """The state dict with the keys of a layout; tensors without a key in it are left out."""
    return {own: value for key, value in state.items() if (own := key_mapping.own(key))}
