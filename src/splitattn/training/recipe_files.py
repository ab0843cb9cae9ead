"""Recipes by name or from TOML files, with overrides such as `epochs=20`."""

import re
import reprlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitattn.errors import InputError, check_path, nearest
from splitattn.files import exists, is_file, open_file, open_text
from splitattn.training.presets import PRESETS, preset
from splitattn.training.recipes import CHOICES, KINDS, Recipe, TaskName
from splitattn.weights.catalogue import embedded_entry

# Other projects' names of fields, for hints.
_SHORT = {
    "lr": "learning_rate",
    "lr0": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "batch": "batch_size",
    "imgsz": "train_size",
    "img_size": "train_size",
    "size": "train_size",
    "amp": "precision",
    "smoothing": "label_smoothing",
    "mixup": "mixup_alpha",
    "cutmix": "cutmix_alpha",
}

# The types of fields.
_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
# Raised for bytes that are not text, malformed TOML, numbers of thousands of digits, deep nesting.
_UNPARSABLE = (ValueError, RecursionError)
# Many times the longest preset, which has fewer than a thousand. The parser takes quadratic time
# for dotted keys (a.a.a.a...): half a second at this length.
_MOST_CHARACTERS = 10_000
_FROM_SCRATCH = "resnest50"


def load_recipe(
    name_or_file: str,
    overrides: Iterable[str] = (),
    *,
    model: str | None = None,
    task: TaskName = "classification",
) -> Recipe:
    """A preset by name or a TOML file of fields, with `key=value` overrides applied.

    A file overrides fields of the recipe `plain`, or of the preset that its key `preset` names.

    Args:
        name_or_file: a name in `PRESETS`, or the path of a TOML file.
        overrides: strings `key=value`.
        model: architecture to train; some presets depend on it. None for the recipe's
            `default_model`.
        task: the task, unless a file names another one.

    Raises:
        InputError: there is no such preset, file or model; a key is unknown (the message names the
            nearest); a value has the wrong type or is outside its range; or the paper has no recipe
            for the model.
    """
    if isinstance(overrides, str | Mapping):
        raise InputError(f"overrides must be a list such as ['epochs=2'], got {overrides!r:.60}")
    if model is None:
        overrides = list(overrides)
        scratch = load_recipe(name_or_file, overrides, model=_FROM_SCRATCH, task=task)
        model = default_model(scratch)
    check_path("recipe", name_or_file)
    path = Path(name_or_file)
    if name_or_file in PRESETS:
        recipe = preset(name_or_file, model, task)
    elif is_file(path):
        recipe = _from_file(path, model, task)
    else:
        missing = ": no such file" if path.suffix.lower() == ".toml" and not exists(path) else ""
        raise InputError(
            f"recipe must be one of {', '.join(PRESETS)} or a TOML file, got {name_or_file!r}"
            f"{missing or nearest(name_or_file, list(PRESETS))}"
        )
    values = {}
    for override in overrides:
        if not isinstance(override, str):
            raise InputError(f"each of overrides must be like 'epochs=2', got {override!r:.60}")
        key, equals, text = (part.strip() for part in override.partition("="))
        if not equals:
            raise InputError(f"--set must be key=value, got {override[:60]!r}")
        if not text:
            _check_field(key)
            raise InputError(f"--set must be key=value, got {override[:60]!r} without a value")
        try:
            values[key] = _parsed(f"value = {_as_toml(text)}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = text  # a string without quotes, such as bf16
        except _UNPARSABLE as error:
            raise InputError(f"--set must be key=value, got {override[:60]!r}: {error}") from error
    return _with(recipe, values)


def _as_toml(text: str) -> str:
    """Convert a number or boolean to TOML's spelling: `.1` to 0.1, `True` to true."""
    if text in ("True", "False"):
        return text.lower()
    return re.sub(r"^([+-]?)\.(?=\d)", r"\g<1>0.", re.sub(r"^([+-]?\d+)\.$", r"\1.0", text))


def default_model(recipe: Recipe) -> str:
    """The model to train if none is named: the embedded one if the recipe starts from weights."""
    return embedded_entry().model if recipe.pretrained else _FROM_SCRATCH


def _from_file(path: Path, model: str, task: TaskName) -> Recipe:
    try:
        with open_text(open_file(path)) as file:
            values = _parsed(file.read(_MOST_CHARACTERS + 1))
    except (OSError, *_UNPARSABLE) as error:
        raise InputError(f"recipe file must be TOML, got {path}: {error}") from error
    name = values.pop("preset", "plain")
    if name not in PRESETS:
        shown = reprlib.repr(name)
        hint = nearest(shown.strip("'"), list(PRESETS))
        raise InputError(
            f"recipe file {path}: preset must be one of {', '.join(PRESETS)}, got {shown}{hint}"
        )
    if table := next((key for key, value in values.items() if isinstance(value, dict)), None):
        raise InputError(
            f"recipe file {path}: fields must not be in a table, got {reprlib.repr(table)}; write "
            "each on a line of its own, such as epochs = 3"
        )
    own = values.get("task", task)
    return _with(preset(name, model, own), values)


def _parsed(text: str) -> dict[str, Any]:
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it may have at most {_MOST_CHARACTERS:,} characters, got more")
    return tomllib.loads(text)


def _check_field(key: str) -> None:
    if key not in KINDS:
        hint = nearest(_SHORT.get(key, key), list(KINDS))
        hint = hint or "; docs/reference/recipes.md lists all fields"
        raise InputError(f"recipe: no field is called {reprlib.repr(key)}{hint}")


def _with(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    for key, value in values.items():
        _check_field(key)
        kind = KINDS[key]
        if kind is float and type(value) is int and abs(value) < 2**63:
            values[key] = value = float(value)
        if kind is tuple:
            values[key] = value = _numbers(key, value)
        if type(value) is not kind:
            choices = CHOICES.get(key)
            rule = f"one of {', '.join(choices)}" if choices else _IN_WORDS[kind]
            raise InputError(f"recipe: {key} must be {rule}, got {reprlib.repr(value)}")
    epochs = values.get("epochs", recipe.epochs)
    if "warmup_epochs" not in values and 1 <= epochs <= recipe.warmup_epochs:
        # The warm-up was chosen for more epochs, so it shrinks in proportion.
        values["warmup_epochs"] = recipe.warmup_epochs * epochs / recipe.epochs
    first, size = recipe.first_train_size, values.get("train_size", recipe.train_size)
    if "first_train_size" not in values and first is not None and 32 <= size < first:
        # So does the first size, in steps of 8 pixels, if the last is now below it.
        shrunk = 8 * round(first * size / recipe.train_size / 8)
        values["first_train_size"] = min(size, max(32, shrunk))
    return replace(recipe, **values)


def _numbers(key: str, value: object) -> tuple[float, ...]:
    """A list of numbers, one for each channel."""
    numbers = value if isinstance(value, list) else []
    if not numbers or any(type(number) not in (int, float) for number in numbers):
        raise InputError(
            f"recipe: {key} must be a list of numbers, one for each channel, such as "
            f"[0.5, 0.5, 0.5], got {reprlib.repr(value)}"
        )
    return tuple(float(number) for number in numbers)
