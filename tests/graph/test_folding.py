"""The folded network, computed in NumPy, equals PyTorch's network; both are in float64."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from splitattn.architectures import ARCHITECTURES
from splitattn.errors import InputError
from splitattn.graph.folding import FoldedNetwork, fold
from splitattn.nn.backbone import Backbone
from splitattn.nn.resnest import ResNeSt
from tests.nn.networks import small

from . import evaluator
from .networks import (
    SETTINGS,
    arrays_of,
    batch_for,
    narrow,
    outputs_of,
    relative_difference,
    trained,
)

both_forms = pytest.mark.parametrize("form", ["branches", "grouped"])


def folded(model: ResNeSt | Backbone, **options: Any) -> FoldedNetwork:
    return fold(
        model.architecture,
        arrays_of(model),
        output_stride=model.output_stride,
        dilation=model.dilation,
        dtype=np.float64,
        **options,
    )


def assert_equal(model: ResNeSt, form: str, size: tuple[int, int] = (32, 45)) -> None:
    batch = batch_for(model, 2, *size)
    (expected,) = outputs_of(model, batch)
    got = evaluator.run(folded(model, form=form), batch.astype(np.float64))
    assert relative_difference(got, expected) < 1e-10


@both_forms
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_variant_keeps_its_outputs(name: str, form: str) -> None:
    assert_equal(trained(narrow(name)), form)


@both_forms
@pytest.mark.parametrize("avd_first", [False, True], ids=["avd last", "avd first"])
@pytest.mark.parametrize("cardinality", [1, 2, 4])
@pytest.mark.parametrize("radix", [0, 1, 2, 3, 4])
def test_every_radix_and_cardinality_keeps_its_outputs(
    radix: int, cardinality: int, avd_first: bool, form: str
) -> None:
    architecture = replace(small(radix, cardinality), avd_first=avd_first, bottleneck_width=96)
    assert_equal(trained(architecture), form)


@both_forms
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_of_the_network_keeps_its_outputs(setting: str, form: str) -> None:
    architecture, arguments = SETTINGS[setting]
    model = trained(architecture, **arguments)
    assert_equal(model, form)
    network = folded(model)
    assert (network.in_chans, network.num_classes) == (
        arguments.get("in_chans", 3),
        arguments.get("num_classes", 10),
    )


def test_a_backbone_keeps_its_feature_maps() -> None:
    backbone = Backbone(trained(small(layers=(1, 2, 1, 1))), out_indices=(0, 1, 2, 3)).eval()
    batch = batch_for(backbone, 2, 33, 48)
    network = folded(backbone, stages=3)
    got = evaluator.feature_maps(network, batch.astype(np.float64))
    assert network.channels == backbone.channels
    for ours, theirs in zip(got, outputs_of(backbone, batch), strict=True):
        assert relative_difference(ours, theirs) < 1e-10


def test_weights_are_rounded_once() -> None:
    model = trained(small())
    exact, rounded = (
        fold(small(), arrays_of(model), dtype=dtype) for dtype in (np.float64, np.float32)
    )
    for ours, theirs in zip(exact.stem, rounded.stem, strict=True):
        assert np.array_equal(ours.weight.astype(np.float32), theirs.weight)
        assert np.array_equal(ours.bias.astype(np.float32), theirs.bias)


def test_the_arrays_stay_as_they_are() -> None:
    arrays = arrays_of(trained(small(1)))
    before = {key: value.copy() for key, value in arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False
    fold(small(1), arrays)
    assert all(np.array_equal(before[key], arrays[key]) for key in before)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"form": "round"}, "form must be branches or grouped, got 'round'"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ({"dilation": "mine"}, "dilation must be official or timm, got 'mine'"),
    ],
)
def test_networks_that_cannot_be_folded_are_refused(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        fold(small(), arrays_of(trained(small())), **options)


def test_folding_needs_no_torch() -> None:
    code = "import sys, splitattn.graph.onnx_model; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
