"""A network becomes a folder or a repository that says all about it, and a network again."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from splitattn.architectures import architecture, split_name
from splitattn.create import load_trained
from splitattn.errors import InputError, WeightsError
from splitattn.files import is_file, is_folder, replacing
from splitattn.nn.resnest import ResNeSt
from splitattn.weights import hub
from splitattn.weights.card import card_text, check_license
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata
from splitattn.weights.resolve import resolve
from splitattn.weights.timm_config import CONFIG_NAME, to_config


def from_pretrained(source: str | Path) -> ResNeSt:
    """The network in a folder or repository, in evaluation mode, with the classifier it came with.

    It takes images of as many channels as it was trained for.

    Args:
        source: the path of a folder or of a weights file, or else a repository of the Hugging Face
            hub: `owner/name`, or `owner/name@revision`; `hf-hub:` may precede it.

    Raises:
        InputError: huggingface_hub is missing.
        WeightsError: there is no such folder or repository, or it holds no network of this package.
    """
    if isinstance(source, str) and not hub.is_reference(source):
        # A path, so that no tag of the catalogue is taken for it.
        here = is_file(source) or is_folder(source)
        source = Path(source) if here else f"hf-hub:{source}"
    return load_trained(resolve(weights=source), in_chans=None).eval()


def save_pretrained(
    model: ResNeSt, folder: str | Path, *, metadata: ModelMetadata, license: str | None = None
) -> None:
    """Write `model` into a folder from which this package and timm load it.

    The folder gets `model.safetensors`, which holds `metadata` too, `config.json` in timm's shape
    with the classes and the preprocessing of `metadata`, and a model card, `README.md`. A card that
    is there already is replaced if it still has the line that says where it is from, and otherwise
    stays as it is: people write in them. Each file appears whole or not at all.

    Args:
        folder: made if it is not there.
        metadata: the name of the model's architecture, its classes, how images become its input,
            and if known how it was trained and what was measured.
        license: SPDX identifier, for the card and timm.

    Raises:
        InputError: the model is not what `metadata` says, or `license` is no identifier.
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
    """Commit what `save_pretrained` writes to a repository of the Hugging Face hub.

    All files come in one commit. A model card that is there already is replaced or stays, as in
    `save_pretrained`.

    Args:
        repository: owner/name, made if it is not there; `@branch` may follow, which must be there.
        metadata, license: see `save_pretrained`.
        message: of the commit.
        private: whether a repository that is made shows itself to others.
        create_pr: propose the commit to the owner rather than make it.
        token: who pushes; None takes HF_TOKEN, or what `hf auth login` left.

    Returns:
        The commit's URL.

    Raises:
        InputError: the model is not what `metadata` says, or huggingface_hub is missing.
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
    """`metadata` with our own name of the model, once it is true of it."""
    check_license(license)
    if not isinstance(model, ResNeSt):
        raise InputError(
            f"only a ResNeSt as it is trained can be saved, got {type(model).__name__}: save it "
            "before it is fused or wrapped"
        )
    if model.architecture != architecture(metadata.model):
        raise InputError(f"the model must be a {metadata.model}, as metadata says, and is another")
    if model.num_classes != len(metadata.classes):
        raise InputError(
            f"metadata must name each of the model's {model.num_classes} classes, it names "
            f"{len(metadata.classes)}"
        )
    stem = next(model.parameters())
    if stem.shape[1] != 3:
        raise InputError(
            f"only networks for RGB images can be described, this one takes {stem.shape[1]} "
            "channels: save its state_dict with safetensors"
        )
    if model.output_stride != 32:
        raise InputError(
            "only networks of output_stride 32 can be described, this one has "
            f"{model.output_stride}: load its state_dict into one that has 32 and save that"
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
    weights, card = folder / hub.WEIGHTS_NAMES[0], folder / hub.CARD_NAME
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
        raise WeightsError(f"cannot write to {folder}: {error.strerror or error}") from error


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
