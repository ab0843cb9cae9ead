"""Records unreadable images: a few are listed and skipped, too many stop the training."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from splitattn import distributed
from splitattn.errors import DataError, counted
from splitattn.files import replacing
from splitattn.training.output import writing_to

logger = logging.getLogger(__name__)

# With a larger share of unreadable images in a split, a training stops.
_SHARE = 0.01
_FILE = "unreadable.txt"


class Unreadable:
    """The images that could not be read so far, for any task on images.

    Attributes:
        lines: the split of each image, by its error.
        in_train: number of unreadable training images, in all processes.
    """

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}
        self.in_train = 0
        self._told = 0

    def clear(self) -> None:
        """Forget all images, for a new training."""
        self.load_state_dict({"lines": {}, "in_train": 0})

    def note(self, split: str, problems: Iterable[str]) -> int:
        """Record `problems` in this process; return how many are new."""
        known = len(self.lines)
        self.lines |= dict.fromkeys(problems, split)
        return len(self.lines) - known

    def check(self, split: str, count: int, *, of: int, folder: Path) -> None:
        """Raise if too many images of a split are unreadable; all processes must call this.

        Args:
            count: unreadable images, in all processes.
            of: images in the split.
            folder: the list is written there before raising.

        Raises:
            DataError: more than 1 % are unreadable.
        """
        if count <= _SHARE * of:
            return
        self.gather()
        with writing_to(folder):
            self.write(folder)
        first = next(line for line, where in self.lines.items() if where == split)
        raise DataError(
            f"at most 1 % of the {of} images in {split} may be unreadable, got {count} so far; "
            f"repair or remove those in {folder / _FILE}; the first: {first}"
        )

    def gather(self) -> None:
        """Share the records of all processes with every process."""
        for lines in distributed.gathered(list(self.lines.items())):
            self.lines |= dict(lines)

    def end_epoch(self, folder: Path) -> int:
        """Gather the records, warn if there are new ones, and return their number."""
        self.gather()
        count = len(self.lines)
        if count > self._told and distributed.rank() == 0:
            logger.warning(
                "%s could not be read so far, see %s", counted(count, "image"), folder / _FILE
            )
        self._told = count
        return count

    def write(self, folder: Path) -> None:
        """Write the list, if it is not empty, in the first process.

        Raises:
            OSError: the file cannot be written.
        """
        lines = [f"{split}: {problem}\n" for problem, split in self.lines.items()]
        if lines and distributed.rank() == 0:
            with replacing(folder / _FILE) as path:
                path.write_text("".join(lines), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"lines": self.lines, "in_train": self.in_train}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`."""
        self.lines, self.in_train = dict(state["lines"]), int(state["in_train"])
        self._told = 0
