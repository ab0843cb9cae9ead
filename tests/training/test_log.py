"""The log has one JSON object a line; TensorBoard, if installed, gets the same figures."""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from splitattn.training.log import MLflow, TensorBoard, WeightsAndBiases, write_log

TRAIN = {
    "kind": "train",
    "step": 20,
    "epoch": 0.5,
    "loss": 2.5,
    "top1": 12.5,
    "learning_rate": 0.25,
    "images_per_second": 900.0,
}
EPOCH = {
    "kind": "epoch",
    "epoch": 0,
    "size": 64,
    "train_loss": 2.25,
    "train_top1": 15.0,
    "val_loss": 1.75,
    "val_top1": 37.5,
    "val_top5": 62.5,
    "unreadable": 0,
    "seconds": 12.5,
}


def test_the_log_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_log(path, [TRAIN, EPOCH, TRAIN])
    write_log(path, [TRAIN, EPOCH])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [TRAIN, EPOCH]
    assert list(tmp_path.iterdir()) == [path]


def test_a_log_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_log(path, [TRAIN])
    with pytest.raises(TypeError):
        write_log(path, [TRAIN, {"kind": object()}])
    assert json.loads(path.read_text()) == TRAIN
    assert list(tmp_path.iterdir()) == [path]


def drawn(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points that TensorBoard shows, as step and value, by curve."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events: Any = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_draws_the_figures_of_both_kinds_of_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path, 0)
    board.add(TRAIN, 20)
    board.add(EPOCH, 40)
    board.close()
    assert drawn(tmp_path) == {
        "train/loss": [(20, 2.5)],
        "train/top1": [(20, 12.5)],
        "train/learning_rate": [(20, 0.25)],
        "train/images_per_second": [(20, 900.0)],
        "val/loss": [(40, 1.75)],
        "val/top1": [(40, 37.5)],
        "val/top5": [(40, 62.5)],
    }


def test_repeated_steps_are_drawn_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path, 0)
    for step in (10, 20, 30):
        board.add(TRAIN, step)
    board.close()
    # Resumed from a checkpoint of step 20: later points are replaced.
    board = TensorBoard(tmp_path, 20)
    board.add(TRAIN | {"loss": 1.5}, 30)
    board.close()
    assert drawn(tmp_path)["train/loss"] == [(10, 2.5), (20, 2.5), (30, 1.5)]


def test_without_tensorboard_nothing_is_drawn_and_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.INFO, "splitattn"):
        board = TensorBoard(tmp_path, 0)
        board.add(TRAIN, 20)
        board.add(EPOCH, 40)
        board.close()
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "pip install tensorboard" in caplog.text
    assert not list(tmp_path.iterdir())


class Tracker:
    """A fake of the module `mlflow` and of a run of Weights & Biases."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, float], int]] = []
        self.ended = 0

    def log(self, figures: dict[str, float], step: int) -> None:
        self.calls.append((figures, step))

    def finish(self) -> None:
        self.ended += 1

    log_metrics, end_run = log, finish


@pytest.mark.parametrize("kind", [MLflow, WeightsAndBiases])
def test_trackers_get_the_figures_of_both_kinds_of_line(kind: Any) -> None:
    tracker = Tracker()
    logger = kind(tracker)
    logger.add(TRAIN, 20)
    logger.add(EPOCH, 40)
    logger.close()
    train = {"loss": 2.5, "top1": 12.5, "learning_rate": 0.25, "images_per_second": 900.0}
    assert tracker.calls == [
        ({f"train/{name}": value for name, value in train.items()}, 20),
        ({"val/loss": 1.75, "val/top1": 37.5, "val/top5": 62.5}, 40),
    ]
    assert tracker.ended == 1
