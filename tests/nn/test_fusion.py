"""A fused network equals the network from which it is made."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from splitattn.architectures import ARCHITECTURES, Architecture
from splitattn.errors import InputError
from splitattn.nn.backbone import Backbone
from splitattn.nn.fusion import fuse
from splitattn.nn.parity import parity
from splitattn.nn.resnest import ResNeSt

from .networks import images, randomize_norms, small

both_forms = pytest.mark.parametrize("form", ["branches", "grouped"])


def trained(architecture: Architecture, **settings: Any) -> ResNeSt:
    """A network in evaluation mode with random batch norms, as after training."""
    model = ResNeSt(architecture, **{"num_classes": 10, **settings}).eval()
    randomize_norms(model)
    return model


def assert_same_function(model: ResNeSt, fused: nn.Module) -> None:
    report = parity(model, fused, batch_sizes=(2,), image_sizes=(64, 43))
    assert report.relative < 1e-5, report


@both_forms
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_variant_keeps_its_outputs(name: str, form: str) -> None:
    row = ARCHITECTURES[name]
    # At most two blocks a stage have every kind of block; the slow test has all blocks.
    model = trained(replace(row, layers=tuple(min(depth, 2) for depth in row.layers)))
    fused = fuse(model, form=form)
    assert_same_function(model, fused)
    assert parameters(fused) <= parameters(model)


@pytest.mark.slow
@both_forms
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_whole_network_keeps_its_outputs(name: str, form: str) -> None:
    model = trained(ARCHITECTURES[name])
    fused = fuse(model, form=form)
    assert_same_function(model, fused)
    assert parameters(fused) <= parameters(model)


@both_forms
@pytest.mark.parametrize("avd_first", [False, True], ids=["avd last", "avd first"])
@pytest.mark.parametrize("cardinality", [1, 2, 4])
@pytest.mark.parametrize("radix", [0, 1, 2, 3, 4])
def test_outputs_differ_by_rounding_only(
    radix: int, cardinality: int, avd_first: bool, form: str
) -> None:
    architecture = replace(small(radix, cardinality), avd_first=avd_first, bottleneck_width=96)
    model = trained(architecture).double()
    report = parity(model, fuse(model, form=form), batch_sizes=(2,), image_sizes=(40,))
    assert report.relative < 1e-12, report


@both_forms
@pytest.mark.parametrize(
    "switch",
    [{"deep_stem": False}, {"avg_down": False}, {"avd": False}, {"radix": 0, "cardinality": 4}],
    ids=str,
)
def test_networks_with_an_idea_switched_off_keep_their_outputs(
    switch: dict[str, int], form: str
) -> None:
    model = trained(replace(small(), **switch))
    assert_same_function(model, fuse(model, form=form))


@both_forms
@pytest.mark.parametrize(
    "settings",
    [
        {"output_stride": 8},
        {"output_stride": 16},
        {"output_stride": 8, "dilation": "timm"},
        {"in_chans": 1},
        {"in_chans": 6},
        {"num_classes": 0},
        {"drop_block": 0.1},  # between attention and average pooling
    ],
    ids=str,
)
def test_every_setting_of_the_network_is_kept(settings: dict[str, Any], form: str) -> None:
    model = trained(small(), **settings)
    fused = fuse(model, form=form)
    assert_same_function(model, fused)
    assert fused.num_classes == model.num_classes


@both_forms
@pytest.mark.parametrize("indices", [(1, 2, 3, 4), (0, 2), (3, 1), (0,)], ids=str)
@torch.inference_mode()
def test_a_backbone_keeps_its_feature_maps(indices: tuple[int, ...], form: str) -> None:
    model = trained(small(2, 2, layers=(1, 2, 1, 1)), output_stride=16, dilation="timm")
    backbone = Backbone(model.double(), out_indices=indices).eval()
    fused = fuse(backbone, form=form)
    assert (fused.out_indices, fused.channels, fused.strides) == (
        backbone.out_indices,
        backbone.channels,
        backbone.strides,
    )
    x = images(2, 43, 64).double()
    for ours, theirs in zip(fused(x), backbone(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_norms_may_have_different_epsilons() -> None:
    model = trained(small()).double()
    for i, module in enumerate(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        module.eps = (1e-3, 1e-5, 0.1)[i % 3]
    report = parity(model, fuse(model), batch_sizes=(2,), image_sizes=(40,))
    assert report.relative < 1e-12, report


def test_another_classifier_is_copied() -> None:
    model = trained(small())
    model.fc = nn.Sequential(nn.Linear(512, 8), nn.Tanh(), nn.Linear(8, 3))
    fused = fuse(model)
    assert_same_function(model, fused)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in fused.parameters()}


@pytest.mark.parametrize("radix", [2, 4])
@pytest.mark.parametrize("cardinality", [1, 2])
def test_branches_are_free_of_groups_splits_and_softmax(radix: int, cardinality: int) -> None:
    model = trained(small(radix, cardinality))
    batch = (images(2),)
    plain = operations(model, batch)
    assert {"softmax", "chunk", "batch_norm", "grouped convolution"} <= plain
    assert not operations(fuse(model, form="branches"), batch) & {
        *("batch_norm", "chunk", "grouped convolution", "permute", "reshape", "slice", "softmax"),
        *("split", "split_with_sizes", "transpose", "unflatten", "view"),
    }


def operations(model: nn.Module, batch: tuple[torch.Tensor]) -> set[str]:
    """Names of all operations that the exported network has."""
    program = torch.export.export(model, batch)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    names = {node.target.__name__.partition(".")[0] for node in calls}
    if any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in model.modules()):
        names.add("grouped convolution")
    return names


def test_a_network_that_trains_is_fused_as_it_evaluates_and_stays_as_it_is() -> None:
    model = trained(small()).train()
    before = deepcopy(model.state_dict())
    fused = fuse(model)
    assert model.training
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    for value in fused.state_dict().values():
        value.zero_()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
def test_extremes_of_the_attention_stay_finite() -> None:
    model = trained(small(radix=4))
    for name, module in model.named_modules():
        if name.endswith("fc2"):
            module.bias.copy_(torch.linspace(-300, 300, module.bias.numel()))
    assert_same_function(model, fuse(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_precision_is_kept(dtype: torch.dtype) -> None:
    fused = fuse(trained(small()).to(dtype))
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: fuse(fuse(trained(small()))), "already fused"),
        (lambda: fuse(fuse(Backbone(trained(small())))), "already fused"),
        (lambda: fuse(nn.Linear(1, 1)), "needs a ResNeSt or a Backbone, got Linear"),
        (lambda: fuse(trained(small()), form="round"), "branches or grouped, got 'round'"),
    ],
)
def test_networks_that_cannot_be_fused_are_refused(
    call: Callable[[], object], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        call()


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
