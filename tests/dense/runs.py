"""Trainings of a small detector and segmenter on colored rectangles, which take seconds."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

from splitattn.architectures import Architecture
from splitattn.dense.annotated import check_same_classes
from splitattn.dense.detection import Detection, Instances
from splitattn.dense.detectors import create_detector, find_head
from splitattn.dense.masks import open_masked
from splitattn.dense.open import open_annotated
from splitattn.dense.segmentation import Segmentation
from splitattn.dense.segmenters import create_segmenter
from splitattn.training.recipe_files import load_recipe
from splitattn.training.recipes import Recipe
from splitattn.training.run import Run
from tests.dense.datasets import CLASSES, MASK_CLASSES, write_masked_splits, write_splits

ARCHITECTURE = Architecture(layers=(1, 1, 1, 1), planes=16, stem_width=8)
CHANNELS = 64
OVERFLOWING = 3e38  # the sum of two is infinite in float32
RECIPE = replace(
    load_recipe("finetune", task="detection", model="resnest14"),
    pretrained=False,
    epochs=2,
    batch_size=4,
    batch_per_device=4,
    learning_rate=0.2,
    warmup_epochs=0.5,
    frozen_stages=0,
    frozen_batch_norm=False,
    layer_decay=1.0,
    ema_decay=0.9,
    head="fcos",
    head_channels=CHANNELS,
    train_size=64,
    test_size=64,
    zoom=1.1,
    precision="fp32",
)


def make_task(folder: Path, *, train: int = 8, val: int = 4, head: str = "fcos") -> Detection:
    """Detection on the data set in `folder`/data, which is written if it is missing."""
    data = folder / "data"
    if not data.exists():
        write_splits(data, train=train, val=val, outlines=find_head(head).masks)
    found = open_annotated(data, "train")
    kind = Instances if find_head(head).masks else Detection
    return kind(
        model="small",
        head=head,
        train=found,
        val=check_same_classes(found, open_annotated(data, "val")),
    )


def make_run(output: Path, recipe: Recipe = RECIPE) -> Run:
    """A run on the CPU that loads images in this process."""
    return Run(recipe=recipe, output=output, device=torch.device("cpu"), workers=0)


def network(head: str = "fcos", box_head: str = "2fc") -> nn.Module:
    torch.manual_seed(0)
    return create_detector(
        ARCHITECTURE,
        num_classes=len(CLASSES),
        channels=CHANNELS,
        head=head,
        box_head=box_head,
    )


MASK_RECIPE = replace(
    load_recipe("finetune", task="segmentation", model="resnest14"),
    pretrained=False,
    epochs=2,
    batch_size=4,
    batch_per_device=4,
    learning_rate=1.0,
    warmup_epochs=0.5,
    frozen_stages=0,
    frozen_batch_norm=False,
    layer_decay=1.0,
    ema_decay=0.8,
    head="fpn",
    head_channels=CHANNELS,
    train_size=48,
    first_train_size=32,
    test_size=64,
    zoom=1.1,
    precision="fp32",
)


def make_mask_task(folder: Path, *, train: int = 8, val: int = 4) -> Segmentation:
    """Segmentation on the images and masks in `folder`/data, written if they are missing."""
    data = folder / "data"
    if not data.exists():
        write_masked_splits(data, train=train, val=val)
    return Segmentation(
        model="small", head="fpn", train=open_masked(data, "train"), val=open_masked(data, "val")
    )


def mask_network(head: str = "fpn", *, auxiliary: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return create_segmenter(
        ARCHITECTURE,
        num_classes=len(MASK_CLASSES),
        channels=CHANNELS,
        head=head,
        auxiliary=auxiliary,
    )


def spoil(weights: Path, key: str, spoiled: Path, value: float = OVERFLOWING) -> None:
    """Copy weights to `spoiled`, with `value` in all tensors whose name ends in `key`."""
    with safe_open(weights, "np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if name.endswith(key):
            tensor[...] = value
    save_file(tensors, spoiled, metadata)
