"""Progress on stderr: a bar where a person watches, lines where a file does."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from splitattn.training.loop import Progress as Step
    from splitattn.weights.download import Progress as Download


@contextmanager
def training_progress(
    epochs: int,
) -> Iterator[tuple[Callable[["Step"], None], Callable[[dict[str, Any]], None]]]:
    """A bar per epoch with loss, rate and time left, and a line when the epoch is done."""
    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  lr {task.fields[lr]:.4f}"),
        TextColumn("{task.fields[rate]:.0f} images/s"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    task = bar.add_task("", total=None, epoch=1, loss=0.0, lr=0.0, rate=0.0)
    loss = rate = 0.0
    begun = False

    def on_step(step: "Step") -> None:
        nonlocal loss, rate, begun
        now = step.images / step.seconds
        # Smoothed over about twenty steps.
        share = 0.05 if begun else 1.0
        loss += share * (step.loss - loss)
        rate += share * (now - rate)
        begun = True
        bar.update(
            task,
            completed=step.step + 1,
            total=step.steps_per_epoch,
            epoch=step.epoch + 1,
            loss=loss,
            lr=step.learning_rate,
            rate=rate,
        )

    def on_epoch(line: dict[str, Any]) -> None:
        console.print(
            f"epoch {line['epoch'] + 1}/{epochs}  {line['size']} px  "
            f"loss {line['train_loss']:.3f}  val loss {line['val_loss']:.3f}  "
            f"top-1 {line['val_top1']:.2f} %  top-5 {line['val_top5']:.2f} %  "
            f"{line['seconds']:.0f} s"
        )
        bar.reset(task)

    with bar:
        yield on_step, on_epoch


@contextmanager
def counting(total: int | None, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left; the function that it gives counts that many more images."""
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} images/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not shown,
        # On one terminal results appear above the bar; a pipe must get them as they are.
        redirect_stdout=sys.stdout.isatty(),
    )
    task = bar.add_task("", total=total, rate=0.0)
    with bar:
        yield lambda n: bar.update(task, advance=n, rate=bar.tasks[task].speed or 0.0)


@contextmanager
def downloading() -> Iterator["Download"]:
    """A bar that appears once something is downloaded, with speed and time left."""
    console = Console(stderr=True)
    bar = Progress(
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    task = bar.add_task("", total=None, visible=False)
    with bar:
        yield lambda received, total: bar.update(
            task, completed=received, total=total, visible=True
        )
