"""A file of weights becomes one in another project's layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from splitattn.architectures import architecture
from splitattn.errors import WeightsError
from splitattn.nn.resnest import ResNeSt
from splitattn.weights.catalogue import named
from splitattn.weights.checkpoint import (
    Checkpoint,
    check_fits,
    read_checkpoint,
    save_pickle,
    save_safetensors,
    writing,
)
from splitattn.weights.layouts import Layout, find_layout
from splitattn.weights.matching import closest_model, fitting_models
from splitattn.weights.resolve import check_owner, published

_PICKLES = (".pth", ".pt")
_SUFFIXES = (".safetensors", *_PICKLES)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted.

    Attributes:
        path: the file that was written.
        models: the model that it is a checkpoint of; several, where its weights and keys speak for
            each of them.
        source, target: the layout that it had, and the one that it has now.
        tensors: how many were written.
        dropped: what the file has no place for, in words.
        missing_depth: layer counts that the target's project has to be taught before it can build
            the network; None if it knows them.
    """

    path: Path
    models: tuple[str, ...]
    source: Layout
    target: Layout
    tensors: int
    dropped: tuple[str, ...]
    missing_depth: tuple[int, ...] | None


def convert(
    source: str | Path, target: str | Path, *, to: str, model: str | None = None
) -> Conversion:
    """Write the weights in `source`, whatever their layout, to `target` in the layout `to`.

    Values do not change. The file is read back and compared before it appears under its name;
    whatever had that name, be it `source` itself, is replaced whole or stays as it was.

    Args:
        source: a checkpoint in any layout that `weights.checkpoint.read_checkpoint` opens.
        target: a name that ends in `.safetensors`, `.pth` or `.pt`. Only safetensors keep classes
            and preprocessing, if `source` has them.
        to: name of a layout, see `weights.layouts`.
        model: whose checkpoint it is; None takes that from the file, or from its keys and shapes.

    Raises:
        InputError: there is no such layout or model.
        WeightsError: `source` cannot be read or is no complete checkpoint of the model, the layout
            cannot hold the model, or `target` cannot be written.
    """
    source, target = Path(source), Path(target)
    layout = find_layout(to)
    if target.suffix not in _SUFFIXES:
        raise WeightsError(f"DST must end in {', '.join(_SUFFIXES)}, got {target}")
    if model is not None:
        model, _ = named(model)
    checkpoint = read_checkpoint(source)
    models = _models(source, checkpoint, model)
    with torch.device("meta"):
        network = ResNeSt(architecture(models[0]))
    check_fits(checkpoint, network.state_dict(), model=models[0])
    models = _holdable(source, layout, models)

    spelling = layout.spelling
    tensors = {
        own: tensor
        for key, tensor in checkpoint.state_dict.items()
        if (own := spelling.own(key)) is not None
    }
    dropped = []
    if headless := [key for key in checkpoint.state_dict if spelling.own(key) is None]:
        names = (checkpoint.spelling.own(key) or key for key in headless)
        dropped.append(f"the classifier ({', '.join(names)})")
    if checkpoint.surroundings:
        dropped.append(checkpoint.surroundings_in_words)
    if checkpoint.metadata and target.suffix in _PICKLES:
        dropped.append("classes and preprocessing, which safetensors would keep")
    with writing(target) as temporary:
        if target.suffix in _PICKLES:
            save_pickle(temporary, tensors, layout.wrapper)
        else:
            save_safetensors(temporary, tensors, checkpoint.metadata)
        kept = {key: value for key, value in checkpoint.state_dict.items() if key not in headless}
        if not _identical(read_checkpoint(temporary).state_dict, kept):
            raise WeightsError(
                f"{target} did not read back as it was written and is left as it was: look after "
                "the disk"
            )
    layers = architecture(models[0]).layers
    return Conversion(
        path=target,
        models=models,
        source=checkpoint.spelling.layout,
        target=layout,
        tensors=len(tensors),
        dropped=tuple(dropped),
        missing_depth=None if layout.depths is None or layers in layout.depths else layers,
    )


def _models(source: Path, checkpoint: Checkpoint, model: str | None) -> tuple[str, ...]:
    """Whose checkpoint it is: the first speaks for the others, which have the same keys."""
    said = checkpoint.metadata or published(source)
    if said:
        check_owner(source, said.model, model)
        return (said.model,)
    if model:
        return (model,)
    shapes = {key: tuple(value.shape) for key, value in checkpoint.state_dict.items()}
    layout = checkpoint.spelling.layout
    fitting = tuple(
        name for name in fitting_models(shapes) if not layout.refusal(architecture(name))
    )
    if fitting:
        return fitting
    # Not whole, or another network: compared with this one, it is told what it lacks.
    if closest := closest_model(shapes):
        return (closest,)
    keys = islice(chain(checkpoint.state_dict, checkpoint.strangers), 3)
    names = ", ".join(key[:80] for key in keys)
    raise WeightsError(
        f"{source} must hold weights of a ResNeSt, and its keys ({names}, ...) are of something "
        "else"
    )


def _holdable(source: Path, layout: Layout, models: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the models that the layout can hold: all of them, or there is an error."""
    refusals = {name: layout.refusal(architecture(name)) for name in models}
    held = tuple(name for name, reason in refusals.items() if not reason)
    for name, reason in refusals.items():
        if reason and not held:
            raise WeightsError(f"the layout of {layout} cannot hold {name}: {reason}")
        if reason:
            raise WeightsError(
                f"{source} fits {' and '.join(models)}, and the layout of {layout} cannot hold "
                f"{name}: say with --model which it is"
            )
    return held


def _identical(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Bit for bit, which `torch.equal` is not: it takes 0 for -0 and NaN for nothing."""
    return found.keys() == expected.keys() and all(
        found[key].dtype == value.dtype
        and found[key].shape == value.shape
        and torch.equal(_bytes(found[key]), _bytes(value))
        for key, value in expected.items()
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)
