"""The log of a training: a file of JSON lines, TensorBoard if it is installed, other trackers.

The history of a training is a list of lines. A line of kind "train" has the figures of the steps
since the previous such line. A line of kind "epoch" has those of a whole epoch (`train_NAME`) and
of the measurement after it (`val_NAME`).
"""

import json
import logging
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from splitattn.errors import InputError, one_line
from splitattn.files import is_utf8, replacing

logger = logging.getLogger(__name__)


def write_log(path: Path, history: Iterable[Mapping[str, Any]]) -> None:
    """Write `history` as JSON lines; replaces the file.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in history)


class Logger(Protocol):
    """Receives the lines of a training's log, for example for an experiment tracker."""

    def add(self, line: Mapping[str, Any], step: int) -> None:
        """Receive one line of the log; `step` counts steps of the whole training."""

    def close(self) -> None:
        """Called when the training ends.

        If the logger also has a method `abort`, that is called instead after an error, Ctrl-C or
        SIGTERM: `abort(error)`.
        """


def check_loggers(loggers: object) -> list[Logger]:
    """`loggers` as a list.

    Raises:
        InputError: an item is not a logger.
    """
    found: list[Any] = list(loggers) if isinstance(loggers, Iterable) else [None]
    for each in found:
        if isinstance(each, type):
            raise InputError(
                f"loggers must be objects, got the class {each.__name__}: call it, as in "
                f"{each.__name__}(...)"
            )
        if not all(callable(getattr(each, name, None)) for name in ("add", "close")):
            raise InputError(
                f"loggers must be a list of objects with add and close, got {loggers!r:.60}"
            )
    return found


class MLflow:
    """A `Logger` for MLflow.

    Args:
        mlflow: the module, with a started run. When the training ends, the run ends as FINISHED,
            FAILED (after an error) or KILLED (after Ctrl-C or SIGTERM).
    """

    def __init__(self, mlflow: Any) -> None:
        self._mlflow = mlflow

    def add(self, line: Mapping[str, Any], step: int) -> None:
        """Log the figures as metrics."""
        self._mlflow.log_metrics(scalars(line), step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()

    def abort(self, error: BaseException) -> None:
        """End the run as FAILED or KILLED."""
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        self._mlflow.end_run("KILLED" if killed else "FAILED")


class WeightsAndBiases:
    """A `Logger` for Weights & Biases.

    Args:
        run: the result of `wandb.init`. When the training ends, the run is finished, with exit code
            1 after an error, Ctrl-C or SIGTERM.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def add(self, line: Mapping[str, Any], step: int) -> None:
        """Log the figures."""
        self._run.log(scalars(line), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()

    def abort(self, error: BaseException) -> None:  # noqa: ARG002
        """Finish the run as failed."""
        self._run.finish(exit_code=1)


class TensorBoard:
    """Writes the figures of a training for TensorBoard; does nothing if it is not installed.

    Args:
        folder: for the event file.
        steps_done: steps in the checkpoint that is resumed; TensorBoard then discards figures of
            later steps, which are done again.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, steps_done: int) -> None:
        try:
            with warnings.catch_warnings():
                # TensorBoard's imports raise deprecation warnings.
                warnings.simplefilter("ignore", DeprecationWarning)
                from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("no curves for TensorBoard; for curves, pip install tensorboard")
            self._writer = None
            return
        if not is_utf8(folder):
            shown = one_line(str(folder))
            logger.warning("no curves for TensorBoard: its folder %s must be UTF-8", shown)
            self._writer = None
            return
        self._writer = SummaryWriter(str(folder), purge_step=steps_done + 1)

    def add(self, line: Mapping[str, Any], step: int) -> None:
        """Add the figures of one line; `step` counts steps of the whole training."""
        if self._writer is None:
            return
        for tag, value in scalars(line).items():
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures to draw, by curve: all figures of steps, and the `val_` figures of epochs."""
    if line["kind"] == "train":
        return {f"train/{k}": v for k, v in line.items() if k not in ("kind", "step", "epoch")}
    return {f"val/{k.removeprefix('val_')}": v for k, v in line.items() if k.startswith("val_")}
