"""How a network is trained: a frozen recipe, presets by name, files and overrides."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from splitattn.errors import InputError, nearest

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Nesterov SGD with warm-up and cosine, label smoothing and mixup (paper section 5.1).

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: at the peak, for a batch of 256; other batches scale it linearly.
        warmup_epochs: epochs over which it rises from zero.
        momentum: of Nesterov's method.
        weight_decay: on the weights of convolutions and the classifier, never on biases and norms.
        label_smoothing: probability mass taken from the label and spread over all classes.
        mixup_alpha: of the Beta distribution that mixes each batch with its reverse; 0 is off.
        train_size: side of the training crops in the last epochs, in pixels.
        first_train_size: side in the first epoch; it grows evenly, in steps of 8 pixels.
        test_size: side of the images when the network is measured.
        crop_scale: smallest share of an image's area that a training crop covers.
        drop_path: stochastic depth of the last block.
        drop_block: share that DropBlock removes in the end; it grows from zero, epoch by epoch.
        precision: of the arithmetic in the forward and backward passes; weights stay float32.
        saved_precision: of the convolution and classifier weights in the resulting file.
        seed: decides every random choice.

    Raises:
        InputError: a value is outside its range.
    """

    epochs: int = 90
    batch_size: int = 256
    learning_rate: float = 0.1
    warmup_epochs: float = 5.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    mixup_alpha: float = 0.2
    train_size: int = 224
    first_train_size: int | None = None
    test_size: int = 224
    crop_scale: float = 0.08
    drop_path: float = 0.0
    drop_block: float = 0.0
    precision: Precision = "float32"
    saved_precision: Literal["float32", "float16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 2, "at least 2, for batch norm"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "warmup_epochs": (0 <= self.warmup_epochs < self.epochs, "0 or more, below epochs"),
            "momentum": (0 < self.momentum < 1, "between 0 and 1, for Nesterov's method"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "0 or more, below 1"),
            "mixup_alpha": (self.mixup_alpha >= 0, "0 or more"),
            "train_size": (self.train_size >= 32, "at least 32"),
            "first_train_size": (
                32 <= self.starting_size <= self.train_size,
                "from 32 to train_size",
            ),
            "test_size": (self.test_size >= 32, "at least 32"),
            "crop_scale": (0 < self.crop_scale <= 1, "above 0, at most 1"),
            "drop_path": (0 <= self.drop_path < 1, "0 or more, below 1"),
            "drop_block": (0 <= self.drop_block < 1, "0 or more, below 1"),
            "precision": (self.precision in get_args(Precision), "float32 or bfloat16"),
            "saved_precision": (
                self.saved_precision in ("float32", "float16"),
                "float32 or float16",
            ),
            "seed": (0 <= self.seed < 2**63, "0 or more, below 2**63"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"recipe: {name} must be {rule}, got {getattr(self, name)!r}")

    @property
    def starting_size(self) -> int:
        """Side of the training crops in the first epoch."""
        return self.train_size if self.first_train_size is None else self.first_train_size

    def size_in(self, epoch: int) -> int:
        """Side of the training crops in `epoch`, counted from 0."""
        progress = epoch / max(self.epochs - 1, 1)
        size = self.starting_size + progress * (self.train_size - self.starting_size)
        if size in (self.starting_size, self.train_size):
            return int(size)
        return max(self.starting_size, min(round(size / 8) * 8, self.train_size))


RECIPES: dict[str, Recipe] = {
    "plain": Recipe(),
    # What the embedded model was trained with: 64-pixel images, two processor cores.
    "embedded": Recipe(
        epochs=15,
        batch_size=128,
        learning_rate=0.2,
        warmup_epochs=1.0,
        weight_decay=5e-4,
        mixup_alpha=0.1,
        train_size=56,
        first_train_size=48,
        test_size=64,
        crop_scale=0.35,
        precision="bfloat16",
        saved_precision="float16",
    ),
}


def load_recipe(name_or_file: str, overrides: Iterable[str] = ()) -> Recipe:
    """A preset by name or a TOML file of fields, with `key=value` overrides applied.

    Raises:
        InputError: no such preset or file, an unknown key (the message names the nearest), or a
            value of the wrong type or outside its range.
    """
    path = Path(name_or_file)
    if name_or_file in RECIPES:
        recipe = RECIPES[name_or_file]
    elif path.is_file():
        try:
            recipe = _with(Recipe(), tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"recipe file must be TOML, got {path}: {error}") from error
    else:
        known = ", ".join(RECIPES)
        raise InputError(
            f"recipe must be one of {known} or a TOML file, got {name_or_file!r}"
            f"{nearest(name_or_file, list(RECIPES))}"
        )
    values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"--set must be key=value, got {override!r}")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text.strip()  # a bare word, such as bfloat16
    return _with(recipe, values)


def _with(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    kinds = {field.name: type(getattr(recipe, field.name)) for field in fields(Recipe)}
    kinds["first_train_size"] = int
    for key, value in values.items():
        if key not in kinds:
            raise InputError(f"recipe: no field is called {key!r}{nearest(key, list(kinds))}")
        kind = kinds[key]
        if kind is float and type(value) is int:
            values[key] = value = float(value)
        if type(value) is not kind:
            raise InputError(f"recipe: {key} must be {kind.__name__}, got {value!r}")
    return replace(recipe, **values)
