"""What a trained file says about itself: kept inside it, read without touching its tensors."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from splitattn.architectures import split_name
from splitattn.errors import InputError, WeightsError
from splitattn.preprocessing import Preprocessing

METADATA_KEY = "splitattn"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """Everything, besides its tensors, that using a trained file needs.

    Attributes:
        model: name of the architecture.
        classes: class names, by output index.
        preprocessing: how images were evaluated.
        recipe: how the weights were trained.
        metrics: what was measured on them.

    Raises:
        InputError: a field is of another kind, or a recipe or metrics could not be written as JSON.
    """

    model: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            raise InputError(f"model must be a name, got {self.model!r:.60}")
        names = isinstance(self.classes, tuple)
        if not names or not all(isinstance(name, str) for name in self.classes):
            raise InputError(f"classes must be a tuple of names, got {self.classes!r:.60}")
        if not isinstance(self.preprocessing, Preprocessing):
            raise InputError(f"preprocessing must be Preprocessing, got {self.preprocessing!r:.60}")
        for name, value in (("recipe", self.recipe), ("metrics", self.metrics)):
            if not isinstance(value, dict):
                raise InputError(f"{name} must be a dictionary, got {value!r:.60}")
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError) as error:
                raise InputError(f"{name} must be what JSON can hold: {error}") from error

    def to_json(self) -> str:
        """One JSON object whose keys are the fields."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ModelMetadata":
        """The inverse of `to_json`; keys of a later version are passed over.

        The model goes by our own name, whichever the text has.

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
            )
        except KeyError as error:
            raise WeightsError(f"malformed metadata: {error} is missing") from error
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise WeightsError(f"malformed metadata: {' '.join(str(error).split())}") from error


def _our_name(name: str) -> str:
    try:
        return split_name(name)[0]
    except InputError:  # of a later version: who needs its architecture will say so
        return name


def _preprocessing(fields: dict[str, Any]) -> Preprocessing:
    red, green, blue = (float(value) for value in fields["mean"])
    std_red, std_green, std_blue = (float(value) for value in fields["std"])
    return Preprocessing(
        size=_expect(int, fields["size"]),
        crop_fraction=float(fields["crop_fraction"]),
        interpolation=fields["interpolation"],
        order=fields["order"],
        mean=(red, green, blue),
        std=(std_red, std_green, std_blue),
    )


def _expect(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {value!r:.60}")
    return value


def is_safetensors(path: Path) -> bool:
    """Whether the content of `path`, whatever its name, begins as a safetensors file does.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        # Eight bytes of header length, then the header, a JSON object.
        return file.read(9)[8:] == b"{"


def read_metadata(path: str | Path) -> ModelMetadata | None:
    """What the file says about itself, or None if it says nothing. Its tensors are not loaded.

    Raises:
        WeightsError: the file cannot be read, or is damaged.
    """
    path = Path(path)
    try:
        if not is_safetensors(path):
            return None
        with safe_open(path, framework="numpy") as file:
            return metadata_of(path, file.metadata())
    except OSError as error:
        raise unreadable(path, error) from error
    except SafetensorError as error:
        raise damaged(path) from error


def metadata_of(path: Path, header: Mapping[str, str] | None) -> ModelMetadata | None:
    """The metadata among the string pairs in the header of the safetensors file `path`, if any.

    Raises:
        WeightsError: they are malformed.
    """
    if not header or METADATA_KEY not in header:
        return None
    try:
        return ModelMetadata.from_json(header[METADATA_KEY])
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}; write the file again") from error


def unreadable(path: Path, error: OSError) -> WeightsError:
    """The error for a file that the system does not let us read."""
    return WeightsError(f"cannot read weights from {path}: {error.strerror or error}")


def damaged(path: Path) -> WeightsError:
    """The error for a safetensors file that breaks off or contradicts itself."""
    return WeightsError(f"{path} is a truncated or damaged safetensors file: get it again")
