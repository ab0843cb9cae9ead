"""MLflow and Weights & Biases, if installed, store what a training measured."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from splitattn.training.log import MLflow, WeightsAndBiases

TRAIN = {"kind": "train", "step": 20, "epoch": 0.5, "loss": 2.5, "learning_rate": 0.25}
EPOCH = {"kind": "epoch", "epoch": 0, "train_loss": 2.25, "val_loss": 1.75, "val_top1": 37.5}
FIGURES = {
    20: {"train/loss": 2.5, "train/learning_rate": 0.25},
    40: {"val/loss": 1.75, "val/top1": 37.5},
}
# Both packages, and what they import, warn of deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


def fill(logger: MLflow | WeightsAndBiases, error: BaseException | None) -> None:
    """Log the lines of a training and its end, or `error`."""
    logger.add(TRAIN, 20)
    logger.add(EPOCH, 40)
    if error is None:
        logger.close()
    else:
        logger.abort(error)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (OSError("disk full"), "FAILED"),
    ],
)
def test_mlflow_stores_figures_and_ending(
    tmp_path: Path, error: BaseException | None, status: str
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    mlflow.set_experiment(
        experiment_id=mlflow.create_experiment("shapes", artifact_location=str(tmp_path))
    )
    started = mlflow.start_run().info.run_id
    fill(MLflow(mlflow), error)
    assert mlflow.active_run() is None
    store = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs.db")
    found = store.get_run(started)
    assert found.info.status == status
    stored: dict[int, dict[str, float]] = {}
    for name in found.data.metrics:
        for point in store.get_metric_history(started, name):
            stored.setdefault(point.step, {})[name] = point.value
    assert stored == FIGURES


@pytest.mark.parametrize(("error", "code"), [(None, 0), (KeyboardInterrupt(), 1)])
def test_weights_and_biases_stores_figures_and_ending(
    tmp_path: Path, error: BaseException | None, code: int
) -> None:
    wandb = pytest.importorskip("wandb")
    run = wandb.init(
        mode="offline", project="shapes", dir=tmp_path, settings=wandb.Settings(silent=True)
    )
    fill(WeightsAndBiases(run), error)
    wandb.teardown()  # its service may write the file's last records after `finish`
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    stored: dict[int, dict[str, float]] = {}
    codes = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            figures = {key: json.loads(value) for key, value in row.items() if "/" in key}
            stored[int(row["_step"])] = figures
        elif record.WhichOneof("record_type") == "exit":
            codes.append(record.exit.exit_code)
    assert stored == FIGURES
    assert codes == [code]


def records(path: Path) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log format behind a header of seven bytes."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, at, whole = path.read_bytes(), 7, b""
    block = 32768
    while at + 7 <= len(content):
        if block - at % block < 7:  # no room for a record's header: the block is padded
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield messages.Record.FromString(whole)
            whole = b""
