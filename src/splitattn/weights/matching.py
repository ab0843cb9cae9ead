"""Whether a checkpoint belongs to a model, judged by names and shapes alone."""

from collections.abc import Collection, Iterable, Mapping
from itertools import islice

from splitattn.architectures import ARCHITECTURES, Architecture
from splitattn.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]


def check_match(
    found: Shapes,
    expected: Shapes,
    *,
    model: str,
    origin: str,
    adapted: Collection[str] = (),
) -> None:
    """Raise unless the checkpoint's tensors are the model's, key by key and shape by shape.

    Args:
        found: shapes in the checkpoint, by key.
        expected: shapes in the model, by key.
        model: the model's name, for the message.
        origin: where the checkpoint came from, for the message.
        adapted: keys that the caller replaces or converts, and which may differ or be missing.

    Batch norm's `num_batches_tracked` may be missing: old checkpoints do not have it.

    Raises:
        WeightsError: they differ; the message says where, and which model would fit if one does.
    """
    found = {key: shape for key, shape in found.items() if key not in adapted}
    expected = {key: shape for key, shape in expected.items() if key not in adapted}
    missing = [
        key for key in expected if key not in found and not key.endswith("num_batches_tracked")
    ]
    unexpected = [key for key in found if key not in expected]
    reshaped = [key for key in expected if key in found and found[key] != expected[key]]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(expected)} keys are missing ({_first(missing)})")
    if unexpected:
        faults.append(f"{len(unexpected)} are unexpected ({_first(unexpected)})")
    if reshaped:
        key = reshaped[0]
        faults.append(f"{key} has shape {tuple(found[key])} instead of {tuple(expected[key])}")
    if not faults:
        return
    fitting = [name for name in fitting_models(found) if name != model]
    advice = (
        f"it is a checkpoint of {' or '.join(fitting)}: name that model"
        if fitting
        else "get weights of this model"
    )
    raise WeightsError(f"{origin} does not fit {model}: {', '.join(faults)}; {advice}")


def fitting_models(found: Shapes) -> list[str]:
    """Names of the published architectures that a checkpoint's keys and shapes speak for.

    Where average pooling comes in a block cannot be seen in its weights, so `resnest50` and
    `resnest50_fast_2s1x64d` always come together.
    """
    return [name for name, architecture in ARCHITECTURES.items() if _fits(found, architecture)]


def _fits(found: Shapes, architecture: Architecture) -> bool:
    telltales = _telltales(architecture)
    if any(found.get(key) != shape for key, shape in telltales.items()):
        return False
    return not any(
        f"layer{stage}.{depth}.conv1.weight" in found
        for stage, depth in enumerate(architecture.layers, start=1)
    )


def _telltales(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shapes that tell architectures apart: of the stem and of the last block of each stage."""
    radix, cardinality = architecture.radix, architecture.cardinality
    shapes: dict[str, tuple[int, ...]] = {"bn1.weight": (architecture.stem_channels,)}
    if architecture.deep_stem:
        shapes["conv1.6.weight"] = (architecture.stem_channels, architecture.stem_width, 3, 3)
    for stage, depth in enumerate(architecture.layers):
        width = architecture.group_width(architecture.planes * 2**stage)
        block = f"layer{stage + 1}.{depth - 1}"
        shapes[f"{block}.conv3.weight"] = (architecture.stage_channels[stage], width, 1, 1)
        if radix:
            grouped = (width * radix, width // (radix * cardinality), 3, 3)
            shapes[f"{block}.conv2.conv.weight"] = grouped
        else:
            shapes[f"{block}.conv2.weight"] = (width, width // cardinality, 3, 3)
    return shapes


def _first(keys: Iterable[str], count: int = 3) -> str:
    return ", ".join(key[:80] for key in islice(keys, count))
