"""Saves networks as folders or hub repositories with metadata, and loads them."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from splitattn.architectures import architecture, split_name
from splitattn.create import load_trained
from splitattn.errors import InputError, WeightsError, write_failure
from splitattn.files import is_file, is_folder, replacing
from splitattn.nn.resnest import ResNeSt
from splitattn.weights import hub
from splitattn.weights.card import card_text, check_license
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.in_folder import WEIGHTS_NAMES
from splitattn.weights.metadata import ModelMetadata
from splitattn.weights.resolve import resolve
from splitattn.weights.timm_config import CONFIG_NAME, to_config


def from_pretrained(source: str | Path) -> ResNeSt:
    """Load the network of a folder or repository, in evaluation mode.

    Classes and input channels are those of the weights.

    Args:
        source: the path of a folder or of a weights file, or a repository of the Hugging Face hub:
            `owner/name` or `owner/name@revision`, optionally after `hf-hub:`.

    Raises:
        InputError: huggingface_hub is missing.
        WeightsError: the folder or repository does not exist, or holds another kind of network.
    """
    if isinstance(source, str) and not hub.is_reference(source):
        # A Path cannot be mistaken for a tag of the catalogue.
        here = is_file(source) or is_folder(source)
        source = Path(source) if here else f"hf-hub:{source}"
    return load_trained(resolve(weights=source), in_chans=None).eval()


def save_pretrained(
    model: ResNeSt, folder: str | Path, *, metadata: ModelMetadata, license: str | None = None
) -> None:
    """Write `model` into a folder that this package and timm can load.

    The folder gets `model.safetensors` (with `metadata` inside), `config.json` in timm's format
    (with the classes and preprocessing of `metadata`), and a model card, `README.md`. An existing
    card is replaced only if it still has the line that marks generated cards. Each file is written
    atomically.

    Args:
        folder: created if it does not exist.
        metadata: the architecture's name, the classes, the preprocessing, and if known the recipe
            and the metrics.
        license: SPDX identifier, for the card and `config.json`.

    Raises:
        InputError: the model does not agree with `metadata`, or `license` is not an SPDX
            identifier.
        WeightsError: the folder cannot be written.
    """
    metadata = _checked(model, metadata, license)
    _write(model, Path(folder), metadata=metadata, license=license, repository=None)


def push_to_hub(
    model: ResNeSt,
    repository: str,
    *,
    metadata: ModelMetadata,
    license: str | None = None,
    message: str = "Add weights, configuration and model card",
    private: bool = False,
    create_pr: bool = False,
    token: str | None = None,
) -> str:
    """Push the files of `save_pretrained` to a repository of the Hugging Face hub, in one commit.

    Args:
        repository: owner/name, created if it does not exist, or owner/name@branch of an existing
            branch.
        metadata, license: see `save_pretrained`.
        message: the commit's message.
        private: whether a new repository is private.
        create_pr: open a pull request instead of committing.
        token: access token; by default HF_TOKEN, or that of `hf auth login`.

    Returns:
        The commit's URL.

    Raises:
        InputError: the model does not agree with `metadata`, or huggingface_hub is missing.
        WeightsError: the server cannot be reached, or refuses.
    """
    target = hub.Repository.parse(repository)
    metadata = _checked(model, metadata, license)
    with TemporaryDirectory() as folder:
        _write(model, Path(folder), metadata=metadata, license=license, repository=target.id)
        return hub.push(
            Path(folder),
            target,
            message=message,
            private=private,
            create_pr=create_pr,
            token=token,
        )


def _checked(model: ResNeSt, metadata: ModelMetadata, license: str | None) -> ModelMetadata:
    """Check `metadata` against the model; return it with our own name of the model."""
    check_license(license)
    if not isinstance(model, ResNeSt):
        raise InputError(
            f"only a ResNeSt can be saved, got {type(model).__name__}: save it before it is fused "
            "or wrapped"
        )
    if model.architecture != architecture(metadata.model):
        raise InputError(f"metadata names {metadata.model}, but the model is another architecture")
    if model.num_classes != len(metadata.classes):
        raise InputError(
            f"metadata must name each of the model's {model.num_classes} classes, it names "
            f"{len(metadata.classes)}"
        )
    stem = next(model.parameters())
    if stem.shape[1] != (channels := metadata.preprocessing.channels):
        raise InputError(
            f"metadata must have a mean and deviation for each of the model's {stem.shape[1]} "
            f"channels, it has {channels}"
        )
    if model.output_stride != 32:
        raise InputError(
            f"output_stride must be 32 for this format, got {model.output_stride}: load the "
            "state_dict into a network of output_stride 32 and save that"
        )
    return replace(metadata, model=split_name(metadata.model)[0])


def _write(
    model: ResNeSt,
    folder: Path,
    *,
    metadata: ModelMetadata,
    license: str | None,
    repository: str | None,
) -> None:
    weights, card = folder / WEIGHTS_NAMES[0], folder / hub.CARD_NAME
    texts = {folder / CONFIG_NAME: to_config(metadata, license=license)}
    try:
        if not card.exists() or hub.is_generated(card):
            texts[card] = card_text(
                metadata, filename=weights.name, repository=repository, license=license
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(weights, model.state_dict(), metadata)
        for path, text in texts.items():
            _write_text(path, text)
    except OSError as error:
        raise WeightsError(write_failure(folder, error, "cannot write to")) from error


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
