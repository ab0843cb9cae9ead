"""The report on how close the outputs of two networks are."""

import math

import pytest
import torch
from torch import Tensor, nn

from splitattn.errors import InputError
from splitattn.nn.parity import parity


class Means(nn.Module):
    """A network whose logits are the means of the channels, plus one in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.conv.weight.data = torch.eye(3)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3)) + float(self.training)


def test_a_network_equals_itself() -> None:
    report = parity(Means(), Means(), batch_sizes=(1, 3), image_sizes=(8, 5))
    assert [(row.batch_size, row.image_size) for row in report.differences] == [
        *((1, 8), (3, 8)),
        *((1, 5), (3, 5)),
    ]
    assert report.relative == 0
    assert report.same_labels == 100


def test_a_difference_is_reported_absolute_and_relative() -> None:
    model = Means()
    report = parity(model, lambda x: 1.5 * model(x), batch_sizes=(2,), image_sizes=(4,))
    assert report.relative == pytest.approx(0.5)
    assert report.same_labels == 100
    (row,) = report.differences
    assert row.absolute == pytest.approx(0.5 * row.absolute / row.relative)


def test_other_labels_are_counted() -> None:
    model = Means()
    report = parity(model, lambda x: -model(x), batch_sizes=(4, 1), image_sizes=(4,))
    assert report.same_labels == 0


def test_networks_keep_their_modes() -> None:
    model = Means()
    model.conv.eval()
    parity(model, model, batch_sizes=(1,), image_sizes=(4,))
    assert model.training
    assert not model.conv.training


def test_the_report_is_a_table() -> None:
    lines = str(parity(Means(), Means(), batch_sizes=(1, 2), image_sizes=(8,))).splitlines()
    assert lines[0].split() == ["batch", "pixels", "absolute", "relative", "same", "labels"]
    assert [line.split()[:2] for line in lines[1:]] == [["1", "8"], ["2", "8"]]


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1, got \\[0\\]"):
        parity(Means(), Means(), batch_sizes=(0,))
    with pytest.raises(InputError, match="one shape, got \\(1, 3\\) and \\(1, 2\\)"):
        parity(Means(), lambda x: x.mean((2, 3))[:, :2], batch_sizes=(1,), image_sizes=(4,))


def test_nan_is_not_equal() -> None:
    model = Means()

    def broken(x: Tensor) -> Tensor:
        return model(x) if len(x) == 1 else model(x) * float("nan")

    assert math.isnan(parity(model, broken, batch_sizes=(1, 2, 1), image_sizes=(4,)).relative)


def test_outputs_of_zero_are_compared_too() -> None:
    model = Means()
    model.conv.weight.data.zero_()
    sizes = {"batch_sizes": (1,), "image_sizes": (4,)}
    assert parity(model, model, **sizes).relative == 0
    assert parity(model, lambda x: model(x) + 1, **sizes).relative == math.inf
