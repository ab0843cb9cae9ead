"""Images that a training cannot read: a few are listed and passed over, many stop it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from splitattn import distributed
from splitattn.errors import DataError
from splitattn.files import replacing
from splitattn.training.output import writing_to

# Of the images of a split: with more than this unreadable, something is wrong with all of it.
_SHARE = 0.01
_FILE = "unreadable.txt"


class Unreadable:
    """The images that could not be read so far, for any task on images.

    Attributes:
        lines: what was wrong with each of them, and its split.
        in_train: how many of the training images, in all processes.
    """

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}
        self.in_train = 0

    def clear(self) -> None:
        """Forget all of them: a new training begins."""
        self.load_state_dict({"lines": {}, "in_train": 0})

    def note(self, split: str, problems: Iterable[str]) -> int:
        """Remember `problems`, in this process; returns how many are new."""
        known = len(self.lines)
        self.lines |= dict.fromkeys(problems, split)
        return len(self.lines) - known

    def check(self, split: str, count: int, *, of: int, folder: Path) -> None:
        """Stop if too many of a split are unreadable. All processes must call this together.

        Args:
            count: how many are, in all processes.
            of: images in the split.
            folder: where the list of them is written then.

        Raises:
            DataError: more than 1 % are.
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
        """Let every process know what all of them noted."""
        for lines in distributed.gathered(list(self.lines.items())):
            self.lines |= dict(lines)

    def write(self, folder: Path) -> None:
        """Write the list, if there is anything in it; only the first process does.

        Raises:
            OSError: the file cannot be written.
        """
        lines = [f"{split}: {problem}\n" for problem, split in self.lines.items()]
        if lines and distributed.rank() == 0:
            with replacing(folder / _FILE) as path:
                path.write_text("".join(lines), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.lines, self.in_train = dict(state["lines"]), int(state["in_train"])
