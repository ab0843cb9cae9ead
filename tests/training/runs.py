"""A training that takes a second: three classes of colored noise and a small network."""

from dataclasses import replace
from pathlib import Path

import torch

from splitattn.architectures import Architecture
from splitattn.create import create_model
from splitattn.data.sources import open_data
from splitattn.nn.resnest import ResNeSt
from splitattn.training.recipes import Recipe
from splitattn.training.run import Run
from tests.data.datasets import write_image_folder

ARCHITECTURE = Architecture(layers=(1, 1, 1, 1), planes=16, stem_width=8)
# Everything random is on.
RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    learning_rate=1.0,
    warmup_epochs=1.0,
    train_size=32,
    test_size=32,
    crop_scale=0.5,
    auto_augment="trivial",
    random_erasing=0.3,
    mixup_alpha=0.2,
    cutmix_alpha=1.0,
    dropout=0.1,
    drop_path=0.1,
    drop_block=0.1,
    ema_decay=0.9,
    clip_norm=5.0,
)


def make_run(folder: Path, recipe: Recipe = RECIPE, *, train: int = 16) -> Run:
    """Images of three classes below `folder`/data, the output in `folder`/out."""
    data = folder / "data"
    if not data.exists():
        write_image_folder(data, train=train, val=4)
    return Run(
        name="resnest14",
        recipe=recipe,
        train=open_data(str(data), "train"),
        val=open_data(str(data), "val"),
        output=folder / "out",
        device=torch.device("cpu"),
        workers=0,
    )


def network(recipe: Recipe = RECIPE) -> ResNeSt:
    torch.manual_seed(recipe.seed)
    return create_model(
        ARCHITECTURE,
        num_classes=3,
        drop_path=recipe.drop_path,
        drop_block=recipe.drop_block,
        dropout=recipe.dropout,
    )


def with_recipe(run: Run, **values: object) -> Run:
    return replace(run, recipe=replace(run.recipe, **values))  # type: ignore[arg-type]
