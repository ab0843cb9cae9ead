"""Reads and writes `config.json` in timm's format, which describes the weights beside it.

Source: the behavior of timm 1.0 (`timm.models.save_for_hf` and `local-dir:` names).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitattn.architectures import TIMM_NAMES, architecture, split_name
from splitattn.errors import InputError, WeightsError
from splitattn.files import open_file
from splitattn.preprocessing import Preprocessing
from splitattn.weights.catalogue import class_names
from splitattn.weights.metadata import ModelMetadata, unreadable

CONFIG_NAME = "config.json"

# Limit: ten times the size of a file with 20,000 classes and their descriptions.
_LARGEST_BYTES = 1 << 25

# Keys of `model_args` that may have any value. The first two show in the weights' shapes; the
# others matter only for training.
_HARMLESS = frozenset(
    {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last"}
)
# Keys of `model_args` that may have one value only. With another `output_stride`, timm dilates in
# its own way, and the same weights give other outputs.
_ONLY = {"output_stride": 32, "global_pool": "avg"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The content of a `config.json`.

    Attributes:
        model: our name of the architecture.
        classes: class names by output index, or None if the file has none.
        preprocessing: how images become the network's input.
    """

    model: str
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing


def to_config(metadata: ModelMetadata, *, license: str | None = None) -> str:
    """The text of a `config.json` for weights with this metadata.

    timm always resizes and then crops. Where we crop first, timm sees the same part of the image,
    but slightly different pixels. A model that timm does not have keeps our name, which timm
    refuses.

    Args:
        license: SPDX identifier, if known.
    """
    shape = architecture(metadata.model)
    preprocessing = metadata.preprocessing
    num_classes = len(metadata.classes)
    pretrained = {
        "custom_load": False,
        "input_size": [preprocessing.channels, preprocessing.size, preprocessing.size],
        "fixed_input_size": False,
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_fraction,
        "crop_mode": "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "num_classes": num_classes,
        "pool_size": [math.ceil(preprocessing.size / 32)] * 2,
        "first_conv": "conv1.0" if shape.deep_stem else "conv1",
        "classifier": "fc",
    }
    if license:
        pretrained["license"] = license.lower()
    config = {
        "architecture": TIMM_NAMES.get(metadata.model, metadata.model),
        "num_classes": num_classes,
        "num_features": shape.stage_channels[-1],
        "global_pool": "avg",
        "label_names": list(metadata.classes),
        "pretrained_cfg": pretrained,
    }
    return json.dumps(config, indent=2) + "\n"


def read_config(path: Path) -> Config:
    """Read a `config.json` of timm or of `to_config`.

    Raises:
        WeightsError: the file cannot be read, is not in timm's format, or describes a network or a
            preprocessing that this package does not have.
    """
    try:
        with open_file(path) as file:
            content = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) > _LARGEST_BYTES:
        raise WeightsError(f"{path} must have at most {_LARGEST_BYTES >> 20} MiB, it has more")
    try:
        config = _object(json.loads(content))
        name = config["architecture"]
        if not isinstance(name, str):
            raise TypeError(f"architecture must be a name, got {name!r:.60}")
        pretrained = _object(config.get("pretrained_cfg", config))
        _check_arguments(_object(config.get("model_args") or {}))
        classes = classes_of(config, pretrained)
        preprocessing = preprocessing_of(pretrained)
    except KeyError as error:
        raise WeightsError(
            f"{path} is not a {CONFIG_NAME} in timm's format: {error} is missing; name the file of "
            "weights instead of the folder, and its model (--model)"
        ) from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be used: {' '.join(str(error).split())}") from error
    return Config(model=_our_name(name, path), classes=classes, preprocessing=preprocessing)


def _our_name(name: str, path: Path) -> str:
    try:
        return split_name(name)[0]
    except InputError as error:
        raise WeightsError(f"{path}: {error}") from error


def _check_arguments(arguments: dict[str, Any]) -> None:
    for key, value in arguments.items():
        if key not in _HARMLESS and (key not in _ONLY or value != _ONLY[key]):
            raise ValueError(f"model_args {key!r:.60}: {value!r:.60} changes the network")


def classes_of(config: dict[str, Any], pretrained: dict[str, Any]) -> tuple[str, ...] | None:
    """Class names by output index, or None if timm's configuration has none.

    Args:
        config: the whole configuration.
        pretrained: its `pretrained_cfg`, which may be `config` itself.

    Raises:
        TypeError: names are not text, or the number of classes is not a number.
    """
    num_classes = config.get("num_classes", pretrained.get("num_classes"))
    places = (config, pretrained)
    names = next((p[key] for key in ("label_names", "labels") for p in places if p.get(key)), None)
    if names is None:
        # timm leaves out ImageNet's class names. Its tags end in the last training's data set.
        tag = pretrained.get("tag")
        if isinstance(tag, str) and tag.split("_")[-1] == "in1k" and num_classes == 1000:
            return class_names("imagenet1k")
        return None
    descriptions = _object(
        next((p["label_descriptions"] for p in places if p.get("label_descriptions")), {})
    )
    if isinstance(names, dict):  # by index, with gaps
        names = [names.get(str(index), str(index)) for index in range(_index(num_classes))]
    if not isinstance(names, list):
        raise TypeError(f"label_names must be a list, got {names!r:.60}")
    classes = tuple(descriptions.get(_text(name), name) for name in names)
    return tuple(_text(name) for name in classes)


def preprocessing_of(fields: dict[str, Any]) -> Preprocessing:
    """How images become the network's input, from timm's `pretrained_cfg`.

    Raises:
        KeyError: a field is missing.
        TypeError, ValueError: a value cannot be used; `Preprocessing` raises too.
    """
    # Where test_* fields exist, timm's published accuracies use them.
    channels, height, width = fields.get("test_input_size") or fields["input_size"]
    if height != width:
        raise ValueError(f"input_size must be square, got {height!r:.60} by {width!r:.60}")
    crop_mode = fields.get("crop_mode", "center")
    if crop_mode != "center":
        raise ValueError(f"crop_mode must be 'center', got {crop_mode!r:.60}")
    return Preprocessing(
        size=_index(height),
        crop_fraction=_number(fields.get("test_crop_pct") or fields["crop_pct"]),
        interpolation=fields["interpolation"],
        order="resize-crop",
        mean=_per_channel(fields["mean"], channels),
        std=_per_channel(fields["std"], channels),
    )


def _per_channel(values: object, channels: object) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) not in (1, channels):
        raise TypeError(
            f"mean and std must have a number for each of {channels!r:.60} channels, "
            f"got {values!r:.60}"
        )
    numbers = tuple(_number(value) for value in values)
    return numbers if len(numbers) == channels else numbers * _index(channels)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {value!r:.60}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a class must have a name, got {value!r:.60}")
    return value


def _index(value: object) -> int:
    # No class list or image side is larger; huge values would use all memory.
    if type(value) is not int or not 0 <= value <= 1 << 20:
        raise TypeError(f"expected a size, got {value!r:.60}")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise TypeError(f"expected a number, got {value!r:.60}")
    return float(value)  # type: ignore[arg-type]
