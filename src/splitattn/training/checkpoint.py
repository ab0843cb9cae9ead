"""`last.pt`: all that a training needs to go on as if it had never stopped."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from splitattn import distributed
from splitattn.errors import InputError, WeightsError
from splitattn.files import replacing


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Over some images: summed loss, right first guesses, images, seconds."""

    loss: float = 0.0
    right: float = 0.0
    images: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            loss=self.loss + other.loss,
            right=self.right + other.right,
            images=self.images + other.images,
            seconds=self.seconds + other.seconds,
        )

    def means(self) -> tuple[float, float]:
        """Mean loss, and right first guesses in percent."""
        return self.loss / self.images, 100 * self.right / self.images


@dataclass(kw_only=True)
class State:
    """Where a training stands, besides its weights. No random state: the step decides all of it.

    Attributes:
        step: steps done.
        history: lines of the log.
        epoch: sums over this epoch so far.
        recent: sums since the last line of the log.
        unreadable: what was wrong with each image that could not be read, and its split.
        unreadable_in_train: how many of the training images, in all processes.
        best: highest top-1 so far, in percent.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    epoch: Sums = field(default_factory=Sums)
    recent: Sums = field(default_factory=Sums)
    unreadable: dict[str, str] = field(default_factory=dict)
    unreadable_in_train: int = 0
    best: float = -1.0

    @property
    def epochs_done(self) -> int:
        """Epochs that are trained, measured and logged."""
        return sum(line["kind"] == "epoch" for line in self.history)


def save(
    path: Path, identity: dict[str, Any], state: State, parts: dict[str, dict[str, Any]]
) -> None:
    """Write all of it, whole or not at all.

    Args:
        identity: what must be the same for a training to be the same; plain values.
        parts: state dicts by name.

    Raises:
        InputError: the file cannot be written; an older one stays as it was.
    """
    rest = {**vars(state)}
    sums = {name: vars(rest.pop(name)) for name in ("epoch", "recent")}
    content = {"identity": identity, "parts": parts, "state": rest, **sums, "launch": _launch()}
    try:
        with replacing(path) as temporary:
            torch.save(content, temporary)
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):  # how torch reports a full disk
            raise
        raise _unwritable(path.parent, error) from error


def restore(path: Path, identity: dict[str, Any], parts: dict[str, Any]) -> State:
    """Load `path` into `parts`, objects with `load_state_dict`, and give the rest.

    Raises:
        InputError: it belongs to another training; the message says what differs.
        WeightsError: it is damaged, or no checkpoint at all.
    """
    try:
        content = _load(path)
        changed = _changed(content["identity"], identity)
        if not changed:
            for name, part in parts.items():
                part.load_state_dict(content["parts"][name])
            state = State(**content["state"])
            state.epoch = Sums(**content["epoch"])
            state.recent = Sums(**content["recent"])
            return state
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever damaged bytes make torch raise
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{path} is no checkpoint of this training ({reason}); choose a new output folder"
        ) from error
    raise InputError(
        f"a training resumes as it began, got another {', '.join(changed)}; undo that, or choose a "
        "new output folder"
    )


def _launch() -> str | None:
    """What `torchrun` calls this start of all processes, restarts included; None without it."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def of_this_launch(path: Path) -> bool:
    """Whether the checkpoint was written since `torchrun` was called: it restarts by itself."""
    try:
        return distributed.restarted() and _load(path).get("launch") == _launch()
    except Exception:  # whatever damaged bytes make torch raise
        return False


def _load(path: Path) -> Any:
    return torch.load(path, weights_only=True, map_location="cpu")


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Make an `InputError` of a system's refusal to write into `folder`."""
    try:
        yield
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: Exception) -> InputError:
    """The error for an output folder that takes no files, or no more of them."""
    reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
    return InputError(f"output must be a folder to write to, got {folder}: {reason or error}")


def _changed(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What differs, by name; of a recipe's fields also how it began and what came."""
    began, came = found["recipe"], expected["recipe"]
    changed = [k for k in expected if k != "recipe" and found.get(k) != expected[k]]
    return changed + [
        f"{k} ({began.get(k)!r}, now {came[k]!r})" for k in came if began.get(k) != came[k]
    ]
