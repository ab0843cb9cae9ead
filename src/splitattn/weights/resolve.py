"""Resolves a name or a path to a verified weights file."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from splitattn.architectures import architecture, split_name
from splitattn.errors import InputError, WeightsError, check_path, nearest
from splitattn.files import exists, is_folder, similar_path
from splitattn.preprocessing import Preprocessing
from splitattn.weights.cache import fetch, published
from splitattn.weights.catalogue import (
    WeightsEntry,
    default_preprocessing,
    embedded_entry,
    entries,
    find_entry,
    named,
    stand_in,
)
from splitattn.weights.download import Progress
from splitattn.weights.hub import folder_of, is_reference
from splitattn.weights.in_folder import best_in
from splitattn.weights.metadata import ModelMetadata, is_safetensors, read_metadata
from splitattn.weights.pickles import check_begins_as_weights
from splitattn.weights.timm_config import CONFIG_NAME, Config, read_config


@dataclass(frozen=True, kw_only=True)
class ResolvedWeights:
    """A verified weights file and what is needed to use it.

    Attributes:
        path: the file.
        model: name of its architecture.
        tag: its tag in the catalogue, the `hf-hub:` or `local-dir:` name it was called by, or None
            for any other file.
        classes: class names by output index, or None if the file does not have them.
        preprocessing: how images become the model's input.
    """

    path: Path
    model: str
    tag: str | None
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing


def resolve(
    model: str | None = None,
    weights: str | Path | None = None,
    *,
    progress: Progress | None = None,
) -> ResolvedWeights:
    """Find weights by name or path; download them if they are not on this machine.

    Args:
        model: name of an architecture, our own or another project's, or an `hf-hub:` or
            `local-dir:` name, which names weights too; None takes the architecture from the
            weights.
        weights: a tag of the catalogue, an `hf-hub:` or `local-dir:` name, or the path of a file or
            of a folder with weights, such as a training's output. None takes the tag in the model's
            name (`timm/resnest50d.in1k`), or the model's default weights; without a model, the
            embedded weights.
        progress: called during a download.

    Raises:
        InputError: there is no model of that name, or huggingface_hub is missing, which `hf-hub:`
            names need.
        WeightsError: the weights do not exist, cannot be downloaded, or belong to another model.
    """
    if model is not None and is_reference(model):
        if weights is not None:
            raise WeightsError(
                f"{model} names weights already, got {str(weights)!r} too: leave one of them out"
            )
        model, weights = None, model
    if weights is not None:
        check_path("weights", weights)
    if weights == "":
        raise WeightsError("weights must be a tag, a file or a folder, got an empty name")
    tag = None
    if model is not None:
        model, tag = named(model)
    if isinstance(weights, str) and is_reference(weights):
        found = _resolve_folder(folder_of(weights, progress=progress), model)
        return replace(found, tag=weights)
    if weights is None:
        entry = embedded_entry() if model is None else find_entry(model, tag)
        return _resolve_entry(entry, progress)
    if isinstance(weights, str):
        tagged = [entry for entry in entries(model) if entry.tag == weights]
        if len(tagged) == 1:
            return _resolve_entry(tagged[0], progress)
        if tagged:
            raise WeightsError(
                f"{len(tagged)} models have weights called {weights!r}: name the model, "
                f"for example --model {tagged[0].model}"
            )
    path = Path(weights)
    if not exists(path):
        if model is None and _is_model(str(weights)):
            raise WeightsError(
                f"weights must be a tag or a file, got {str(weights)!r}, which is a model: "
                f"name it as the model, as in --model {weights}"
            )
        if instead := stand_in(model, str(weights)):
            warnings.warn(
                f"the package no longer has the weights {weights}: {instead.tag} stands in, with "
                f"{len(instead.classes)} classes of its own",
                stacklevel=2,
            )
            return _resolve_entry(instead, progress)
        tags = sorted({entry.tag for entry in entries(model)})
        hint = nearest(str(weights), tags) or similar_path(path)
        hint = hint or f"; the tags are {', '.join(tags) or 'none'}"
        whose = f"of {model}" if model else "of any model"
        raise WeightsError(f"{str(weights)!r} is neither a tag {whose} nor a file or folder{hint}")
    if is_folder(path):
        return _resolve_folder(path, model)
    return _resolve_file(path, model)


def _resolve_entry(entry: WeightsEntry, progress: Progress | None) -> ResolvedWeights:
    return _described_by(entry, fetch(entry, progress=progress))


def _resolve_folder(folder: Path, model: str | None) -> ResolvedWeights:
    path = best_in(folder)
    # Metadata inside the weights file override `config.json`.
    if not exists(folder / CONFIG_NAME) or read_metadata(path):
        return _resolve_file(path, model)
    config = read_config(folder / CONFIG_NAME)
    check_owner(folder, config.model, model)
    return _described_by(config, path)


def _described_by(source: WeightsEntry | ModelMetadata | Config, path: Path) -> ResolvedWeights:
    return ResolvedWeights(
        path=path,
        model=source.model,
        tag=source.tag if isinstance(source, WeightsEntry) else None,
        classes=source.classes,
        preprocessing=source.preprocessing,
    )


def _resolve_file(path: Path, model: str | None) -> ResolvedWeights:
    if metadata := read_metadata(path):
        architecture(metadata.model)
        check_owner(path, metadata.model, model)
        return _described_by(metadata, path)
    # A file of the catalogue, possibly under another name.
    if entry := published(path):
        check_owner(path, entry.model, model)
        return _described_by(entry, path)
    if not is_safetensors(path):
        check_begins_as_weights(path)
    if model is None:
        raise WeightsError(
            f"{path} does not say which model it belongs to: name the model (--model)"
        )
    return ResolvedWeights(
        path=path,
        model=model,
        tag=None,
        classes=None,
        preprocessing=default_preprocessing(model),
    )


def _is_model(name: str) -> bool:
    try:
        named(name)
    except InputError:
        return False
    return True


def check_owner(path: Path, owner: str, model: str | None) -> None:
    """Raise if the file belongs to another model than the named one; None allows any.

    Raises:
        WeightsError: it does.
    """
    if model is not None and split_name(model)[0] != split_name(owner)[0]:
        raise WeightsError(f"{path} belongs to {owner}, not to {model}: name that model (--model)")
