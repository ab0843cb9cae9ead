"""How a network is trained: a frozen recipe, presets by name, files and overrides."""

import json
import logging
import math
import re
import reprlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from splitattn.architectures import architecture, split_name
from splitattn.data.augmentation import Augmentation, AutoAugment, Crop, Interpolation
from splitattn.errors import InputError, nearest
from splitattn.files import is_file
from splitattn.preprocessing import (
    MOST_CHANNELS,
    Preprocessing,
    center_crop,
    rescaled,
    with_channels,
)
from splitattn.weights.catalogue import default_preprocessing, embedded_entry

Precision = Literal["fp32", "bf16", "fp16", "auto"]
Order = Literal["crop-resize", "resize-crop"]
TaskName = Literal["classification", "detection", "distillation", "multi-label", "segmentation"]
Optimizer = Literal["sgd", "adamw"]
Imitation = Literal["logits", "features"]
logger = logging.getLogger(__name__)

PRESETS = (
    *("plain", "tiny", "paper", "modern", "finetune", "distill"),
    *("paper_coco", "paper_ade20k"),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Nesterov SGD with warm-up and cosine, label smoothing and mixup (paper section 5.1).

    Attributes:
        task: what is learned.
        pretrained: training starts from weights: the model's default ones unless others are named.
            Otherwise it starts at random unless weights are named.
        epochs: passes over the training images.
        patience: the training ends after so many epochs without a better figure than before; 0 is
            never. The best epoch is in `best.safetensors`.
        batch_size: images per step, over all devices and accumulated micro-batches together.
        batch_per_device: most images that a device takes at once, and so what batch norm takes its
            statistics over. A larger share of the batch is accumulated.
        optimizer: "sgd" is Nesterov's method, "adamw" that of Loshchilov and Hutter (arXiv
            1711.05101) with PyTorch's betas.
        learning_rate: at the peak, for a batch of 256; other batches scale it linearly.
        schedule: of the learning rate after the warm-up, to zero: "cosine" is half a cosine, "step"
            a tenth after two thirds and a hundredth after eight ninths of the steps, and "poly"
            the share of steps that are left to the power of 0.9.
        warmup_epochs: epochs over which it rises from zero. If `epochs` alone is set to no more
            than these, they shrink in proportion.
        momentum: of Nesterov's method; AdamW does not use it.
        weight_decay: on the weights of convolutions and the classifier, never on biases and norms.
        clip_norm: longest gradient of all weights together; longer ones are shortened; 0 is off.
        layer_decay: the learning rate of layer4 is multiplied by this, that of layer3 by its
            square, and so on to the stem; 1 is off.
        backbone_rate: the learning rate of stem and stages is multiplied by this too; 1 is off.
        frozen_stages: how many of stem, layer1, ..., layer4 are frozen, from the front, as in
            `Backbone`.
        frozen_batch_norm: whether all batch norms of stem and stages keep what they are, as in
            `Backbone`. Batches of a few images are too small for statistics.
        ema_decay: of the exponential moving average (EMA) of the weights, which is then what is
            measured and saved; 0 is off.
        class_weights: "balanced" weighs the loss of each label by the inverse of its number of
            images, 1 on average over the images. For segmentation, by the inverse of the square
            root of its number of pixels, 1 on average over the pixels.
        sampling: "uniform" draws each image once in an epoch. "balanced" draws each class equally
            often: images of small classes several times, each time augmented anew, and some of
            large classes not at all; for images with labels.
        label_smoothing: probability mass taken from the label and spread over all classes; 0 where
            images may have several labels.
        mixup_alpha: of the Beta distribution that mixes each batch with its reverse; 0 is off.
        cutmix_alpha: of the Beta distribution of the share of each image that shows another one; 0
            is off. With mixup on too, a fair coin decides which of the two a step takes.
        train_size: side of the training crops in the last epochs, in pixels.
        first_train_size: side in the first epoch; it grows evenly, in steps of 8 pixels.
        test_size: side of the images when the network is measured.
        test_crop_fraction: side of the central crop then, as a share of the image's shorter side.
            None, here and in the next four fields, takes what the weights to start from expect, or
            the teacher if there is one. At random weights it is 1.
        test_interpolation, test_order: filter and order of cropping and resizing then, as in
            `Preprocessing`; at random weights "bicubic" and "crop-resize".
        in_chans: channels of the images: 3 is RGB with 8 bits each, 1 gray. Other images than RGB
            keep all their bits.
        mean, std: of each channel, of values scaled to 0..1, in training and when the network is
            measured; at random weights those of ImageNet. Channels that are not RGB take the
            average of the three.
        white_level: the value of full brightness in images of more than 8 bits per channel; None
            takes it from each image.
            measured; at random weights those of ImageNet.
        head: of a detector, as in `create_detector`, or a segmenter, as in `create_segmenter`.
        head_channels: of each map of its feature pyramid, or of the segmenter's head.
        box_head: of detectors of two stages, as in `create_detector`.
        regions_per_image: of these, at most so many regions of a training image teach the second
            stage in a step.
        longest_side: of its images, as a multiple of their shorter side: those that are longer
            become smaller than `train_size` and `test_size`, which are then the shorter side. A
            segmenter's training images become as large as `test_size` says, and `train_size` is the
            side of the crops.
        zoom: its training images are scaled by a random factor from 1 / zoom to zoom, and cut
            where they become too large; 1 is off.
        multi_scale: for detection, the shorter side of each training image is drawn from this share
            of `train_size` up to it; 1 is off.
        mosaic: share of the training images of detection that are put together of four, each at
            half its size (arXiv 2004.10934, section 3.3); 0 is off.
        auxiliary_weight: of the loss of a further head on layer3, for segmentation in training
            only; 0 is off.
        crop_scale: smallest share of an image's area that a training crop covers.
        crop, interpolation, auto_augment, color_jitter, lighting, random_erasing: of the training
            images, as in `Augmentation`.
        dropout: probability of dropping a pooled feature; None leaves it to the architecture.
        drop_path: stochastic depth of the last block.
        drop_block: share that DropBlock removes in the last epoch; it grows from zero, epoch by
            epoch.
        sync_batch_norm: whether batch norm takes its statistics over all devices.
        precision: of the arithmetic in the forward and backward passes; weights stay float32.
            "auto" is bf16 on devices that compute it in hardware, fp32 elsewhere.
        saved_precision: of the convolution and classifier weights in the resulting file.
        seed: decides every random choice.
        teacher: for distillation, the network to learn from: weights of ours, a file that `export`
            wrote, or `timm:NAME`.
        imitation: what the student learns of the teacher. "logits": the class probabilities
            (arXiv 1503.02531). "features": the pooled features too, through a linear projection,
            and the teacher's own classifier reads them (SimKD, arXiv 2203.14001).
        temperature: divides the logits of teacher and student before the softmax.
        label_weight: share of the loss that is cross-entropy with the data's labels; 0 needs no
            labels.

    Raises:
        InputError: a value is outside its range, or two of them exclude each other.
    """

    task: TaskName = "classification"
    pretrained: bool = False
    epochs: int = 90
    patience: int = 0
    batch_size: int = 256
    batch_per_device: int = 128
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.1
    schedule: Literal["cosine", "step", "poly"] = "cosine"
    warmup_epochs: float = 5.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 0.0
    layer_decay: float = 1.0
    backbone_rate: float = 1.0
    frozen_stages: int = 0
    frozen_batch_norm: bool = False
    ema_decay: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["uniform", "balanced"] = "uniform"
    label_smoothing: float = 0.1
    mixup_alpha: float = 0.2
    cutmix_alpha: float = 0.0
    train_size: int = 224
    first_train_size: int | None = None
    test_size: int = 224
    test_crop_fraction: float | None = None
    test_interpolation: Interpolation | None = None
    test_order: Order | None = None
    in_chans: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    white_level: float | None = None
    head: str | None = None
    head_channels: int = 256
    box_head: Literal["2fc", "4conv1fc"] = "2fc"
    regions_per_image: int = 512
    longest_side: float = 5 / 3
    zoom: float = 1.0
    multi_scale: float = 1.0
    mosaic: float = 0.0
    auxiliary_weight: float = 0.0
    crop_scale: float = 0.08
    crop: Crop = "random-resized"
    interpolation: Interpolation = "bilinear"
    auto_augment: AutoAugment = "none"
    color_jitter: float = 0.0
    lighting: float = 0.0
    random_erasing: float = 0.0
    dropout: float | None = None
    drop_path: float = 0.0
    drop_block: float = 0.0
    sync_batch_norm: bool = False
    precision: Precision = "fp32"
    saved_precision: Literal["fp32", "fp16"] = "fp32"
    seed: int = 0
    teacher: str | None = None
    imitation: Imitation = "logits"
    temperature: float = 1.0
    label_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices and not (value is None and name in _OPTIONAL):
                raise InputError(
                    f"recipe: {name} must be one of {', '.join(choices)}, got {value!r}"
                    f"{nearest(str(value), choices)}"
                )
        rules = {
            "epochs": (1 <= self.epochs <= 100_000, "1 to 100000"),
            "patience": (self.patience >= 0, "0 or more"),
            "batch_size": (1 <= self.batch_size <= 1_000_000, "1 to 1000000"),
            "batch_per_device": (self.batch_per_device >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate <= 1e6, "above 0, at most 1000000"),
            "warmup_epochs": (0 <= self.warmup_epochs < self.epochs, "0 or more, below epochs"),
            "momentum": (0 < self.momentum < 1, "between 0 and 1, for Nesterov's method"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "clip_norm": (self.clip_norm >= 0, "0 or more"),
            "layer_decay": (0 < self.layer_decay <= 1, "above 0, at most 1"),
            "backbone_rate": (0 < self.backbone_rate <= 1, "above 0, at most 1"),
            "frozen_stages": (0 <= self.frozen_stages <= 5, "0 to 5: stem, layer1, ..., layer4"),
            "ema_decay": (0 <= self.ema_decay < 1, "0 or more, below 1"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "0 or more, below 1"),
            "mixup_alpha": (0 <= self.mixup_alpha <= 1000, "0 to 1000"),
            "cutmix_alpha": (0 <= self.cutmix_alpha <= 1000, "0 to 1000"),
            "train_size": (32 <= self.train_size <= 4096, "32 to 4096"),
            "first_train_size": (
                32 <= self.starting_size <= self.train_size,
                f"from 32 to train_size, which is {self.train_size}",
            ),
            "test_size": (self.test_size >= 32, "at least 32"),
            "test_crop_fraction": (
                self.test_crop_fraction is None or 0 < self.test_crop_fraction <= 1,
                "above 0, at most 1",
            ),
            "in_chans": (1 <= self.in_chans <= MOST_CHANNELS, f"1 to {MOST_CHANNELS}"),
            "mean": (self._has_channels(self.mean), f"{self.in_chans} numbers, as in_chans says"),
            "std": (self._has_channels(self.std), f"{self.in_chans} numbers, as in_chans says"),
            "head_channels": (64 <= self.head_channels <= 1024, "64 to 1024"),
            "regions_per_image": (1 <= self.regions_per_image <= 2000, "1 to 2000"),
            "longest_side": (1 <= self.longest_side <= 100, "1 to 100"),
            "multi_scale": (0.1 <= self.multi_scale <= 1, "0.1 to 1"),
            "mosaic": (0 <= self.mosaic <= 1, "0 to 1"),
            "auxiliary_weight": (0 <= self.auxiliary_weight <= 10, "0 to 10"),
            "zoom": (1 <= self.zoom <= 10, "1 to 10"),
            "dropout": (self.dropout is None or 0 <= self.dropout < 1, "0 or more, below 1"),
            "drop_path": (0 <= self.drop_path < 1, "0 or more, below 1"),
            "drop_block": (0 <= self.drop_block < 1, "0 or more, below 1"),
            "seed": (0 <= self.seed < 2**63, "0 or more, below 2**63"),
            "temperature": (0 < self.temperature <= 1000, "above 0, at most 1000"),
            "label_weight": (0 <= self.label_weight < 1, "0 or more, below 1"),
        }
        for field in fields(self):
            value = getattr(self, field.name)
            holds, rule = rules.get(field.name, (True, ""))
            if isinstance(value, float) and not math.isfinite(value):
                holds, rule = False, "a finite number"
            if not holds:
                raise InputError(f"recipe: {field.name} must be {rule}, got {value!r:.60}")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if self.batch_size == 1 and (value := getattr(self, name)):
                raise InputError(
                    f"recipe: {name} must be 0 where batch_size is 1, for an image needs another "
                    f"one to mix with, got {value!r}"
                )
        if self.sampling == self.class_weights == "balanced":
            raise InputError(
                "recipe: class_weights must be 'none' where sampling is 'balanced', got "
                "'balanced': each alone makes up for classes of unequal size"
            )
        if self.task == "multi-label":
            self._check_multi_label()
        # These two check the fields that they are made of.
        self.augmentation(0)
        _ = self.preprocessing

    def _check_multi_label(self) -> None:
        """Raise for what needs exactly one label for each image."""
        for name, off in {
            "label_smoothing": 0.0,
            "class_weights": "none",
            "sampling": "uniform",
        }.items():
            if (value := getattr(self, name)) != off:
                raise InputError(
                    f"recipe: {name} must be {off} where images may have several labels, "
                    f"got {value}"
                )

    @property
    def starting_size(self) -> int:
        """Side of the training crops in the first epoch."""
        return self.train_size if self.first_train_size is None else self.first_train_size

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared when the network is measured."""
        plain = Preprocessing(
            size=self.test_size,
            crop_fraction=1.0 if self.test_crop_fraction is None else self.test_crop_fraction,
            interpolation=self.test_interpolation or "bicubic",
            order=self.test_order or "crop-resize",
            white_level=self.white_level,
        )
        plain = with_channels(plain, self.in_chans)
        return replace(plain, mean=self.mean or plain.mean, std=self.std or plain.std)

    def _has_channels(self, values: tuple[float, ...] | None) -> bool:
        return values is None or len(values) == self.in_chans

    def starting_from(
        self, expected: Preprocessing, whose: str = "the weights to start from expect"
    ) -> "Recipe":
        """The recipe with the preprocessing of the weights to start from, where it leaves it open.

        A warning names what the recipe sets to another value, and `whose` value is not taken.
        """
        expected = with_channels(rescaled(expected, self.test_size), self.in_chans)
        values = {field: getattr(expected, name) for field, name in _FROM_WEIGHTS.items()}
        for field, value in values.items():
            own = getattr(self, field)
            if own not in (None, value) and value is not None:
                logger.warning("recipe: %s is %s, but %s %s", field, own, whose, value)
        return replace(self, **{k: v for k, v in values.items() if getattr(self, k) is None})

    def network_arguments(self) -> dict[str, Any]:
        """What the network must be built with: keyword arguments of `create_model`."""
        return {
            "in_chans": self.in_chans,
            "drop_path": self.drop_path,
            "drop_block": self.drop_block,
            "dropout": self.dropout,
        }

    def progress(self, epoch: int) -> float:
        """From 0 in the first epoch to 1 in the last; 1 if there is only one."""
        return epoch / (self.epochs - 1) if self.epochs > 1 else 1.0

    def drop_block_in(self, epoch: int) -> float:
        """Share that DropBlock removes in `epoch`, counted from 0."""
        return self.drop_block * self.progress(epoch)

    def size_in(self, epoch: int) -> int:
        """Side of the training crops in `epoch`, counted from 0."""
        growth = self.progress(epoch) * (self.train_size - self.starting_size)
        size = self.starting_size + growth
        if size in (self.starting_size, self.train_size):
            return int(size)
        return max(self.starting_size, min(round(size / 8) * 8, self.train_size))

    def augmentation(self, epoch: int) -> Augmentation:
        """What happens to the training images in `epoch`, counted from 0."""
        return Augmentation(
            size=self.size_in(epoch),
            crop_scale=self.crop_scale,
            crop=self.crop,
            interpolation=self.interpolation,
            auto_augment=self.auto_augment,
            color_jitter=self.color_jitter,
            lighting=self.lighting,
            random_erasing=self.random_erasing,
            mean=self.preprocessing.mean,
        )

    def to_toml(self) -> str:
        """Every field, as a file that `load_recipe` reads back; fields that are None are not there.

        `load_recipe` starts from the plain recipe, where those are None too.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        # JSON writes numbers, truth values and the words that recipes use just as TOML does.
        return "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items() if v is not None)


# Fields that the weights to start from decide, and what `Preprocessing` calls them.
_FROM_WEIGHTS = {
    "test_crop_fraction": "crop_fraction",
    "test_interpolation": "interpolation",
    "test_order": "order",
    "mean": "mean",
    "std": "std",
    "white_level": "white_level",
}


def _without_none(hint: Any) -> Any:
    (kind,) = (arm for arm in get_args(hint) if arm is not NoneType)
    return kind


_ALL_HINTS = get_type_hints(Recipe)
_OPTIONAL = {
    k for k, hint in _ALL_HINTS.items() if isinstance(hint, UnionType) or NoneType in get_args(hint)
}
_HINTS = {k: _without_none(hint) if k in _OPTIONAL else hint for k, hint in _ALL_HINTS.items()}
_CHOICES = {k: list(get_args(hint)) for k, hint in _HINTS.items() if get_origin(hint) is Literal}
_KINDS = {k: str if k in _CHOICES else get_origin(hint) or hint for k, hint in _HINTS.items()}


# What people call fields elsewhere, for the hint at the name here.
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

# Bytes that are no text, no TOML, numbers of thousands of digits, lists in lists in lists.
_UNPARSABLE = (ValueError, RecursionError)
# Many times the longest preset, which has fewer than a thousand. Of a.a.a.a.a..., the parser takes
# time as the square of the length: half a second for this much.
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

    A file changes the plain recipe, or the preset that its key `preset` names.

    Args:
        model: architecture that it is for; some presets depend on it. None is the recipe's
            `default_model`.
        task: that it is for, unless a file names another one.

    Raises:
        InputError: no such preset, file or model, an unknown key (the message names the nearest),
            a value of the wrong type or outside its range, or a model without a paper recipe.
    """
    if model is None:
        overrides = list(overrides)
        scratch = load_recipe(name_or_file, overrides, model=_FROM_SCRATCH, task=task)
        model = default_model(scratch)
    path = Path(name_or_file)
    if name_or_file in PRESETS:
        recipe = _preset(name_or_file, model, task)
    elif is_file(path):
        recipe = _from_file(path, model, task)
    else:
        raise InputError(
            f"recipe must be one of {', '.join(PRESETS)} or a TOML file, got {name_or_file!r}"
            f"{nearest(name_or_file, list(PRESETS))}"
        )
    values = {}
    for override in overrides:
        key, equals, text = (part.strip() for part in override.partition("="))
        if not equals or not text:
            raise InputError(f"--set must be key=value, got {override[:60]!r}")
        try:
            values[key] = _parsed(f"value = {_as_toml(text)}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = text  # a bare word, such as bf16
        except _UNPARSABLE as error:
            raise InputError(f"--set must be key=value, got {override[:60]!r}: {error}") from error
    return _with(recipe, values)


def _as_toml(text: str) -> str:
    """A number or truth value as people write it, as TOML does: `.1` is 0.1, `True` is true."""
    if text in ("True", "False"):
        return text.lower()
    return re.sub(r"^([+-]?)\.(?=\d)", r"\g<1>0.", re.sub(r"^([+-]?\d+)\.$", r"\1.0", text))


def default_model(recipe: Recipe) -> str:
    """The model to train if none is named: the embedded one if the recipe starts from weights."""
    return embedded_entry().model if recipe.pretrained else _FROM_SCRATCH


def _from_file(path: Path, model: str, task: TaskName) -> Recipe:
    try:
        with path.open(encoding="utf-8-sig") as file:
            values = _parsed(file.read(_MOST_CHARACTERS + 1))
    except (OSError, *_UNPARSABLE) as error:
        raise InputError(f"recipe file must be TOML, got {path}: {error}") from error
    preset = values.pop("preset", "plain")
    if preset not in PRESETS:
        shown = reprlib.repr(preset)
        hint = nearest(shown.strip("'"), list(PRESETS))
        raise InputError(
            f"recipe file {path}: preset must be one of {', '.join(PRESETS)}, got {shown}{hint}"
        )
    own = values.get("task", task)
    return _with(_preset(preset, model, own), values)


def _parsed(text: str) -> dict[str, Any]:
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it may have at most {_MOST_CHARACTERS:,} characters, got more")
    return tomllib.loads(text)


def _with(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    for key, value in values.items():
        if key not in _KINDS:
            hint = nearest(_SHORT.get(key, key), list(_KINDS))
            raise InputError(f"recipe: no field is called {reprlib.repr(key)}{hint}")
        kind = _KINDS[key]
        if kind is float and type(value) is int and abs(value) < 2**63:
            values[key] = value = float(value)
        if kind is tuple:
            values[key] = value = _numbers(key, value)
        if type(value) is not kind:
            raise InputError(f"recipe: {key} must be {kind.__name__}, got {reprlib.repr(value)}")
    epochs = values.get("epochs", recipe.epochs)
    if "warmup_epochs" not in values and 1 <= epochs <= recipe.warmup_epochs:
        # It was meant for more epochs: the same share of fewer.
        values["warmup_epochs"] = recipe.warmup_epochs * epochs / recipe.epochs
    return replace(recipe, **values)


def _numbers(key: str, value: object) -> tuple[float, ...]:
    """A list of numbers, one a channel."""
    numbers = value if isinstance(value, list) else []
    if not numbers or any(type(number) not in (int, float) for number in numbers):
        raise InputError(
            f"recipe: {key} must be a list of numbers, one for each channel, such as "
            f"[0.5, 0.5, 0.5], got {reprlib.repr(value)}"
        )
    return tuple(float(number) for number in numbers)


def _preset(name: str, model: str, task: str) -> Recipe:
    if task == "detection":
        return _detection(name)
    if task == "segmentation":
        return _segmentation(name, model)
    if name == "paper_coco":
        return _detection(name)
    if name == "paper_ade20k":
        return _segmentation(name, model)
    if task == "multi-label" and name != "distill":  # which needs no labels
        one_label = _preset(name, model, "classification")
        return replace(one_label, task="multi-label", label_smoothing=0.0)
    if name == "tiny":
        return _TINY
    if name == "paper":
        return _paper(model)
    if name == "modern":
        return _modern(model)
    if name == "finetune":
        return _finetune(model)
    if name == "distill":
        return _distill(model)
    return Recipe()


# resnest26_tiny on Tiny ImageNet, whose images have 64 pixels, on two processor cores. Smaller
# crops and mixup made the first epochs worse, so images are left nearly as they are.
_TINY = Recipe(
    epochs=20,
    batch_size=128,
    learning_rate=0.2,
    warmup_epochs=1.0,
    weight_decay=5e-4,
    mixup_alpha=0.0,
    train_size=56,
    first_train_size=48,
    test_size=64,
    test_crop_fraction=1.0,
    crop_scale=0.5,
    precision="bf16",
    saved_precision="fp16",
)

# Batch, batch of a device, training size and test size of each published model. Sources:
# scripts/gluon/README.md of the official code and the resnest*.sh logs of GluonCV. Networks of the
# ablation follow resnest50.
_PAPER = {
    "resnest14": (1024, 128, 224, 224),
    "resnest26": (1024, 128, 224, 224),
    "resnest50": (8192, 128, 224, 224),
    "resnest101": (4096, 64, 224, 256),
    "resnest200": (2048, 32, 256, 320),
    "resnest269": (2048, 32, 320, 416),
}


def _paper(model: str) -> Recipe:
    """How the published weights were trained: with MXNet, on 8 to 64 V100."""
    model, _ = split_name(model)
    dropout = architecture(model).dropout
    row = "resnest50" if model.startswith("resnest50_fast_") else model
    if row not in _PAPER:
        raise InputError(
            f"recipe: paper must be for a model that the paper trained, {', '.join(_PAPER)} or "
            f"resnest50_fast_*, got {model}; use modern"
        )
    batch_size, batch_per_device, train_size, test_size = _PAPER[row]
    recipe = Recipe(
        epochs=270,
        batch_size=batch_size,
        batch_per_device=batch_per_device,
        train_size=train_size,
        test_size=test_size,
        test_crop_fraction=center_crop(test_size).crop_fraction,
        auto_augment="imagenet",
        color_jitter=0.4,
        lighting=0.1,
        dropout=dropout or None,
        drop_block=0.0 if model == "resnest14" else 0.1,
    )
    if train_size < 320:
        return recipe
    return replace(recipe, crop="efficientnet", crop_scale=0.1, interpolation="bicubic")


def _modern(model: str) -> Recipe:
    """What has been learnt about training since: more regularization, less arithmetic.

    Source: torchvision's second recipe ("Training SOTA with TorchVision's latest primitives"), with
    fewer epochs. Crops are smaller than test images, because cropping enlarges objects.
    """
    size = default_preprocessing(model).size
    return Recipe(
        epochs=120,
        batch_size=1024,
        weight_decay=5e-5,
        ema_decay=0.9999,
        cutmix_alpha=1.0,
        train_size=_rounded(0.8 * size),
        first_train_size=_rounded(0.57 * size),
        test_size=size,
        test_crop_fraction=_crop_fraction(size),
        auto_augment="trivial",
        random_erasing=0.1,
        precision="auto",
    )


def _finetune(model: str) -> Recipe:
    """From weights to another data set in a few epochs, with smaller steps near the stem."""
    size = default_preprocessing(model).size
    return Recipe(
        pretrained=True,
        epochs=10,
        batch_size=64,
        learning_rate=0.1,
        warmup_epochs=1.0,
        layer_decay=0.85,
        mixup_alpha=0.0,
        train_size=size,
        test_size=size,
        crop_scale=0.35,
        precision="auto",
    )


def _distill(model: str) -> Recipe:
    """From another network's answers, for a small student and a computer without a GPU.

    Crops grow, for small ones are cheap and the teacher sees the same crop. There are no labels
    that a small crop could make wrong.
    """
    size = default_preprocessing(model).size
    return Recipe(
        task="distillation",
        pretrained=True,
        epochs=30,
        batch_size=64,
        learning_rate=0.2,
        warmup_epochs=1.0,
        clip_norm=5.0,
        ema_decay=0.999,
        label_smoothing=0.0,
        mixup_alpha=0.0,
        train_size=size,
        first_train_size=_rounded(0.75 * size),
        test_size=size,
        crop_scale=0.35,
        precision="auto",
    )


def _detection(name: str) -> Recipe:
    """Recipes for detectors: `plain`, and `finetune` for a few hundred images on a small machine.

    All batch norms are frozen, as in every recipe for detectors of torchvision: batches are too
    small for statistics, above all within the attention.

    `paper_coco` is how the paper's detectors were trained on COCO (its code's configurations for
    detectron2, "1x"), on eight GPUs: batch norms over all of them in backbone, pyramid and heads,
    four convolutions in the box head, shorter sides of 640 to 800 pixels. Its precise batch norm,
    which takes the statistics anew before each evaluation, is left out.
    """
    plain = Recipe(
        task="detection",
        pretrained=True,
        epochs=12,
        batch_size=16,
        batch_per_device=4,
        learning_rate=0.16,
        warmup_epochs=0.5,
        frozen_stages=2,
        frozen_batch_norm=True,
        mixup_alpha=0.0,
        label_smoothing=0.0,
        train_size=800,
        test_size=800,
    )
    if name == "plain":
        return plain
    if name == "finetune":
        return replace(
            plain,
            optimizer="adamw",
            epochs=30,
            batch_size=8,
            batch_per_device=8,
            learning_rate=0.016,
            warmup_epochs=1.0,
            weight_decay=0.05,
            clip_norm=5.0,
            layer_decay=0.7,
            ema_decay=0.99,
            head_channels=128,
            regions_per_image=128,
            train_size=320,
            test_size=320,
            zoom=1.4,
            color_jitter=0.2,
            precision="auto",
        )
    if name == "paper_coco":
        return replace(
            plain,
            batch_per_device=2,
            learning_rate=0.32,
            schedule="step",
            warmup_epochs=0.13,
            frozen_batch_norm=False,
            sync_batch_norm=True,
            head="faster_rcnn",
            box_head="4conv1fc",
            multi_scale=0.8,
        )
    raise InputError(f"recipe: for detection it must be finetune, plain or paper_coco, got {name}")


def _segmentation(name: str, model: str) -> Recipe:
    """Recipes for segmentation: `plain`, and `finetune` for few images on a small machine.

    `plain` follows torchvision's references: crops of 480 pixels out of images of 520, scaled by
    up to 2. All batch norms of the backbone are frozen, as in detectors.

    `paper_ade20k` is how the paper's segmenters were trained on ADE20K (experiments/segmentation of
    PyTorch-Encoding): batch norms over all GPUs, ten times the backbone's learning rate for the
    heads, and an auxiliary one whose loss counts a fifth. ResNeSt-50 took 120 epochs, larger ones
    180.
    """
    plain = Recipe(
        task="segmentation",
        pretrained=True,
        epochs=30,
        batch_size=32,
        batch_per_device=8,
        learning_rate=0.16,
        warmup_epochs=1.0,
        frozen_batch_norm=True,
        mixup_alpha=0.0,
        label_smoothing=0.0,
        train_size=480,
        test_size=520,
        longest_side=4.0,
        zoom=2.0,
    )
    if name == "plain":
        return plain
    if name == "finetune":
        return replace(
            plain,
            optimizer="adamw",
            epochs=30,
            batch_size=8,
            learning_rate=0.032,
            weight_decay=0.05,
            clip_norm=5.0,
            layer_decay=0.7,
            ema_decay=0.99,
            frozen_stages=2,
            head_channels=96,
            class_weights="balanced",
            train_size=288,
            first_train_size=192,
            test_size=360,
            zoom=1.6,
            color_jitter=0.2,
            precision="auto",
        )
    if name == "paper_ade20k":
        return replace(
            plain,
            epochs=120 if split_name(model)[0] == "resnest50" else 180,
            batch_size=16,
            batch_per_device=2,
            learning_rate=0.64,
            schedule="poly",
            warmup_epochs=0.0,
            backbone_rate=0.1,
            frozen_batch_norm=False,
            sync_batch_norm=True,
            head="deeplabv3",
            auxiliary_weight=0.2,
        )
    raise InputError(
        f"recipe: for segmentation it must be finetune, plain or paper_ade20k, got {name}"
    )


def _rounded(size: float) -> int:
    """To a multiple of 16: for 224 pixels 0.57 and 0.8 give 128 and 176."""
    return max(round(size / 16) * 16, 32)


def _crop_fraction(size: int) -> float:
    # Small images are small already: a crop would leave little.
    return center_crop(size).crop_fraction if size >= 128 else 1.0
