"""`last.pt`, the checkpoint of a training: everything that is needed to resume it exactly.

It is written by `torch.save` and holds only tensors and plain values. `weights.pickles` reads it.
Its keys:

- `model`: the network's state dict;
- `ema`: the EMA's state dict, with the same keys; only if the recipe has an EMA;
- `optimizer`, `scaler`, `task`: their state dicts;
- `identity`: values that must be the same to resume: `task`, `recipe` (every field), and those of
  the task; classification adds `model` (its name), `classes` and `images`;
- `metadata`: metadata of the resulting file, as `ModelMetadata.to_json()`, without measured
  figures; None for a task without metadata;
- `state`, `epoch`, `recent`: see `State`;
- `launch`: identifier of the `torchrun` launch that wrote it, or None.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from splitattn import distributed
from splitattn.errors import InputError, WeightsError
from splitattn.files import replacing, writing_native
from splitattn.training.output import unwritable
from splitattn.weights.checkpoint import as_tensors
from splitattn.weights.pickles import load_pickle


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over some steps: the task's figures, examples, seconds."""

    figures: dict[str, float] = field(default_factory=dict)
    examples: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            figures={k: self.figures.get(k, 0.0) + v for k, v in other.figures.items()},
            examples=self.examples + other.examples,
            seconds=self.seconds + other.seconds,
        )


@dataclass(kw_only=True)
class State:
    """The state of a training besides its weights.

    There is no random state, since random choices depend only on the seed and the step.

    Attributes:
        step: finished steps.
        history: lines of the log.
        epoch: sums over the current epoch so far.
        recent: sums since the last line of the log.
        best: the best value of `Task.best` so far, negated if lower is better.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    epoch: Sums = field(default_factory=Sums)
    recent: Sums = field(default_factory=Sums)
    best: float = -float("inf")

    @property
    def epochs_done(self) -> int:
        """Epochs that are trained, measured and logged."""
        return sum(line["kind"] == "epoch" for line in self.history)


def save(
    path: Path,
    identity: dict[str, Any],
    state: State,
    parts: Mapping[str, dict[str, Any]],
    *,
    metadata: str | None = None,
) -> None:
    """Write a checkpoint atomically.

    Args:
        identity: plain values that must be the same to resume.
        parts: state dicts by name.
        metadata: see above.

    Raises:
        InputError: the file cannot be written; an older one remains.
    """
    rest = {**vars(state)}
    sums = {name: vars(rest.pop(name)) for name in ("epoch", "recent")}
    content = {
        **parts,
        "identity": identity,
        "metadata": metadata,
        "state": rest,
        **sums,
        "launch": _launch(),
    }
    try:
        with replacing(path) as temporary, writing_native(temporary) as file:
            torch.save(content, file)
    except OSError as error:
        raise unwritable(path.parent, error) from error


def restore(
    path: Path, identity: dict[str, Any], parts: Mapping[str, Any]
) -> tuple[State, int | None]:
    """Load `path` into `parts`, objects with `load_state_dict`.

    The recipe may have more epochs than the checkpoint's, and the warm-up that comes with them.

    Returns:
        The rest of the checkpoint, and its number of epochs if the recipe now has more.

    Raises:
        InputError: it belongs to another training; the message says what differs.
        WeightsError: it is damaged, or not a checkpoint of a training.
    """
    try:
        content = _load(path)
        raised_from = _epochs_if_raised(content["identity"]["recipe"], identity["recipe"])
        changed = _changed(content["identity"], identity)
        if not changed:
            for name, part in parts.items():
                fresh = part.state_dict()
                part.load_state_dict(content[name])
                _check_alike(fresh, part.state_dict(), name)
                _check_averages(part)
            return _state(content), raised_from
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever damaged bytes make torch raise
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{path} is not a checkpoint of this training ({reason}); use a new --output"
        ) from error
    lowered = any(change.startswith("epochs ") for change in changed)
    rule = "; epochs can only be raised" if lowered else ""
    raise InputError(
        f"cannot resume with other settings: {', '.join(changed)}{rule}; use the original settings "
        "or a new --output"
    )


def _launch() -> str | None:
    """The identifier of this `torchrun` launch, which restarts keep; None without `torchrun`."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def of_this_launch(path: Path) -> bool:
    """Whether the checkpoint was written in this launch, so that `torchrun` restarted it."""
    try:
        return distributed.restarted() and _load(path).get("launch") == _launch()
    except Exception:  # whatever damaged bytes make torch raise
        return False


def _load(path: Path) -> Any:
    return as_tensors(load_pickle(path).content)


def _state(content: dict[str, Any]) -> State:
    state = State(**content["state"])
    state.epoch, state.recent = Sums(**content["epoch"]), Sums(**content["recent"])
    _check_alike(vars(State()), vars(state), "state")
    for sums in (state.epoch, state.recent):
        _check_alike(vars(Sums()), vars(sums), "state")
        _check_alike(dict.fromkeys(sums.figures, 0.0), sums.figures, "figures")
    if state.step < 0 or not all(isinstance(line.get("kind"), str) for line in state.history):
        raise TypeError("state must have a step and lines of the log")
    return state


def _check_alike(expected: Any, found: Any, name: str) -> None:
    """Raise unless all values in `found` are of the types of those in `expected`."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in expected.keys() & found.keys():
            _check_alike(expected[key], found[key], f"{name}.{key}")
    elif isinstance(expected, list) and isinstance(found, list):
        for before, after in zip(expected, found, strict=False):
            _check_alike(before, after, name)
    elif type(expected) is not type(found) and {type(expected), type(found)} != {int, float}:
        raise TypeError(f"{name} must be {type(expected).__name__}, got {type(found).__name__}")


def _check_averages(part: Any) -> None:
    """Raise unless an optimizer's moving averages have the shapes of their parameters."""
    if not isinstance(part, torch.optim.Optimizer):
        return
    for parameter, averages in part.state.items():
        for name, value in averages.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameter.shape:
                raise TypeError(f"{name} must have shape {tuple(parameter.shape)}")


def _epochs_if_raised(began: dict[str, Any], now: dict[str, Any]) -> int | None:
    """The checkpoint's number of epochs, if the recipe now has more."""
    before = began.get("epochs")
    return before if type(before) is int and before < now["epochs"] else None


def _changed(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Describe the differences: the recipe's fields and names with both values, others by name.

    Ignored are more epochs, a warm-up that changed with the epochs, and patience, which does not
    affect steps.
    """
    began, now = found["recipe"], expected["recipe"]
    free = {"patience"}
    if _epochs_if_raised(began, now):
        free.add("epochs")
    if began.get("epochs") != now["epochs"] and _warm_up_follows(began, now):
        free.add("warmup_epochs")
    pairs = [(k, found.get(k), v) for k, v in expected.items() if k != "recipe"]
    pairs += [(k, began.get(k), v) for k, v in now.items() if k not in free]
    return [_difference(*pair) for pair in pairs if pair[1] != pair[2]]


def _warm_up_follows(began: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether the warm-ups differ only because `load_recipe` shortens them for few epochs."""
    before, after = began.get("warmup_epochs", 0.0), now.get("warmup_epochs", 0.0)
    same_share = math.isclose(before * now["epochs"], after * began["epochs"])
    return same_share or max(before, after) >= min(began["epochs"], now["epochs"])


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(now, list | dict):
        return f"{name} differ"
    return f"{name} was {_shown(before)}, now {_shown(now)}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)[:60]
