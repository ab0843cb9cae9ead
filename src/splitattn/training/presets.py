"""Named recipes: the paper's, and those that this project measured."""

from dataclasses import replace

from splitattn.architectures import architecture, split_name
from splitattn.errors import InputError
from splitattn.preprocessing import center_crop
from splitattn.training.recipes import Recipe
from splitattn.weights.catalogue import default_preprocessing

PRESETS = (
    *("plain", "tiny", "paper", "modern", "finetune", "distill"),
    *("paper_coco", "paper_ade20k"),
)


def preset(name: str, model: str, task: str) -> Recipe:
    """The recipe called `name`, one of `PRESETS`, for a model and a task.

    Raises:
        InputError: the task or the model has no such recipe.
    """
    if task == "detection":
        return _detection(name)
    if task == "segmentation":
        return _segmentation(name, model)
    if name == "paper_coco":
        return _detection(name)
    if name == "paper_ade20k":
        return _segmentation(name, model)
    if task == "multi-label" and name != "distill":  # distillation needs no labels
        one_label = preset(name, model, "classification")
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


# For resnest26_tiny on Tiny ImageNet, whose images have 64 pixels, on two processor cores. Smaller
# crops and mixup made the first epochs worse, so there is little augmentation.
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

# Batch size, batch size per device, training size and test size of each published model. Sources:
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
    """The settings of the published weights, which were trained with MXNet on 8 to 64 V100."""
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
    """A newer recipe than the paper's, with more regularization and less computation.

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
    """Fine-tune weights in a few epochs, with smaller learning rates near the stem."""
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
    """Distill a small student from another network, on a computer without a GPU.

    Crops grow during training, since small ones are cheap. A small crop cannot contradict its
    label, since the teacher labels the same crop.
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
    four convolutions in the box head, shorter sides of 640 to 800 pixels. Its "precise batch norm",
    which recomputes statistics before each evaluation, is left out.
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

    `plain` follows torchvision's references: crops of 480 pixels from images of 520 pixels, scaled
    by up to 2. All batch norms of the backbone are frozen, as in detectors.

    `paper_ade20k` is how the paper's segmenters were trained on ADE20K (experiments/segmentation of
    PyTorch-Encoding): batch norms over all GPUs, ten times the backbone's learning rate for the
    heads, and an auxiliary head whose loss has weight 0.2. ResNeSt-50 was trained for 120 epochs,
    larger networks for 180.
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
    """`size` rounded to a multiple of 16: 0.57 and 0.8 of 224 pixels become 128 and 176."""
    return max(round(size / 16) * 16, 32)


def _crop_fraction(size: int) -> float:
    # Small images are not cropped.
    return center_crop(size).crop_fraction if size >= 128 else 1.0
