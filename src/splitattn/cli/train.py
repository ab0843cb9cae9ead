"""`splitattn train`: images become a network."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    data: Annotated[str, typer.Argument(help="Folder, Parquet shards or torchvision:NAME.")],
    output: Annotated[Path, typer.Option(help="Folder for the result, a new one.")],
    model: Annotated[str, typer.Option(help="Which architecture.")] = "resnest50",
    weights: Annotated[str | None, typer.Option(help="Start from these: a tag or a file.")] = None,
    recipe: Annotated[str, typer.Option(help="Preset or TOML file.")] = "plain",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe: key=value.")
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(help="Text file that names the classes, one a line, in label order."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the training in the output folder.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that decode images.", min=0)] = 1,
) -> None:
    """Train a network; afterwards, `predict --weights OUTPUT/model.safetensors` uses it."""
    from torch import manual_seed

    from splitattn.cli.progress import training_progress
    from splitattn.create import create_model
    from splitattn.data.sources import open_data
    from splitattn.runtimes.pytorch import choose_device
    from splitattn.training.loop import Run
    from splitattn.training.loop import train as train_network
    from splitattn.training.recipes import load_recipe

    chosen = load_recipe(recipe, overrides or ())
    run = Run(
        name=model,
        recipe=chosen,
        train=open_data(data, "train", class_names),
        val=open_data(data, "val", class_names),
        output=output,
        device=choose_device(device),
        workers=workers,
    )
    manual_seed(chosen.seed)
    network = create_model(
        model,
        weights=weights,
        num_classes=len(run.train.classes),
        drop_path=chosen.drop_path,
        drop_block=chosen.drop_block,
    )
    with training_progress(chosen.epochs) as (on_step, on_epoch):
        measured = train_network(network, run, resume=resume, on_step=on_step, on_epoch=on_epoch)
    typer.echo(
        f"{output / 'model.safetensors'}: top-1 {measured.top1:.2f} %, "
        f"top-5 {measured.top5:.2f} % of {measured.n} images"
    )
