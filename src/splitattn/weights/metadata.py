"""Metadata inside a weights file: model, classes, preprocessing, recipe and metrics."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from safetensors import SafetensorError, safe_open

from splitattn.architectures import split_name
from splitattn.errors import InputError, WeightsError
from splitattn.files import open_file
from splitattn.preprocessing import Preprocessing
from splitattn.weights.in_folder import weights_file

METADATA_KEY = "splitattn"
# Keys that tell a training's checkpoint (`last.pt`) from other files. `metadata` is JSON or None.
_TRAINING_KEYS = ("identity", "metadata")

Activation = Literal["softmax", "sigmoid"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """What is needed to use a weights file, besides its tensors.

    Attributes:
        model: name of the architecture.
        classes: class names, by output index.
        preprocessing: used when the metrics were measured.
        recipe: of the training, as a dictionary.
        metrics: measured with the weights, by name.
        origin: what the weights were made from, such as "data" and "teacher".
        head: of a detector or segmenter: settings of its head, and the sides of its images; empty
            for a classifier.
        task: "classification", "detection" or "segmentation".
        activation: turns a classifier's logits into probabilities: "softmax" if an image has one
            class, "sigmoid" if it may have several or none.

    Raises:
        InputError: a field has another type, or cannot be written as JSON.
    """

    model: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    task: str = "classification"
    activation: Activation = "softmax"

    def __post_init__(self) -> None:
        for name in ("model", "task"):
            if not isinstance(value := getattr(self, name), str):
                raise InputError(f"{name} must be a name, got {value!r:.60}")
        if self.activation not in get_args(Activation):
            raise InputError(
                f"activation must be one of {', '.join(get_args(Activation))}, got "
                f"{self.activation!r:.60}"
            )
        names = isinstance(self.classes, tuple)
        if not names or not all(isinstance(name, str) for name in self.classes):
            raise InputError(f"classes must be a tuple of names, got {self.classes!r:.60}")
        if not isinstance(self.preprocessing, Preprocessing):
            raise InputError(f"preprocessing must be Preprocessing, got {self.preprocessing!r:.60}")
        for name in ("recipe", "metrics", "origin", "head"):
            value = getattr(self, name)
            if not isinstance(value, dict):
                raise InputError(f"{name} must be a dictionary, got {value!r:.60}")
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError) as error:
                raise InputError(f"{name} must contain only what JSON can hold: {error}") from error

    def to_json(self) -> str:
        """One JSON object whose keys are the fields."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ModelMetadata":
        """The inverse of `to_json`. Unknown keys, as of a later version, are ignored.

        Another project's name of the model is replaced by ours.

        Raises:
            WeightsError: the text is not JSON, or a field is missing or unusable.
        """
        try:
            fields = _expect(dict, json.loads(text))
            return cls(
                model=_our_name(_expect(str, fields["model"])),
                classes=tuple(_expect(list, fields["classes"])),
                preprocessing=_preprocessing(_expect(dict, fields["preprocessing"])),
                recipe=fields["recipe"],
                metrics=fields["metrics"],
                origin=fields.get("origin", {}),  # older files have none
                head=fields.get("head", {}),  # older files have none
                task=fields.get("task", "classification"),  # older files have none
                activation=fields.get("activation", "softmax"),  # older files have none
            )
        except KeyError as error:
            raise WeightsError(f"malformed metadata: {error} is missing") from error
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise WeightsError(f"malformed metadata: {' '.join(str(error).split())}") from error


def _our_name(name: str) -> str:
    try:
        return split_name(name)[0]
    except InputError:  # perhaps of a later version; building the network raises it
        return name


def _preprocessing(fields: dict[str, Any]) -> Preprocessing:
    white_level = fields.get("white_level")
    return Preprocessing(
        size=_expect(int, fields["size"]),
        crop_fraction=float(fields["crop_fraction"]),
        interpolation=fields["interpolation"],
        order=fields["order"],
        mean=tuple(float(value) for value in fields["mean"]),
        std=tuple(float(value) for value in fields["std"]),
        white_level=None if white_level is None else float(white_level),
    )


def _expect(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {value!r:.60}")
    return value


def is_safetensors(path: Path) -> bool:
    """Whether the file at `path` begins like a safetensors file, whatever its name.

    Raises:
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        # Eight bytes of header length, then the header, a JSON object.
        return file.read(9)[8:] == b"{"


def read_metadata(path: str | Path) -> ModelMetadata | None:
    """The metadata in a weights file or a training's checkpoint, or None if it has none.

    Tensors are not read.

    Args:
        path: of the file, or of a folder with weights, such as a training's output.

    Raises:
        WeightsError: the file cannot be read, or is damaged; or the folder has no weights.
    """
    path = weights_file(Path(path))
    try:
        if is_safetensors(path):
            with safe_open(path, framework="numpy") as file:
                return metadata_of(path, file.metadata())
        return _read_training_metadata(path)
    except OSError as error:
        raise unreadable(path, error) from error
    except SafetensorError as error:
        raise damaged(path) from error


def _read_training_metadata(path: Path) -> ModelMetadata | None:
    # Imported here: most callers have a safetensors file.
    from splitattn.weights.pickles import is_archive, load_pickle

    if not is_archive(path):  # as `last.pt` is
        return None
    return training_metadata_of(path, load_pickle(path).content)


def training_metadata_of(path: Path, content: object) -> ModelMetadata | None:
    """The metadata in `content`, of the file `path`, if it is a training's checkpoint.

    Raises:
        WeightsError: they are malformed.
    """
    if not isinstance(content, dict) or not content.keys() >= set(_TRAINING_KEYS):
        return None
    text = content["metadata"]
    return _parse(path, text) if isinstance(text, str) else None


def metadata_of(path: Path, header: Mapping[str, str] | None) -> ModelMetadata | None:
    """The metadata in `header`, the string pairs of the safetensors file `path`, if it has any.

    Raises:
        WeightsError: they are malformed.
    """
    if not header or METADATA_KEY not in header:
        return None
    return _parse(path, header[METADATA_KEY])


def _parse(path: Path, text: str) -> ModelMetadata:
    try:
        return ModelMetadata.from_json(text)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}; write the file again") from error


def unreadable(path: Path, error: OSError) -> WeightsError:
    """The error for a file that the system refuses to read."""
    return WeightsError(f"cannot read weights from {path}: {error.strerror or error}")


def damaged(path: Path) -> WeightsError:
    """The error for a safetensors file that is truncated or inconsistent."""
    return WeightsError(f"{path} is a truncated or damaged safetensors file: get it again")
