"""Writes a file of weights in another project's layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from splitattn.architectures import architecture
from splitattn.errors import WeightsError
from splitattn.weights.cache import published
from splitattn.weights.catalogue import named
from splitattn.weights.checkpoint import (
    Checkpoint,
    check_fits,
    read_tensors,
    save_pickle,
    save_safetensors,
    writing,
)
from splitattn.weights.in_folder import weights_file
from splitattn.weights.layouts import Layout, find_layout
from splitattn.weights.matching import closest_model, fitting_models
from splitattn.weights.resolve import check_owner

_PICKLES = (".pth", ".pt")
_SUFFIXES = (".safetensors", *_PICKLES)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        path: the file that was written.
        models: the model of the checkpoint; several if its keys and shapes fit each of them.
        source, target: the layouts before and after.
        tensors: number of tensors written.
        dropped: descriptions of what the new file cannot hold.
        missing_depth: layer counts that the target's project must add to its own table before it
            can build the network; None if it has them.
    """

    path: Path
    models: tuple[str, ...]
    source: Layout
    target: Layout
    tensors: int
    dropped: tuple[str, ...]
    missing_depth: tuple[int, ...] | None


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    model: str | None = None,
    part: str | None = None,
) -> Conversion:
    """Write the weights in `source`, in any layout, to `target` in the layout `to`.

    Values do not change. The file is read back and compared before it gets its name. An older file
    of that name, which may be `source` itself, is replaced atomically.

    Args:
        source: a checkpoint in any layout, see `weights.checkpoint.read_checkpoint`, or a folder
            with one.
        target: a name that ends in `.safetensors`, `.pth` or `.pt`. Only safetensors keep classes
            and preprocessing, if `source` has them.
        to: name of a layout, see `weights.layouts`.
        model: the model of the checkpoint; None takes it from the file's metadata, or from its keys
            and shapes.
        part: which of several networks in `source`, see `weights.checkpoint.read_tensors`.

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
    source = weights_file(source)
    checkpoint = read_tensors(source, part=part)
    models = _models(source, checkpoint, model)
    check_fits(checkpoint, models[0])
    _check_holdable(source, layout, models)

    key_mapping = layout.key_mapping
    tensors = {
        own: tensor
        for key, tensor in checkpoint.tensors.items()
        if (own := key_mapping.own(key)) is not None
    }
    dropped = []
    if headless := [key for key in checkpoint.tensors if key_mapping.own(key) is None]:
        names = (checkpoint.key_mapping.own(key) or key for key in headless)
        dropped.append(f"the classifier ({', '.join(names)})")
    if checkpoint.ignored:
        dropped.append(checkpoint.ignored_in_words)
    if checkpoint.metadata and target.suffix in _PICKLES:
        dropped.append("names of classes and preprocessing, which only safetensors hold")
    with writing(target) as temporary:
        if target.suffix in _PICKLES:
            save_pickle(temporary, tensors, layout.wrapper)
        else:
            save_safetensors(temporary, tensors, checkpoint.metadata)
        kept = {key: value for key, value in checkpoint.tensors.items() if key not in headless}
        if not _identical(read_tensors(temporary).tensors, kept):
            raise WeightsError(
                f"{target} was not written, since the new file differed when read back: check the "
                "disk"
            )
    layers = architecture(models[0]).layers
    return Conversion(
        path=target,
        models=models,
        source=checkpoint.key_mapping.layout,
        target=layout,
        tensors=len(tensors),
        dropped=tuple(dropped),
        missing_depth=None if layout.depths is None or layers in layout.depths else layers,
    )


def _models(source: Path, checkpoint: Checkpoint[Tensor], model: str | None) -> tuple[str, ...]:
    """The models that the checkpoint may belong to. All of them have the same keys and shapes."""
    said = checkpoint.metadata or published(source)
    if said:
        check_owner(source, said.model, model)
        return (said.model,)
    if model:
        return (model,)
    shapes = checkpoint.shapes
    layout = checkpoint.key_mapping.layout
    fitting = tuple(
        name for name in fitting_models(shapes) if not layout.refusal(architecture(name))
    )
    if fitting:
        return fitting
    # Incomplete, or another network. The error then lists differences from the closest model.
    if closest := closest_model(shapes):
        return (closest,)
    keys = islice(chain(checkpoint.tensors, checkpoint.unexpected), 3)
    names = ", ".join(key[:80] for key in keys)
    raise WeightsError(
        f"{source} must hold weights of a ResNeSt, got keys of another network ({names}, ...)"
    )


def _check_holdable(source: Path, layout: Layout, models: tuple[str, ...]) -> None:
    """Raise unless the layout can hold all of the models."""
    refusals = {name: layout.refusal(architecture(name)) for name in models}
    for name, reason in refusals.items():
        if reason and all(refusals.values()):
            raise WeightsError(f"the layout of {layout} cannot hold {name}: {reason}")
        if reason:
            raise WeightsError(
                f"{source} fits {' and '.join(models)}, and the layout of {layout} cannot hold "
                f"{name}: choose one with --model"
            )


def _identical(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether tensors are equal bit for bit; for `torch.equal`, 0 equals -0, and NaN not NaN."""
    return found.keys() == expected.keys() and all(
        found[key].dtype == value.dtype
        and found[key].shape == value.shape
        and torch.equal(_bytes(found[key]), _bytes(value))
        for key, value in expected.items()
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)
