"""Where a training writes what happens: a file of JSON lines, and TensorBoard where there is one.

What happened is a list of lines, its history. A line of kind "train" tells of the steps since the
one before, a line of kind "epoch" of a whole epoch and the measurement after it.
"""

import json
import logging
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from splitattn.files import replacing

logger = logging.getLogger(__name__)

# The figures of a line that TensorBoard draws, by kind, and what it calls them.
_SCALARS = {
    "train": {
        "loss": "train/loss",
        "top1": "train/top1",
        "learning_rate": "train/learning_rate",
        "images_per_second": "train/images_per_second",
    },
    "epoch": {"val_loss": "val/loss", "val_top1": "val/top1", "val_top5": "val/top5"},
}


def write_log(path: Path, history: Iterable[Mapping[str, Any]]) -> None:
    """Write `history` as JSON lines, in place of what `path` held.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in history)


class TensorBoard:
    """The figures of a training as TensorBoard's curves; nothing where it is not installed.

    Args:
        folder: for the event file.
        steps_done: by the training before it was interrupted; what it wrote of later steps, which
            are now done again, is drawn no more.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, steps_done: int) -> None:
        try:
            with warnings.catch_warnings():
                # What it imports uses what is deprecated, which nobody here can change.
                warnings.simplefilter("ignore", DeprecationWarning)
                from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("no curves for TensorBoard; pip install 'splitattn[train]' adds it")
            self._writer = None
            return
        self._writer = SummaryWriter(str(folder), purge_step=steps_done + 1)

    def add(self, line: Mapping[str, Any], step: int) -> None:
        """Add the figures of one line, `step` steps into the whole training."""
        if self._writer is None:
            return
        for key, tag in _SCALARS[line["kind"]].items():
            self._writer.add_scalar(tag, line[key], step)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            self._writer.close()
