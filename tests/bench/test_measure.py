"""The ladder, measured with small networks and few rounds."""

import json
import re
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from splitattn import environment
from splitattn.bench import ladder
from splitattn.bench.ladder import rungs
from splitattn.bench.measure import Plan, Row, expected_seconds, measure
from splitattn.bench.peaks import Peaks
from splitattn.bench.spread import spread
from splitattn.cli import main
from splitattn.engines.table import EngineRow
from splitattn.errors import InputError
from splitattn.images.preprocess import normalize
from splitattn.preprocessing import Preprocessing


def plan(**changes: object) -> Plan:
    small = {
        "model": "resnest26_tiny",
        "size": 32,
        "rounds": 2,
        "ladder": True,
        "batch_sizes": (1, 2),
        "only": "branches, torch fp32",
        "memory": False,
    }
    return Plan(**(small | changes))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out other projects' networks, and use fixed peak rates instead of measuring them."""
    peaks = Peaks(multiply_adds={"fp32": 1e9, "int8": 1e9}, copied_bytes=1e9)
    monkeypatch.setattr("splitattn.bench.measure.measure_peaks", lambda _: peaks)
    monkeypatch.setattr(ladder, "_peers", lambda _: ())


def test_every_rung_has_a_row_for_each_batch_size() -> None:
    _, rows = measure(plan(only="torch fp32"))
    assert [(row.form, row.batch_size) for row in rows] == [
        *(("as trained", 1), ("branches", 1), ("grouped", 1)),
        *(("as trained", 2), ("branches", 2), ("grouped", 2)),
    ]
    for row in rows:
        assert len(row.milliseconds) == 2
        assert row.roofline_milliseconds > 0
        assert row.difference < 1e-5
        assert row.same_labels == 100


def test_the_expected_time_grows_with_rounds_lines_and_memory() -> None:
    short = expected_seconds(plan())
    assert expected_seconds(plan(only="torch fp32")) > short
    assert expected_seconds(plan(memory=True)) == pytest.approx(short + 12, abs=2)
    assert expected_seconds(plan(only="branches, openvino int8")) > short + 10
    assert expected_seconds(plan(rounds=100_000)) > 10 * short


def test_wrong_outputs_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def negated(subject: ladder.Subject, *_: object) -> Callable[[Tensor], Tensor]:
        network = subject.module()
        return lambda images: -network(images)

    wrong = ladder.Way(engine="torch", precision="fp32", load=negated)
    monkeypatch.setattr(ladder, "_ways", lambda _: (wrong,))
    _, (row,) = measure(plan(batch_sizes=(2,)))
    assert row.difference == pytest.approx(2, rel=0.1)
    assert row.same_labels == 0


@pytest.mark.parametrize(
    ("rung", "tolerance"),
    [
        ("branches, onnxruntime fp32", 1e-5),
        ("grouped, openvino fp32", 1e-5),
        ("branches, openvino int8", 0.5),
    ],
)
def test_converted_rungs_are_the_same_network(rung: str, tolerance: float) -> None:
    _, (row,) = measure(plan(only=rung, batch_sizes=(2,)))
    assert 0 < row.difference < tolerance


def test_engines_that_are_not_installed_are_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ladder, "installed", lambda *libraries: "openvino" not in libraries)
    engines = {rung.way.engine for rung in rungs("resnest14", "cpu", ladder=True)}
    assert engines == {"torch", "compile", "onnxruntime"}
    assert not caplog.records
    ladder.warn_of_left_out("resnest14", "cpu", ladder=True)
    assert [record.getMessage() for record in caplog.records] == [
        "left out: openvino fp32, which needs openvino",
        "left out: openvino int8, which needs openvino and nncf",
    ]


def test_forms_of_a_network_have_one_roofline() -> None:
    _, rows = measure(plan(only="torch fp32", batch_sizes=(1,)))
    assert len(rows) == 3
    assert len({row.roofline_milliseconds for row in rows}) == 1


def test_figures_are_those_of_the_turns() -> None:
    row = Row(
        network="n",
        form="f",
        engine="e",
        precision="fp32",
        batch_size=4,
        milliseconds=(50.0, 10.0, 20.0, 40.0, 30.0),
        roofline_milliseconds=3.0,
        peak_memory=None,
        difference=0.0,
        same_labels=100.0,
    )
    assert row.median == 30
    assert spread(row.milliseconds) == {"median": 30, "quartile1": 20, "quartile3": 40}
    assert row.images_per_second == pytest.approx(1000 * 4 / 30)


@pytest.mark.parametrize(
    ("stopped_at", "kept", "line"),
    [
        ("batch 1, round 4 of 5", [(1, 3)], "batch 1 has 3 of 5 rounds"),
        ("batch 2, first runs", [(1, 5)], "batch 2 is not measured"),
        ("batch 2, round 1 of 5", [(1, 5)], "batch 2 is not measured"),
        ("batch 2, round 3 of 5", [(1, 5), (2, 2)], "batch 2 has 2 of 5 rounds"),
    ],
)
def test_ctrl_c_keeps_what_is_measured(
    stopped_at: str, kept: list[tuple[int, int]], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(step: str) -> None:
        if step.startswith(stopped_at):
            raise KeyboardInterrupt

    _, rows = measure(plan(rounds=5, memory=True), on_step=stop)
    assert [(row.batch_size, len(row.milliseconds)) for row in rows] == kept
    assert f"stopped: {line}" in caplog.text


def test_ctrl_c_inside_a_round_drops_that_round_of_every_rung(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = iter(range(1000))

    def finished(_: torch.device) -> None:  # called twice in each turn
        if next(runs) == 2 * (2 * 3 + 1):  # in the third round, after one of three turns
            raise KeyboardInterrupt

    monkeypatch.setattr("splitattn.bench.measure._finished", finished)
    steps: list[str] = []
    three = plan(rounds=5, memory=True, only="torch fp32")
    _, rows = measure(three, on_step=steps.append)
    assert [(row.batch_size, len(row.milliseconds)) for row in rows] == [(1, 2)] * 3
    assert "stopped: batch 1 has 2 of 5 rounds" in caplog.text
    assert not [step for step in steps if "memory" in step]
    assert {row.peak_memory for row in rows} == {None}


def test_ctrl_c_before_two_rounds_ends_the_measurement() -> None:
    def stop(step: str) -> None:
        if step.startswith("batch 1, round 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(plan(rounds=5), on_step=stop)


@pytest.mark.parametrize("end", [KeyboardInterrupt, BrokenProcessPool])
def test_stopping_the_memory_measurement_keeps_the_times(
    end: type[BaseException], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = iter([7, end()])

    class FakePool:
        """A process pool that measures 7 bytes once and then ends with an exception."""

        def __init__(self, *_: object) -> None:
            pass

        def __enter__(self) -> "FakePool":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def submit(self, *_: object) -> Future[int]:
            done: Future[int] = Future()
            outcome = next(outcomes)
            if isinstance(outcome, int):
                done.set_result(outcome)
            else:
                done.set_exception(outcome)
            return done

    monkeypatch.setattr("splitattn.bench.measure.ProcessPoolExecutor", FakePool)
    _, rows = measure(plan(memory=True))
    assert [(row.batch_size, row.peak_memory) for row in rows] == [(1, 7), (2, None)]
    assert "stopped: peak memory is known of 1 of 2 rows" in caplog.text


def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    ballast = torch.ones(2**30, dtype=torch.uint8)
    _, (row,) = measure(plan(batch_sizes=(1,), memory=True))
    own = environment.peak_memory()
    if own is None:
        pytest.skip("this system does not report peak memory")
    assert row.peak_memory is not None
    assert 5e7 < row.peak_memory < own - 0.5 * ballast.nbytes


PEERS = ladder._peers


def test_peers_are_measured_with_our_weights() -> None:
    twin = next(subject for subject in PEERS("resnest14") if subject.name == "timm resnest14d")
    ours = rungs("resnest14d", "cpu", ladder=True)[0].subject  # timm's name of the same network
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(twin.module()(images), ours.module()(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("engine", ["onnxruntime int8", "openvino fp32"])
def test_a_peer_runs_in_other_engines(engine: str, tmp_path: Path) -> None:
    peer = ladder.Subject(name="peer", form="as trained", trained=SmallPeer)
    way = next(way for way in ladder._ways("cpu") if f"{way.engine} {way.precision}" == engine)
    preprocessing = Preprocessing(size=32, crop_fraction=1.0)
    setting = ladder.Setting(
        device=torch.device("cpu"),
        pixels=list(np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)),
        preprocessing=preprocessing,
        folder=tmp_path,
    )
    run = ladder.Rung(subject=peer, way=way).load(setting)
    images = torch.from_numpy(normalize(np.stack(setting.pixels), preprocessing))
    with torch.inference_mode():
        expected = SmallPeer()(images)
    tolerance = 0.3 if "int8" in engine else 1e-4
    error = (run(images) - expected).abs().max() / expected.abs().max()
    assert error < tolerance
    assert "int8" not in engine or error > 1e-4, "it was not quantized"


class SmallPeer(nn.Module):
    """Stands for a network of another project: its input is not called "images"."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().mean((2, 3))


def test_without_the_ladder_each_engine_has_one_line_per_precision() -> None:
    found = [(rung.way.engine, rung.way.precision) for rung in rungs("resnest14", "cpu")]
    assert found == [
        ("torch", "fp32"),
        ("openvino", "fp32"),
        ("openvino", "int8"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
    ]


def test_an_engine_with_a_file_format_has_lines_without_being_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = EngineRow(
        name="toy",
        module="tests.engines.toy",
        libraries=("onnxruntime",),
        format="toy",
        suffix=".toy",
        precisions={"fp32": ()},
    )
    monkeypatch.setattr(ladder, "ENGINES", (toy,))
    monkeypatch.setattr(ladder, "find_engine", lambda _: toy)
    _, (row,) = measure(plan(only="toy", ladder=False, batch_sizes=(2,)))
    assert (row.engine, row.precision) == ("toy", "fp32")
    assert row.difference < 1e-5


def test_the_verb_says_in_its_answer_that_it_was_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop_soon(asked: Plan, **more: Any) -> object:
        return measure(replace(asked, batch_sizes=(1,)), **more)

    monkeypatch.setattr("splitattn.bench.measure.measure", stop_soon)
    bench("--json", "--batch-size=2", status=130)
    assert json.loads(capsys.readouterr().out)["stopped"] is True


def test_the_verb_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    bench("--json")
    out, err = capsys.readouterr()
    announced = "measuring 1 line at batch 1, 2 rounds each: about 1 minute if nothing else runs"
    assert err.splitlines()[0] == announced
    report = json.loads(out)
    assert report["stopped"] is False
    (row,) = report["rows"]
    assert row["median"] == pytest.approx(sum(row["milliseconds"]) / 2)
    assert torch.__version__.startswith(report["environment"]["torch"])
    assert report["plan"]["model"] == "resnest26_tiny"


def test_the_verb_prints_a_line_for_each_rung(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bench()
    out = capsys.readouterr().out
    assert re.search(r"^splitattn resnest26_tiny +branches +torch +fp32 +1 ", out, re.MULTILINE)
    assert "billion operations" in out
    assert "with --json, or in a window of 140 columns" in out
    assert max(map(len, out.splitlines())) <= 80


def bench(*options: str, status: int = 0) -> None:
    numbers = ["--size=32", "--rounds=2", "--batch-size=1"]
    switches = ["--only=torch fp32"]
    with pytest.raises(SystemExit) as leaving:
        main(["bench", "--model=resnest26_tiny", *numbers, *switches, *options])
    assert (leaving.value.code or 0) == status


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batch_sizes": (0,)}, "batch sizes must be at least 1, got 0$"),
        ({"batch_sizes": ()}, "batch sizes"),
        ({"rounds": 1}, "rounds must be at least 2"),
        ({"size": 8}, "at least 32 pixels, got 8"),
        ({"device": "mps"}, "must be cpu or cuda, got 'mps'"),
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        plan(**changes)


def test_an_unknown_rung_is_refused() -> None:
    with pytest.raises(InputError, match="--only must be part of a label"):
        measure(plan(only="tensorflow"))
