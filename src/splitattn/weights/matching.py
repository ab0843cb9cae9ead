"""Whether a checkpoint belongs to a model, judged by names and shapes alone."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from splitattn.architectures import ARCHITECTURES, Architecture
from splitattn.errors import WeightsError
from splitattn.weights.layouts import OFFICIAL, Spelling, is_deformable

Shapes = Mapping[str, tuple[int, ...]]

HEAD = ("fc.weight", "fc.bias")
# Of the deep stem and of the plain one.
_FIRST_CONVOLUTIONS = ("conv1.0.weight", "conv1.weight")


@dataclass(frozen=True, kw_only=True)
class Widths:
    """In what checkpoints of one model may differ.

    Attributes:
        classes: of the classifier, 0 if there is none.
        channels: of the images.
    """

    classes: int
    channels: int

    def of(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """The shapes of a model, given at any widths, at these."""
        stem = first_convolution(shapes)
        outputs, _, *kernel = shapes[stem]
        at_these = {**shapes, stem: (outputs, self.channels, *kernel)}
        for key in HEAD:
            _, *inputs = at_these.pop(key)
            if self.classes:
                at_these[key] = (self.classes, *inputs)
        return at_these


def first_convolution(keys: Container[str]) -> str:
    """The key of a model's first convolution."""
    return next(key for key in _FIRST_CONVOLUTIONS if key in keys)


def _widths(found: Shapes, expected: Shapes) -> Widths:
    """Those that a checkpoint has, and where it contradicts itself those of `expected`."""
    stem = first_convolution(expected)
    outputs, channels, *kernel = expected[stem]
    if found.get(stem, ())[1:2] > (0,) and found[stem] == (outputs, found[stem][1], *kernel):
        channels = found[stem][1]
    weight, bias = (found.get(key) for key in HEAD)
    if weight is None and bias is None:
        return Widths(classes=0, channels=channels)
    # Where one of the two is missing or odd, the other says what it should be.
    heads = [shape for shape, rank in ((bias, 1), (weight, 2)) if shape and len(shape) == rank]
    classes = next((shape[0] for shape in heads if shape[0]), expected[HEAD[1]][0])
    return Widths(classes=classes, channels=channels)


def check_match(
    found: Shapes,
    expected: Shapes,
    *,
    model: str,
    origin: str,
    spelling: Spelling = OFFICIAL.spelling,
    strangers: Sequence[str] = (),
) -> Widths:
    """Raise unless the checkpoint's tensors are the model's, key by key and shape by shape.

    How many classes and channels it is for is its own affair: a file without any of the classifier
    is one of a backbone, and half a classifier is a fault like another.

    Args:
        found: shapes in the checkpoint, by official key.
        expected: shapes in the model, for any number of classes and channels, by key.
        model: the model's name, for the message.
        origin: where the checkpoint came from, for the message.
        spelling: how the checkpoint writes its keys, and the message therefore too.
        strangers: keys of the checkpoint that have no official name.

    Batch norm's `num_batches_tracked` may be missing: old checkpoints do not have it.

    Returns:
        For how many classes and channels it is.

    Raises:
        WeightsError: they differ; the message says where, and which model would fit if one does.
    """
    widths = _widths(found, expected)
    expected = widths.of(expected)
    missing = [
        key for key in expected if key not in found and not key.endswith("num_batches_tracked")
    ]
    unexpected = [_spelt(key, spelling) for key in found if key not in expected]
    unexpected += strangers
    reshaped = [key for key in expected if key in found and found[key] != expected[key]]
    faults = []
    if missing:
        names = _first(_spelt(key, spelling) for key in missing)
        faults.append(f"{len(missing)} of {len(expected)} keys are missing ({names})")
    if unexpected:
        faults.append(f"{len(unexpected)} are unexpected ({_first(unexpected)})")
    if reshaped:
        key = reshaped[0]
        faults.append(
            f"{_spelt(key, spelling)} has shape {tuple(found[key])} "
            f"instead of {tuple(expected[key])}"
        )
    if not faults:
        return widths
    fitting = [
        name
        for name in fitting_models(found)
        if name != model and not spelling.layout.refusal(ARCHITECTURES[name])
    ]
    if any(map(is_deformable, unexpected)):
        advice = "it has deformable convolutions (DCN), which no model here has"
    elif fitting:
        advice = f"it is a checkpoint of {' or '.join(fitting)}: name that model"
    else:
        advice = "get weights of this model"
    raise WeightsError(f"{origin} does not fit {model}: {', '.join(faults)}; {advice}")


def check_layout(
    spelling: Spelling, architecture: Architecture, *, model: str, origin: str
) -> None:
    """Raise if the project that wrote the checkpoint has no such network as the model.

    Raises:
        WeightsError: it has none; the message says why.
    """
    if reason := spelling.layout.refusal(architecture):
        raise WeightsError(
            f"{origin} is in the layout of {spelling.layout}, which cannot hold {model}: {reason}"
        )


def _spelt(key: str, spelling: Spelling) -> str:
    return spelling.own(key) or key


def fitting_models(found: Shapes) -> list[str]:
    """Names of the published architectures that a checkpoint's keys and shapes speak for.

    Where average pooling comes in a block cannot be seen in its weights, so `resnest50` and
    `resnest50_fast_2s1x64d` always come together.
    """
    return [name for name, architecture in ARCHITECTURES.items() if _fits(found, architecture)]


def closest_model(found: Shapes) -> str | None:
    """Of the published architectures, the one that most speaks for, or None if nothing does."""
    best = max(ARCHITECTURES, key=lambda name: _agreement(found, ARCHITECTURES[name]))
    return best if _agreement(found, ARCHITECTURES[best]) > 0 else None


def _agreement(found: Shapes, architecture: Architecture) -> int:
    return sum(found.get(key) == shape for key, shape in _telltales(architecture).items())


def _fits(found: Shapes, architecture: Architecture) -> bool:
    if _agreement(found, architecture) < len(_telltales(architecture)):
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
