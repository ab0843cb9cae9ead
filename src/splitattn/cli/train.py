"""`splitattn train`: images become a network."""

import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitattn.cli.options import DataClassNames, Device
from splitattn.cli.output import conclude, say

if TYPE_CHECKING:
    from splitattn.training.task import Step


def train(
    data: Annotated[
        str,
        typer.Argument(
            help="Folder, Parquet, CSV file or torchvision:NAME; boxes: COCO, VOC, YOLO; or "
            "images/ and masks/."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the result, a new one.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Which architecture; default: that of the weights, else the embedded model to "
            "fine-tune and resnest50 from scratch."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Start from these: a tag, file, folder or hf-hub:OWNER/NAME; default: the model's "
            "own to fine-tune, random ones from scratch."
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="For boxes: fcos, retinanet, faster_rcnn or mask_rcnn; for masks: fpn, deeplabv3 "
            "or fcn.",
            show_default="the first of each",
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="finetune, plain, paper, modern, tiny, distill, paper_coco, paper_ade20k, or a "
            "TOML file."
        ),
    ] = "finetune",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe: key=value.")
    ] = None,
    class_names: DataClassNames = None,
    new_classifier: Annotated[
        bool,
        typer.Option(
            "--new-classifier",
            help="Start with a random classifier, even if the weights have one of the right size.",
        ),
    ] = False,
    in_chans: Annotated[
        int | None,
        typer.Option(
            help="Channels of the images: 1 is gray; short for --set in_chans=.",
            show_default="3, RGB",
            min=1,
        ),
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Validate on part K of N of each class and train on the others; default: the "
            "data's own split, else 1/5.",
        ),
    ] = None,
    find_lr: Annotated[
        bool,
        typer.Option(
            "--find-lr",
            help="Do not train: try rising learning rates for 100 steps, draw the losses and "
            "suggest one.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the training in the output folder, if any, also for more epochs.",
        ),
    ] = False,
    batch_per_device: Annotated[
        int | None,
        typer.Option(
            help="Most images that a device takes at once; default: the recipe's. Larger batches "
            "are accumulated.",
            min=1,
        ),
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Time between checkpoints within an epoch.", min=0.0)
    ] = 5.0,
    device: Device = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that decode images; default: chosen from the CPU count.", min=0
        ),
    ] = None,
) -> None:
    """Train a network; afterwards, `predict --weights OUTPUT` uses it.

    Without labels: `--recipe distill --set teacher=WEIGHTS` learns from another network's answers.

    On several devices or machines: `torchrun --nproc-per-node N -m splitattn train ...`
    """
    from splitattn.cli.progress import starting, training_progress
    from splitattn.distributed import is_first
    from splitattn.errors import InputError
    from splitattn.libraries import require
    from splitattn.processes import limit_openmp_spin

    if find_lr and resume:
        raise InputError("--find-lr starts anew: leave out --resume")
    require("train", "torch", "torchvision")
    first = is_first()
    if not first:  # all processes would warn of the same
        logging.getLogger("splitattn").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
    with starting("starting", shown=first):
        # What needs no PyTorch comes first, so that most mistakes are reported at once.
        from splitattn.engines.table import check_device
        from splitattn.training_plan import plan_training

        check_device(device)
        plan = plan_training(
            data,
            output,
            model=model,
            weights=weights,
            head=head,
            recipe=recipe,
            overrides=[
                *(overrides or ()),
                *([] if in_chans is None else [f"in_chans={in_chans}"]),
            ],
            class_names=class_names,
            new_classifier=new_classifier,
            fold=fold,
            batch_per_device=batch_per_device,
            new_output=not (resume or find_lr),
        )
        limit_openmp_spin()
        from splitattn import launch

    with training_progress(shown=first) as (on_step, on_epoch, on_measured):
        if find_lr:
            if first and not sys.stderr.isatty():
                on_step = _say_rate
            found = launch.find_rate_of_plan(plan, device=device, workers=workers, on_step=on_step)
        else:
            result = launch.train_plan(
                plan,
                resume=resume,
                device=device,
                workers=workers,
                checkpoint_minutes=checkpoint_minutes,
                on_step=on_step,
                on_epoch=on_epoch,
                on_measured=on_measured,
            )
    if first and find_lr:
        conclude(
            f"--set learning_rate={found.suggestion:g} is a tenth of the rate with the lowest "
            f"loss, see {output / 'learning_rate.png'}"
        )
    elif first:
        conclude(f"{result.weights}: {result.summary}; {result.report} shows how")


def _say_rate(step: "Step") -> None:
    """Print every tenth step of `--find-lr`, for a file."""
    if step.step % 10 == 0:
        rate, loss = step.learning_rate, step.figures["loss"]
        say(f"step {step.step + 1} of {step.steps} at most: rate {rate:.1e}, loss {loss:.3f}")
