"""`splitattn train`: images become a network."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitattn.cli.options import Device
from splitattn.errors import InputError

if TYPE_CHECKING:
    from splitattn.training.recipes import Recipe


def train(
    data: Annotated[str, typer.Argument(help="Folder, Parquet shards or torchvision:NAME.")],
    output: Annotated[Path, typer.Option(help="Folder for the result, a new one.")],
    model: Annotated[str, typer.Option(help="Which architecture.")] = "resnest50",
    weights: Annotated[
        str | None, typer.Option(help="Start from these: a tag, file, folder or hf-hub:OWNER/NAME.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="plain, paper, modern, finetune, embedded, or a TOML file.")
    ] = "plain",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe: key=value.")
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(help="Text file that names the classes, one a line, in label order."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the training in the output folder, if there is."),
    ] = False,
    batch_per_device: Annotated[
        int,
        typer.Option(help="Most images that a device takes at once; more are accumulated.", min=1),
    ] = 128,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Time between checkpoints within an epoch.", min=0.0)
    ] = 5.0,
    device: Device = "auto",
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that decode images; by default as many as help.", min=0),
    ] = None,
) -> None:
    """Train a network; afterwards, `predict --weights OUTPUT/model.safetensors` uses it.

    On several devices or machines: `torchrun --nproc-per-node N -m splitattn train ...`
    """
    from torch import manual_seed

    from splitattn import distributed
    from splitattn.cli.progress import training_progress
    from splitattn.create import create_model
    from splitattn.data.sources import open_data
    from splitattn.engines.pytorch import choose_device
    from splitattn.training.loop import train as train_network
    from splitattn.training.recipes import load_recipe
    from splitattn.training.run import Run, check_data
    from splitattn.weights.catalogue import named

    name, _ = named(model)  # wrong names first of all
    chosen = load_recipe(recipe, overrides or (), model=name)
    own_device = choose_device(distributed.own_device(device))
    with distributed.processes(own_device):
        with distributed.first_process_first():  # it may download what the others then find
            train_data = open_data(data, "train", class_names)
            val_data = open_data(data, "val", class_names)
        run = Run(
            name=name,
            recipe=chosen,
            train=train_data,
            val=val_data,
            output=output,
            device=own_device,
            workers=distributed.cores_per_process() if workers is None else workers,
            batch_per_device=batch_per_device,
            checkpoint_minutes=checkpoint_minutes,
        )
        if weights is None and not (resume and run.checkpoint.exists()):
            _check_from_scratch(chosen)
        check_data(run.with_real_batch())
        manual_seed(chosen.seed)
        with distributed.first_process_first():
            network = create_model(
                model,
                weights=weights,
                num_classes=len(run.train.classes),
                drop_path=chosen.drop_path,
                drop_block=chosen.drop_block,
                dropout=chosen.dropout,
            )
        first = distributed.rank() == 0
        with training_progress(chosen.epochs, shown=first) as (on_step, on_epoch):
            measured = train_network(
                network, run, resume=resume, on_step=on_step, on_epoch=on_epoch
            )
        if first:
            typer.echo(
                f"{output / 'model.safetensors'}: top-1 {measured.top1:.2f} %, "
                f"top-5 {measured.top5:.2f} % of {measured.n} images; "
                f"{output / 'report.html'} shows how"
            )


def _check_from_scratch(recipe: "Recipe") -> None:
    if recipe.frozen_stages:
        raise InputError(
            f"frozen_stages must be 0 without weights, got {recipe.frozen_stages}: random layers "
            "would stay random; add --weights"
        )
    if recipe.layer_decay < 1:
        logging.getLogger(__name__).warning(
            "the recipe is for fine-tuning, and there are no weights to tune: add --weights"
        )
