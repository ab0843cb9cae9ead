"""The loop depends on no task: its guarantees hold for a regression by another network."""

import errno
import inspect
import json
import re
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import pytest
import torch
from safetensors.torch import load_file

from splitattn.errors import InputError
from splitattn.training import ema, learner, loop, optimizer, pending
from splitattn.training.loop import train
from splitattn.training.optimizer import learning_rate
from splitattn.training.recipe_files import load_recipe
from splitattn.training.recipes import Recipe
from splitattn.training.task import Epoch, Measurement, Step
from tests.training.regression import RECIPE, Regression, Regressor, make_run, train_together
from tests.training.runs import in_two_processes, log_of


@pytest.mark.parametrize("module", [loop, learner, optimizer, ema, pending])
def test_the_loop_names_no_task(module: ModuleType) -> None:
    notions = r"image|classif|top.?[15]|mixup|cutmix|detect|box"
    found = re.findall(notions, inspect.getsource(module))
    assert not found


def test_training_learns_and_keeps_the_epoch_of_the_lowest_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([3.0, 1.0, 2.0])
    losses: list[float] = []
    epochs: list[Epoch] = []
    counted: list[tuple[int, int]] = []
    measure = Regression.measure

    def measured(*arguments: Any) -> Measurement:
        assert measure(*arguments).figures["distance"] > 0
        return Measurement(figures={"distance": next(told)})

    monkeypatch.setattr(Regression, "measure", measured)
    network = Regressor()
    found = train(
        network,
        Regression(),
        make_run(tmp_path),
        on_step=lambda step: losses.append(step.figures["loss"]),
        on_epoch=epochs.append,
        on_measured=lambda *counts: counted.append(counts),
    )
    assert counted == [(1, 1)] * 3
    assert found.figures == {"distance": 2.0}
    assert losses[-1] < 0.7 * losses[0]
    best, last = (load_file(tmp_path / f"{name}.safetensors") for name in ("best", "model"))
    assert last.keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in last.items())
    assert any(not torch.equal(best[key], last[key]) for key in last)
    lines = log_of(tmp_path)
    assert [line["val_distance"] for line in lines if line["kind"] == "epoch"] == [3.0, 1.0, 2.0]
    assert {"loss", "loss_square", "loss_linear", "learning_rate"} <= lines[0].keys()
    raw = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert raw["vectors_per_second"] > 0
    assert [epoch.text.split("  ")[1:] for epoch in epochs][1] == ["distance 1.000"]
    assert "regression" in (tmp_path / "report.html").read_text()


def test_a_batch_that_cannot_be_divided_equally_becomes_smaller_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = replace(RECIPE, epochs=1, warmup_epochs=0.0, batch_size=11)
    train(Regressor(), Regression(), make_run(tmp_path / "uneven", recipe, batch_per_device=4))
    warned = "batch_size is 9 instead of 11, to be split into 3 equal parts"
    assert caplog.messages == [warned]
    caplog.clear()
    even = replace(recipe, batch_size=12)
    train(Regressor(), Regression(), make_run(tmp_path / "even", even, batch_per_device=4))
    assert not caplog.messages


def test_patience_ends_a_training_whose_figure_gets_no_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = iter([3.0, 1.0, 2.0, 1.0, 1.0, 0.5, 2.0, 2.0, 2.0])
    monkeypatch.setattr(
        Regression, "measure", lambda *_: Measurement(figures={"distance": next(told)})
    )
    run = make_run(tmp_path, replace(RECIPE, epochs=9, patience=2))
    epochs: list[Epoch] = []
    assert train(Regressor(), Regression(), run, on_epoch=epochs.append).figures["distance"] == 1.0
    assert len(epochs) == 4
    assert caplog.messages == ["ended after 4 of 9 epochs: no better distance since epoch 2"]
    # A training that has ended is only measured when it is resumed.
    caplog.clear()
    longer = replace(run, recipe=replace(run.recipe, epochs=12))
    train(Regressor(), Regression(), longer, resume=True, on_epoch=epochs.append)
    assert len(epochs) == 4
    assert caplog.messages == ["ended after 4 of 12 epochs: no better distance since epoch 2"]
    # With more patience it continues and waits again.
    caplog.clear()
    patient = replace(longer, recipe=replace(longer.recipe, patience=3))
    train(Regressor(), Regression(), patient, resume=True, on_epoch=epochs.append)
    assert len(epochs) == 8
    assert caplog.messages[-1] == "ended after 8 of 12 epochs: no better distance since epoch 5"
    monkeypatch.setattr(Regression, "best", None)
    with pytest.raises(InputError, match="patience must be 0 for regression"):
        train(Regressor(), Regression(), replace(run, output=tmp_path / "new"))


class Notes:
    """A logger that fails after `last` lines."""

    def __init__(self, last: int) -> None:
        self.lines: list[Any] = []
        self.last = last
        self.closed = False

    def add(self, line: Any, step: int) -> None:
        if len(self.lines) == self.last:
            raise ConnectionError("no network")
        self.lines.append((line["kind"], step))

    def close(self) -> None:
        self.closed = True


def test_loggers_get_each_line_and_one_that_fails_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, broken = Notes(1000), Notes(2)
    train(Regressor(), Regression(), make_run(tmp_path), loggers=[broken, whole])
    lines = log_of(tmp_path)
    assert [kind for kind, _ in whole.lines] == [line["kind"] for line in lines]
    assert whole.lines[-1] == ("epoch", 15)
    assert whole.closed
    assert broken.lines == whole.lines[:2]
    assert not broken.closed
    assert caplog.messages == ["Notes is dropped: no network"]


class Curious(Notes):
    """A logger that is told why a training ends early."""

    reason: BaseException | None = None

    def abort(self, error: BaseException) -> None:
        self.reason = error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), OSError("full")])
def test_loggers_are_told_why_a_training_ends_early(tmp_path: Path, error: BaseException) -> None:
    def stop(_: Epoch) -> None:
        raise error

    told, plain = Curious(1000), Notes(1000)
    run = make_run(tmp_path)
    with pytest.raises(type(error)):
        train(Regressor(), Regression(), run, on_epoch=stop, loggers=[told, plain])
    assert told.reason is error
    assert not told.closed
    assert plain.closed
    whole = Curious(1000)
    train(Regressor(), Regression(), run, resume=True, loggers=[whole])
    assert whole.reason is None
    assert whole.closed


@pytest.mark.parametrize("stop", [None, 7], ids=["finished", "stopped"])
def test_more_epochs_go_on_in_their_own_schedule(
    tmp_path: Path, stop: int | None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    run = make_run(tmp_path / "out")
    longer = replace(run, recipe=replace(RECIPE, epochs=5))

    def end(done: Step) -> None:
        if done.step == stop:
            signal.raise_signal(signal.SIGTERM)

    with nullcontext() if stop is None else pytest.raises(SystemExit):
        train(Regressor(), Regression(), run, on_step=end)
    caplog.clear()
    train(Regressor(), Regression(), longer, resume=True)
    turned = 15 if stop is None else stop + 1
    rate = learning_rate(longer.recipe, turned, 5)
    assert caplog.messages == [
        "epochs raised from 3 to 5: the learning rate now follows the schedule of 5 epochs, from "
        f"{rate:.2g}"
    ]

    # The same training without the interruption.
    def turning(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
        return learning_rate(RECIPE if step < turned else recipe, step, steps_per_epoch)

    monkeypatch.setattr(loop, "learning_rate", turning)
    train(Regressor(), Regression(), replace(longer, output=tmp_path / "whole"))
    lines = log_of(run.output)
    assert lines == log_of(tmp_path / "whole")
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [0, 1, 2, 3, 4]
    for name in ("model.safetensors", "best.safetensors"):
        assert (run.output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert load_recipe(str(run.output / "recipe.toml")) == longer.recipe
    assert torch.load(run.checkpoint)["identity"]["recipe"]["epochs"] == 5


def test_epochs_are_only_raised_and_nothing_else_with_them(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    train(Regressor(), Regression(), run)
    fewer = replace(run, recipe=replace(RECIPE, epochs=2))
    with pytest.raises(InputError, match=r"epochs was 3, now 2; epochs can only be raised;"):
        train(Regressor(), Regression(), fewer, resume=True)
    other = replace(run, recipe=replace(RECIPE, epochs=5, learning_rate=0.3))
    with pytest.raises(InputError, match=r"settings: learning_rate was \S+, now 0\.3; use the"):
        train(Regressor(), Regression(), other, resume=True)


@pytest.mark.parametrize(
    ("epochs", "warmup", "message"),
    [
        (3, 1.0, ""),  # the recipe's own warm-up fits now
        (3, 0.75, ""),  # shortened by the same rule for both
        (4, 0.5, "warmup_epochs was 0.25, now 0.5"),
    ],
)
def test_a_warm_up_shortened_for_fewer_epochs_is_no_other_setting(
    tmp_path: Path, epochs: int, warmup: float, message: str
) -> None:
    short = make_run(tmp_path, replace(RECIPE, epochs=1, warmup_epochs=0.25))
    train(Regressor(), Regression(), short)
    longer = replace(short, recipe=replace(RECIPE, epochs=epochs, warmup_epochs=warmup))
    with pytest.raises(InputError, match=message) if message else nullcontext():
        train(Regressor(), Regression(), longer, resume=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("step", [6, 9], ids=["in the middle of an epoch", "before measuring"])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, step: int, precision: str
) -> None:
    recipe = replace(RECIPE, precision=precision, saved_precision="fp16")  # type: ignore[arg-type]
    run = make_run(tmp_path / "stopped", recipe)
    train(Regressor(), Regression(), replace(run, output=tmp_path / "whole"))

    def stop(done: Step) -> None:
        if done.step == step:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(Regressor(), Regression(), run, on_step=stop)
    train(Regressor(), Regression(), run, resume=True)
    assert log_of(run.output) == log_of(tmp_path / "whole")
    for name in ("model.safetensors", "best.safetensors"):
        assert (run.output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_sigterm_saves_and_leaves_with_its_exit_status(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run = make_run(tmp_path)
    stop = lambda _: signal.raise_signal(signal.SIGTERM)  # noqa: E731
    with pytest.raises(SystemExit) as raised:
        train(Regressor(), Regression(), run, on_step=stop)
    assert raised.value.code == 128 + signal.SIGTERM
    assert torch.load(run.checkpoint)["state"]["step"] == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_full_disk_stops_the_run_and_leaves_the_old_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(make_run(tmp_path), checkpoint_minutes=0.0)
    saves: list[int] = []
    write = torch.save

    def fail_later(content: dict[str, Any], file: BinaryIO) -> None:
        saves.append(content["state"]["step"])
        if len(saves) == 4:
            file.write(b"PK")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(content, file)

    monkeypatch.setattr(torch, "save", fail_later)
    with pytest.raises(InputError, match=r"the disk is full: .* \(No space left on device\); free"):
        train(Regressor(), Regression(), run)
    monkeypatch.undo()
    assert torch.load(run.checkpoint)["state"]["step"] == saves[-2] == 3
    assert not list(run.output.glob(".*.tmp"))
    train(Regressor(), Regression(), run, resume=True)


def test_the_checkpoint_holds_weights_and_average_under_the_keys_of_the_network(
    tmp_path: Path,
) -> None:
    network = Regressor()
    train(network, Regression(), make_run(tmp_path))
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    assert set(content) == {
        *("model", "ema", "optimizer", "scaler", "task"),
        *("identity", "metadata", "state", "epoch", "recent", "launch"),
    }
    assert content["model"].keys() == content["ema"].keys() == network.state_dict().keys()
    assert not torch.equal(content["model"]["layers.0.bias"], content["ema"]["layers.0.bias"])
    # The result is the EMA.
    assert torch.equal(content["ema"]["layers.0.bias"], network.state_dict()["layers.0.bias"])
    assert content["identity"]["task"] == "regression"
    assert content["identity"]["vectors"] == 60
    assert content["metadata"] is None


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    losses: dict[int, list[float]] = {12: [], 4: [], 1: []}
    for parts, seen in losses.items():
        run = make_run(tmp_path / str(parts), batch_per_device=parts)
        task = Regression(noise=0.0)
        train(Regressor(), task, run, on_step=lambda step, to=seen: to.append(step.figures["loss"]))
    assert len(losses[12]) == 15
    assert losses[4] == pytest.approx(losses[12], rel=1e-4)
    assert losses[1] == pytest.approx(losses[12], rel=1e-4)


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """Each process takes its half of a batch in two parts."""
    train(Regressor(), Regression(noise=0.0), make_run(tmp_path / "one"))
    in_two_processes(train_together, tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-6)
    ours, theirs = log_of(tmp_path / "two"), log_of(tmp_path / "one")
    for our_line, their_line in zip(ours, theirs, strict=True):
        assert our_line.pop("kind") == their_line.pop("kind")
        assert our_line == pytest.approx(their_line, rel=1e-4)


def test_another_task_is_another_training(tmp_path: Path) -> None:
    class Other(Regression):
        name = "another"

    train(Regressor(), Regression(), make_run(tmp_path))
    with pytest.raises(
        InputError, match="task was regression, now another; use the original settings or"
    ):
        train(Regressor(), Other(), make_run(tmp_path), resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "number of training vectors, 60, got 64; set batch_size to 16"),
        ({"frozen_stages": 1}, "frozen_stages must be 0 for a network without ResNeSt stages"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run = make_run(tmp_path / "out", replace(RECIPE, **changes))
    with pytest.raises(InputError, match=message):
        train(Regressor(), Regression(), run)
    assert not run.output.exists()
