"""The stem and the stages are found in any network that contains them."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from splitattn.create import create_backbone
from splitattn.errors import InputError
from splitattn.training.optimizer import make_optimizer, set_learning_rate
from splitattn.training.recipes import Recipe
from splitattn.training.stages import depths, freeze_stages
from tests.training.runs import ARCHITECTURE, network


class Detector(nn.Module):
    """A detector with torchvision's keys: `backbone.body.layer1`, `backbone.fpn`, `head`."""

    def __init__(self) -> None:
        super().__init__()
        backbone = create_backbone(ARCHITECTURE)
        layers = {f"layer{i}": str(i) for i in (1, 2, 3, 4)}
        self.backbone = BackboneWithFPN(backbone, layers, list(backbone.channels), 8)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Any:
        maps: OrderedDict[str, Tensor] = self.backbone(x)
        return [self.head(one) for one in maps.values()]


class Segmenter(nn.Module):
    """A network whose head is registered before its backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(512, 1, 1)
        self.encoder = create_backbone(ARCHITECTURE)


def depth_by_name(model: nn.Module) -> dict[str, int]:
    found = depths(model)
    return {name: found.get(id(weight), 5) for name, weight in model.named_parameters()}


@pytest.mark.parametrize(
    ("model", "prefix", "heads"),
    [
        (network(), "", ["fc"]),
        (Detector(), "backbone.body.", ["backbone.fpn", "head"]),
        (Segmenter(), "encoder.", ["head"]),
    ],
    ids=["classifier", "detector", "segmenter"],
)
def test_depth_counts_from_the_stem_to_the_head(
    model: nn.Module, prefix: str, heads: list[str]
) -> None:
    parts = {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4}
    expected = {f"{prefix}{part}.": depth for part, depth in parts.items()}
    expected |= {f"{head}.": 5 for head in heads}
    found = depth_by_name(model)
    for name, depth in found.items():
        [known] = [value for start, value in expected.items() if name.startswith(start)]
        assert depth == known, name
    assert set(found.values()) == {0, 1, 2, 3, 4, 5}


def test_a_network_of_other_layers_is_all_head() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 2))
    assert set(depth_by_name(model).values()) == {5}
    freeze_stages(model, 0)
    with pytest.raises(InputError, match="frozen_stages must be 0 for a network without"):
        freeze_stages(model, 1)


def test_a_detector_learns_slower_near_the_stem_and_not_where_it_is_frozen() -> None:
    model = Detector()
    freeze_stages(model, 2)
    model.train()
    optimizer = make_optimizer(model, Recipe(layer_decay=0.5))
    set_learning_rate(optimizer, 0.8)
    rates = {id(w): group["lr"] for group in optimizer.param_groups for w in group["params"]}
    by_name = {name: rates.get(id(weight)) for name, weight in model.named_parameters()}
    assert by_name["head.weight"] == by_name["backbone.fpn.inner_blocks.0.0.weight"] == 0.8
    assert by_name["backbone.body.layer4.0.conv3.weight"] == 0.4
    assert by_name["backbone.body.layer2.0.bn1.weight"] == 0.1
    frozen = ("backbone.body.conv1.", "backbone.body.bn1.", "backbone.body.layer1.")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sum(one.square().sum() for one in model(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    for name, rate in by_name.items():
        assert (rate is None) == name.startswith(frozen), name
    changed = {key for key, value in model.state_dict().items() if not value.equal(before[key])}
    assert not [key for key in changed if key.startswith(frozen)]
    assert "backbone.body.layer2.0.bn1.running_mean" in changed
