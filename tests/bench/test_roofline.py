"""The roofline: the least time that a machine needs for a network."""

import pytest
from torch import nn

from splitattn.architectures import ARCHITECTURES
from splitattn.bench.peaks import Peaks
from splitattn.bench.roofline import Cost, cost, roofline_seconds
from splitattn.nn.fusion import fuse
from splitattn.nn.resnest import ResNeSt


def test_a_convolution_and_a_dense_layer_are_counted() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10, bias=False),
    )
    assert cost(network, 4) == Cost(
        multiply_adds=2 * 2 * 8 * 27 + 80,
        activations=3 * 16 + 8 * 4 + 8 + 10,
        weights=8 * 27 + 80,
    )


def test_counting_agrees_with_the_published_cost() -> None:
    model = ResNeSt(ARCHITECTURES["resnest50"])
    assert cost(model, 224).multiply_adds == pytest.approx(5.40e9, rel=0.01)
    assert model.training


def test_the_fused_network_costs_no_more() -> None:
    model = ResNeSt(ARCHITECTURES["resnest14"]).eval()
    plain = cost(model, 64)
    for form in ("branches", "grouped"):
        rewritten = cost(fuse(model, form=form), 64)
        assert rewritten.multiply_adds <= plain.multiply_adds
        assert rewritten.weights <= plain.weights


@pytest.mark.parametrize(
    ("batch_size", "precision", "seconds"),
    [(1, "fp32", 0.5), (4, "fp32", 2.0), (1, "int8", 0.125), (1, "bf16", 4.0)],
)
def test_the_longer_of_arithmetic_and_memory_counts(
    batch_size: int, precision: str, seconds: float
) -> None:
    peaks = Peaks(multiply_adds={"fp32": 200, "int8": 800, "bf16": 25}, copied_bytes=1e6)
    one = Cost(multiply_adds=100, activations=10, weights=10)
    assert roofline_seconds(one, peaks, precision=precision, batch_size=batch_size) == seconds


def test_bytes_count_where_they_take_longer() -> None:
    peaks = Peaks(multiply_adds={"fp32": 1e9, "int8": 1e9}, copied_bytes=100)
    one = Cost(multiply_adds=1, activations=10, weights=5)
    assert roofline_seconds(one, peaks, precision="fp32", batch_size=3) == 4 * 35 / 100
    assert roofline_seconds(one, peaks, precision="int8", batch_size=3) == 35 / 100
