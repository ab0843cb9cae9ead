"""Differences of outputs, and the report of them."""

import math

import numpy as np
import pytest

from splitattn.differences import Difference, Parity, difference
from splitattn.errors import InputError


def test_a_difference_is_the_largest_one() -> None:
    expected = np.array([[1.0, 4.0], [2.0, -8.0]])
    outputs = np.array([[1.0, 3.5], [-9.0, -8.0]], np.float32)
    found = difference(expected, outputs, image_size=32)
    assert found == Difference(
        batch_size=2, image_size=32, absolute=11.0, relative=11 / 8, same_labels=50
    )


def test_any_difference_from_zeros_is_infinite() -> None:
    zeros = np.zeros((1, 2))
    assert difference(zeros, zeros, image_size=8).relative == 0
    assert difference(zeros, zeros + 1, image_size=8).relative == math.inf


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"outputs of one shape, got \(1, 2\) and \(1, 3\)"):
        difference(np.zeros((1, 2)), np.zeros((1, 3)), image_size=8)


def row(absolute: float, batch_size: int, same_labels: float) -> Difference:
    return Difference(
        batch_size=batch_size,
        image_size=8,
        absolute=absolute,
        relative=absolute,
        same_labels=same_labels,
    )


def test_a_report_has_the_largest_figures_and_the_share_of_all_images() -> None:
    report = Parity(differences=(row(0.1, 1, 100), row(0.3, 3, 100 / 3)))
    assert (report.absolute, report.relative) == (0.3, 0.3)
    assert report.same_labels == pytest.approx(50)
    assert len(str(report).splitlines()) == 3


@pytest.mark.parametrize("order", [(0.1, math.nan), (math.nan, 0.1)])
def test_nan_is_never_lost(order: tuple[float, float]) -> None:
    assert math.isnan(Parity(differences=tuple(row(x, 1, 1.0) for x in order)).absolute)
