"""The peak rates of a machine."""

import time

import numpy as np
import pytest
import torch

from splitattn.bench import peaks
from splitattn.bench.peaks import measure_peaks


def test_a_machine_has_peaks() -> None:
    found = measure_peaks(torch.device("cpu"), side=64, copied_floats=1000)
    assert set(found.multiply_adds) == {"fp32", "int8"}
    assert min(*found.multiply_adds.values(), found.copied_bytes) > 0


def test_the_best_library_sets_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak is that of the fastest library: a slow one beside it does not lower the peak."""
    side = 64
    alone = measure_peaks(torch.device("cpu"), side=side, copied_floats=1000)
    monkeypatch.setattr(peaks, "_numpy_product", lambda _: lambda: time.sleep(0.01))
    beside = measure_peaks(torch.device("cpu"), side=side, copied_floats=1000)
    assert beside.multiply_adds["fp32"] > side**3 / 0.01
    monkeypatch.setattr(peaks, "_torch_products", lambda *_: {"fp32": [], "int8": []})
    monkeypatch.setattr(peaks, "_openvino_product", lambda *_: lambda: time.sleep(0.01))
    slow = measure_peaks(torch.device("cpu"), side=side, copied_floats=1000)
    assert slow.multiply_adds["fp32"] < side**3 / 0.01 < alone.multiply_adds["fp32"]


def test_a_product_in_eight_bits_is_a_product() -> None:
    exact, rounded = (peaks._openvino_product(64, precision)() for precision in ("fp32", "int8"))
    assert isinstance(exact, np.ndarray)
    assert isinstance(rounded, np.ndarray)
    assert exact.shape == rounded.shape == (1, 64, 1, 64)
    # int8 clips normally distributed numbers at 1.28, so the results are similar but not equal.
    alike = np.corrcoef(exact.ravel(), rounded.ravel())[0, 1]
    assert 0.8 < alike < 0.9999
