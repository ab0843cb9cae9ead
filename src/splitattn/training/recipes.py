"""Recipes: the immutable hyperparameters of a training."""

import json
import logging
import math
from collections.abc import Container
from dataclasses import dataclass, fields, replace
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from splitattn.data.augmentation import Augmentation, AutoAugment, Crop, Interpolation
from splitattn.errors import InputError, check_choice
from splitattn.preprocessing import (
    MOST_CHANNELS,
    Preprocessing,
    rescaled,
    with_channels,
)

Precision = Literal["fp32", "bf16", "fp16", "auto"]
Order = Literal["crop-resize", "resize-crop"]
TaskName = Literal["classification", "detection", "distillation", "multi-label", "segmentation"]
Optimizer = Literal["sgd", "adamw"]
Imitation = Literal["logits", "features"]
DetectionHeadName = Literal["fcos", "retinanet", "faster_rcnn", "mask_rcnn"]
SegmentationHeadName = Literal["fpn", "deeplabv3", "fcn"]
HeadName = Literal[DetectionHeadName, SegmentationHeadName]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters; by default Nesterov SGD, warm-up, cosine, label smoothing and mixup.

    The defaults follow paper section 5.1.

    Attributes:
        task: "classification", "multi-label", "distillation", "detection" or "segmentation".
        pretrained: start from weights: the named ones, or the model's default weights. If False,
            start from random weights unless weights are named.
        epochs: passes over the training images.
        patience: stop after this many epochs without a better validation figure; 0 never stops.
            `best.safetensors` has the weights of the best epoch.
        batch_size: images per step, over all devices and accumulated micro-batches.
        batch_per_device: most images that a device processes at once, over which batch norm
            computes its statistics. Larger batches are accumulated.
        optimizer: "sgd" (Nesterov) or "adamw" (arXiv 1711.05101, with PyTorch's betas).
        learning_rate: at the peak, for 256 images; it scales linearly with the batch size.
        schedule: of the learning rate after the warm-up. "cosine" is half a cosine to zero, "step"
            is a tenth after two thirds and a hundredth after eight ninths of the steps, "poly" is
            the share of remaining steps to the power of 0.9.
        warmup_epochs: epochs over which the learning rate rises linearly from zero. If only
            `epochs` is changed, to no more than these, they shrink in proportion.
        momentum: of SGD; AdamW does not use it.
        weight_decay: of the weights of convolutions and dense layers, not of biases and norms.
        clip_norm: largest norm of the gradient of all weights; larger ones are scaled down; 0 is
            off.
        layer_decay: the learning rate of layer4 is multiplied by this, that of layer3 by its
            square, and so on to the stem; 1 is off.
        backbone_rate: factor of the learning rate of stem and stages; 1 is off.
        frozen_stages: how many of stem, layer1, ..., layer4 are frozen, from the front, as in
            `Backbone`.
        frozen_batch_norm: whether all batch norms of stem and stages are frozen, as in `Backbone`.
            Batches of a few images are too small for statistics.
        ema_decay: of the exponential moving average (EMA) of the weights, which is then measured
            and saved; 0 is off.
        class_weights: "balanced" weighs the loss of each label by the inverse of its number of
            images, 1 on average over the images. For segmentation, by the inverse of the square
            root of its number of pixels, 1 on average over the pixels.
        sampling: "uniform" draws each image once in an epoch. "balanced" draws each class equally
            often: images of small classes several times, with different augmentation, and some
            images of large classes not at all. It needs labels.
        label_smoothing: probability mass taken from the label and spread over all classes; must be
            0 if images may have several labels.
        mixup_alpha: parameter of mixup's Beta distribution; 0 is off.
        cutmix_alpha: parameter of cutmix's Beta distribution; 0 is off. If both are on, each step
            uses one of them with equal probability.
        train_size: side of the training crops in the last epochs, in pixels.
        first_train_size: side in the first epoch; it grows linearly, in steps of 8 pixels. If only
            `train_size` is set, below it, it shrinks in proportion.
        test_size: side of the images in validation, in pixels.
        test_crop_fraction: side of the center crop in validation, as a share of the image's shorter
            side. None takes the value of the weights to start from, or of the teacher, here and
            in test_interpolation, test_order, mean and std. For random weights it is 1.
        test_interpolation, test_order: filter, and order of cropping and resizing, in validation,
            as in `Preprocessing`; for random weights "bicubic" and "crop-resize".
        in_chans: channels of the images: 3 is RGB with 8 bits each, 1 is gray. Images other than
            RGB keep their full bit depth.
        mean, std: mean and standard deviation of each channel, for values scaled to 0..1; for
            random weights those of ImageNet, or for channels that are not RGB their average.
        white_level: the value of full brightness in images of more than 8 bits per channel; None
            determines it for each image.
        head: of a detector, as in `create_detector`, or a segmenter, as in `create_segmenter`.
        head_channels: channels of the detector's feature pyramid, or of the segmenter's head.
        box_head: of two-stage detectors, as in `create_detector`.
        regions_per_image: most regions of a training image that train the second stage of a
            two-stage detector in a step.
        longest_side: limit of the longer side of a detector's or segmenter's images, as a multiple
            of the shorter side. `train_size` and `test_size` are then the shorter side; images that
            are too long become smaller. A segmenter's training images are resized to `test_size`,
            and `train_size` is the side of the crops.
        zoom: for detection and segmentation, training images are scaled by a random factor from
            1 / zoom to zoom, and cropped where they become too large; 1 is off.
        multi_scale: for detection, the shorter side of each training image is random, from this
            share of `train_size` to `train_size`; 1 is off.
        mosaic: for detection, share of the training images that are composed of four, each at half
            its size (arXiv 2004.10934, section 3.3); 0 is off.
        auxiliary_weight: for segmentation, weight of the loss of an auxiliary head on layer3 in
            training; 0 is off.
        crop_scale: smallest share of an image's area that a training crop covers.
        crop, interpolation, auto_augment, color_jitter, lighting, random_erasing: of the training
            images, as in `Augmentation`.
        dropout: probability of dropping a pooled feature; None for the architecture's.
        drop_path: stochastic depth of the last block.
        drop_block: share that DropBlock removes in the last epoch; it grows linearly from zero.
        sync_batch_norm: whether batch norm computes its statistics over all devices.
        precision: of the forward and backward passes; weights stay float32. "auto" is bf16 on
            devices with hardware support, fp32 elsewhere.
        saved_precision: of the convolution and classifier weights in the resulting file.
        seed: decides every random choice.
        teacher: for distillation, the network to learn from: weights of ours, a file that `export`
            wrote, or `timm:NAME`.
        imitation: what the student learns from the teacher. "logits": the class probabilities
            (arXiv 1503.02531). "features": also the pooled features, through a linear projection;
            the student then uses the teacher's classifier (SimKD, arXiv 2203.14001).
        temperature: divides the logits of teacher and student before the softmax.
        label_weight: share of the loss that is cross-entropy with the data's labels; 0 needs no
            labels.

    Raises:
        InputError: a value is outside its range, or two values contradict each other.
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
    head: HeadName | None = None
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
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL):
                check_choice(f"recipe: {name}", value, choices)
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
                f"from 32 to train_size, which is {self.train_size} (set both)",
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
                    f"recipe: {name} must be 0 if batch_size is 1, since an image needs another "
                    f"one to mix with, got {value!r}"
                )
        if self.optimizer == "adamw" and self.momentum != Recipe.momentum:
            raise InputError(
                f"recipe: momentum does nothing if optimizer is 'adamw', got {self.momentum!r}: "
                "leave it out, or set optimizer=sgd"
            )
        if self.sampling == self.class_weights == "balanced":
            raise InputError(
                "recipe: class_weights must be 'none' if sampling is 'balanced', got 'balanced': "
                "use one of them"
            )
        if self.task == "multi-label":
            self._check_multi_label()
        # Building these checks their fields.
        self.augmentation(0)
        _ = self.preprocessing

    def _check_multi_label(self) -> None:
        """Raise if a field needs exactly one label for each image."""
        for name, off in {
            "label_smoothing": 0.0,
            "class_weights": "none",
            "sampling": "uniform",
        }.items():
            if (value := getattr(self, name)) != off:
                raise InputError(
                    f"recipe: {name} must be {off} if images may have several labels, got {value}"
                )

    @property
    def starting_size(self) -> int:
        """Side of the training crops in the first epoch, in pixels."""
        return self.train_size if self.first_train_size is None else self.first_train_size

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of images in validation."""
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
        self,
        expected: Preprocessing,
        whose: str = "the weights to start from expect",
        *,
        unread: Container[str] = (),
    ) -> "Recipe":
        """Fill fields that are None with the preprocessing of the weights to start from.

        If the recipe sets another value, that is kept, with a warning.

        Args:
            expected: preprocessing of the weights.
            whose: the subject of the warning.
            unread: fields that the task does not use; they stay None.
        """
        expected = with_channels(rescaled(expected, self.test_size), self.in_chans)
        read = {field: name for field, name in _FROM_WEIGHTS.items() if field not in unread}
        values = {field: getattr(expected, name) for field, name in read.items()}
        for field, value in values.items():
            own = getattr(self, field)
            if own not in (None, value) and value is not None:
                logger.warning("recipe: %s is %s, but %s %s", field, own, whose, value)
        return replace(self, **{k: v for k, v in values.items() if getattr(self, k) is None})

    def network_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `create_model` for this recipe."""
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
        """Augmentation of the training images in `epoch`, counted from 0."""
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
        """All fields but those that are None, as a TOML file for `load_recipe`.

        `load_recipe` starts from the recipe `plain`, in which those fields are None too.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        # For the numbers, booleans, strings and lists of recipes, JSON is valid TOML.
        return "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items() if v is not None)


# Fields whose default comes from the weights to start from, and their names in `Preprocessing`.
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
# The allowed values of each field with a fixed set of values.
CHOICES = {k: list(get_args(hint)) for k, hint in _HINTS.items() if get_origin(hint) is Literal}
# The type of each field's values, by the field's name.
KINDS = {k: str if k in CHOICES else get_origin(hint) or hint for k, hint in _HINTS.items()}
