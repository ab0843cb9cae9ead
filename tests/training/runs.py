"""A training that takes a second: a small network learns three classes of colored noise."""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from splitattn import distributed
from splitattn.architectures import Architecture
from splitattn.create import create_model
from splitattn.data.sources import open_data
from splitattn.nn.resnest import ResNeSt
from splitattn.training.classification import Classification
from splitattn.training.recipes import Recipe
from splitattn.training.run import Run
from tests.data.datasets import write_image_folder

ARCHITECTURE = Architecture(layers=(1, 1, 1, 1), planes=16, stem_width=8)
# All random augmentation and regularization is on.
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


def make_task(folder: Path, *, train: int = 16) -> Classification:
    """Classification of the images in `folder`/data, which are written if they are missing."""
    data = folder / "data"
    if not data.exists():
        write_image_folder(data, train=train, val=4)
    return Classification(
        model="small", train=open_data(str(data), "train"), val=open_data(str(data), "val")
    )


def make_run(folder: Path, recipe: Recipe = RECIPE) -> Run:
    """A run on the CPU without workers, with its output in `folder`/out."""
    return Run(recipe=recipe, output=folder / "out", device=torch.device("cpu"), workers=0)


def network(recipe: Recipe = RECIPE) -> ResNeSt:
    torch.manual_seed(recipe.seed)
    return create_model(ARCHITECTURE, num_classes=3, **recipe.network_arguments())


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log without times and rates."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.endswith(("seconds", "_per_second"))}
        for line in lines
    ]


def forkserver() -> ForkServerContext:
    """A context that starts processes fast: it forks a server that has imported everything.

    A fork of the tests' own process may hang, because its threads have computed.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.training.runs", "tests.training.regression"])
    return context


def in_two_processes(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work` in two processes with the environment variables of torchrun.

    Args:
        work: a function at the top level of a module, which the processes import.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        forkserver().Process(target=_one_of_two, args=(rank, port, work, arguments))
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=100)
    assert [process.exitcode for process in processes] == [0, 0]


def _one_of_two(rank: int, port: int, work: Callable[..., None], arguments: tuple[Any]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "tests",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    with distributed.processes(torch.device("cpu")):
        work(*arguments)


def with_recipe(run: Run, **values: Any) -> Run:
    return replace(run, recipe=replace(run.recipe, **values))
