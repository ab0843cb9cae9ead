"""The table of `bench`."""

from dataclasses import replace

import pytest

from splitattn.bench.measure import Row
from splitattn.bench.peaks import Peaks
from splitattn.cli import bench

ROW = Row(
    network="resnest26_tiny",
    form="fused",
    engine="onnx",
    precision="fp32",
    batch_size=1,
    milliseconds=(4.0, 5.0, 6.0),
    roofline_milliseconds=2.5,
    peak_memory=None,
    difference=1e-6,
    same_labels=100.0,
)


@pytest.mark.parametrize("width", [80, 200])
def test_the_memory_is_named_only_where_it_was_measured(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a narrow window, the line below the table names the columns left out."""
    monkeypatch.setenv("COLUMNS", str(width))
    peaks = Peaks(multiply_adds={"fp32": 1e11}, copied_bytes=1e10)

    bench._print_table(peaks, [ROW])
    unmeasured = capsys.readouterr().out
    bench._print_table(peaks, [ROW, replace(ROW, peak_memory=64_000_000)])
    measured = capsys.readouterr().out

    assert "MB" not in unmeasured
    assert "MB" in measured
