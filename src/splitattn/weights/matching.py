"""Checks whether a checkpoint belongs to a model, by keys and shapes alone."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

from splitattn.architectures import ARCHITECTURES, Architecture
from splitattn.errors import WeightsError
from splitattn.weights.layouts import OFFICIAL, KeyMapping, is_deformable

Shapes = Mapping[str, tuple[int, ...]]

HEAD = ("fc.weight", "fc.bias")
# Stages of every architecture.
STAGES = 4
_STAGE = re.compile(r"layer(\d)\.")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The sizes that may differ between checkpoints of the same model.

    Attributes:
        num_classes: outputs of the classifier; 0 if the checkpoint has no classifier.
        in_chans: channels of the images.
    """

    num_classes: int
    in_chans: int


def _fit(found: Shapes, expected: Shapes) -> Fit:
    """The sizes in `found`, or those in `expected` where `found` contradicts itself."""
    stem = next(iter(expected))
    outputs, in_chans, *kernel = expected[stem]
    if found.get(stem, ())[1:2] > (0,) and found[stem] == (outputs, found[stem][1], *kernel):
        in_chans = found[stem][1]
    weight, bias = (found.get(key) for key in HEAD)
    if weight is None and bias is None:
        return Fit(num_classes=0, in_chans=in_chans)
    # If one of the two is missing or malformed, the other gives the number of classes.
    heads = [shape for shape, rank in ((bias, 1), (weight, 2)) if shape and len(shape) == rank]
    num_classes = next((shape[0] for shape in heads if shape[0]), expected[HEAD[1]][0])
    return Fit(num_classes=num_classes, in_chans=in_chans)


def check_match(
    found: Shapes,
    architecture: Architecture,
    *,
    model: str,
    origin: str,
    key_mapping: KeyMapping = OFFICIAL.key_mapping,
    unexpected: Sequence[str] = (),
    stages: int = STAGES,
) -> Fit:
    """Raise unless a checkpoint has the keys and shapes of a model.

    Any number of classes and channels is allowed, and so is a checkpoint without a classifier, as
    of a backbone. A classifier without weight or bias is an error. Batch norm's
    `num_batches_tracked` may be missing, as in old checkpoints.

    Args:
        found: shapes in the checkpoint, by official key.
        architecture: the model.
        model: its name, for the message.
        origin: the checkpoint's file, for the message.
        key_mapping: the checkpoint's own key names, for the message.
        unexpected: keys of the checkpoint that have no official name.
        stages: how many stages the network needs. Later stages may be missing, as in a backbone's
            checkpoint.

    Returns:
        The checkpoint's number of classes and channels.

    Raises:
        WeightsError: they differ. The message says where, and which model would fit, if any.
    """
    fit = _fit(found, architecture.shapes())
    expected = architecture.shapes(fit.num_classes, fit.in_chans)
    last = max(map(_stage, found), default=0)
    missing = [
        key
        for key in expected
        if key not in found
        and not key.endswith("num_batches_tracked")
        and _stage(key) <= max(last, stages)
    ]
    too_short = bool(missing) and all(_stage(key) > last for key in missing)
    unexpected = [*(_named(key, key_mapping) for key in found if key not in expected), *unexpected]
    reshaped = [key for key in expected if key in found and found[key] != expected[key]]
    faults = []
    if too_short:
        names = ", ".join(f"layer{stage}" for stage in range(last + 1, stages + 1))
        faults.append(f"{stages - last} of {stages} stages are missing ({names})")
    elif missing:
        names = _first(_named(key, key_mapping) for key in missing)
        faults.append(f"{len(missing)} of {len(expected)} keys are missing ({names})")
    if unexpected:
        faults.append(f"{len(unexpected)} are unexpected ({_first(unexpected)})")
    if reshaped:
        key = reshaped[0]
        faults.append(
            f"{_named(key, key_mapping)} has shape {tuple(found[key])} "
            f"instead of {tuple(expected[key])}"
        )
    if not faults:
        return fit
    alike = fitting_models(found, stages=last)
    # No other model fits better if this one is among them.
    others = [] if model in alike else alike
    fitting = [name for name in others if not key_mapping.layout.refusal(ARCHITECTURES[name])]
    backbone = f"create_backbone(..., out_indices={tuple(range(1, last + 1)) or (0,)})"
    if any(map(is_deformable, unexpected)):
        advice = "it has deformable convolutions (DCN), which no model here has"
    elif fitting and last >= stages:
        advice = f"it is a checkpoint of {' or '.join(fitting)}: name that model (--model)"
    elif fitting:
        advice = (
            f"it begins as {' or '.join(fitting)}: get complete weights, or load it with that "
            f"model's {backbone}"
        )
    elif too_short and len(faults) == 1:
        advice = f"get weights of this model, or load it with {backbone}"
    else:
        advice = "get weights of this model"
    raise WeightsError(f"{origin} does not fit {model}: {', '.join(faults)}; {advice}")


def check_layout(
    key_mapping: KeyMapping, architecture: Architecture, *, model: str, origin: str
) -> None:
    """Raise if the checkpoint's layout cannot hold the model.

    Raises:
        WeightsError: the project that wrote the checkpoint has no such network; the message says
            why.
    """
    if reason := key_mapping.layout.refusal(architecture):
        raise WeightsError(
            f"{origin} is in the layout of {key_mapping.layout}, which cannot hold {model}: "
            f"{reason}"
        )


def _stage(key: str) -> int:
    """The number of the stage that an official key is of; 0 for the stem and the classifier."""
    match = _STAGE.match(key)
    return int(match[1]) if match else 0


def _named(key: str, key_mapping: KeyMapping) -> str:
    """The file's own name of an official key."""
    return key_mapping.own(key) or key


def fitting_models(found: Shapes, *, stages: int = STAGES) -> list[str]:
    """Names of the published architectures that a checkpoint's keys and shapes fit.

    Weights do not show where a block pools, so `resnest50` and `resnest50_fast_2s1x64d` always fit
    both or neither.

    Args:
        found: shapes in the checkpoint, by official key.
        stages: how many stages the checkpoint must have. With fewer than all, it may fit several
            models that begin alike.
    """
    return [name for name, each in ARCHITECTURES.items() if _fits(found, each, stages)]


def closest_model(found: Shapes) -> str | None:
    """The published architecture that most keys and shapes fit, or None if none fits any."""
    best = max(ARCHITECTURES, key=lambda name: _agreement(found, ARCHITECTURES[name]))
    return best if _agreement(found, ARCHITECTURES[best]) > 0 else None


def _agreement(found: Shapes, architecture: Architecture) -> int:
    return sum(found.get(key) == shape for key, shape in _telltales(architecture).items())


def _fits(found: Shapes, architecture: Architecture, stages: int) -> bool:
    last = max(stages, *map(_stage, found), 0)
    telltales = _telltales(architecture)
    if any(found.get(key) != telltales[key] for key in telltales if _stage(key) <= last):
        return False
    return not any(
        f"layer{stage}.{depth}.conv1.weight" in found
        for stage, depth in enumerate(architecture.layers, start=1)
    )


@cache
def _telltales(architecture: Architecture) -> Shapes:
    """Shapes that tell architectures apart: of the stem, and of the last block of each stage."""
    keys = ["bn1.weight", "conv1.6.weight"]
    for stage, depth in enumerate(architecture.layers, start=1):
        block = f"layer{stage}.{depth - 1}"
        keys += [f"{block}.conv3.weight", f"{block}.conv2.conv.weight", f"{block}.conv2.weight"]
    shapes = architecture.shapes()
    return {key: shapes[key] for key in keys if key in shapes}


def _first(keys: Iterable[str], count: int = 3) -> str:
    return ", ".join(key[:80] for key in islice(keys, count))
