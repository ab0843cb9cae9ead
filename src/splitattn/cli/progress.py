"""Progress on stderr: a bar where a person watches, lines where a file does."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
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
    epochs: int, *, shown: bool = True
) -> Iterator[tuple[Callable[["Step"], None], Callable[[dict[str, Any]], None]]]:
    """A bar over the whole training with its figures and time left, and a line for each epoch."""
    console = Console(stderr=True, highlight=False, quiet=not shown)
    bar = Progress(
        TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  top-1 {task.fields[top1]:.1f} %"),
        TextColumn("lr {task.fields[lr]:.4f}  {task.fields[rate]:.0f} images/s"),
        TimeRemainingColumn(),
        console=console,
        # Rich takes FORCE_COLOR, which notebooks and CI set, for a terminal; theirs would fill up.
        disable=not (shown and sys.stderr.isatty()),
        transient=True,
    )
    task = bar.add_task("", total=None, epoch=1, loss=0.0, top1=0.0, lr=0.0, rate=0.0)
    smoothed: dict[str, float] = {}

    def on_step(step: "Step") -> None:
        now = {"loss": step.loss, "top1": step.top1, "rate": step.images / step.seconds}
        for name, value in now.items():  # over about twenty steps
            smoothed[name] = smoothed.get(name, value) * 0.95 + value * 0.05
        bar.update(
            task,
            total=step.steps,
            completed=step.step + 1,
            epoch=step.epoch + 1,
            lr=step.learning_rate,
            loss=smoothed["loss"],
            top1=smoothed["top1"],
            rate=smoothed["rate"],
        )

    def on_epoch(line: dict[str, Any]) -> None:
        console.print(
            f"epoch {line['epoch'] + 1}/{epochs}  {line['size']} px  "
            f"loss {line['train_loss']:.3f}  val loss {line['val_loss']:.3f}  "
            f"top-1 {line['val_top1']:.2f} %  top-5 {line['val_top5']:.2f} %  "
            f"{line['seconds']:.0f} s",
            soft_wrap=True,
        )

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
    bar = Progress(
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    task = bar.add_task("", total=None, visible=False)
    with bar:
        yield lambda received, total: bar.update(
            task, completed=received, total=total, visible=True
        )


@contextmanager
def telling(*, shown: bool) -> Iterator[Callable[[str], None]]:
    """One line that says what is being done, and gives way to the next."""
    console = Console(stderr=True, highlight=False, quiet=not shown)
    with console.status("") as status:
        yield lambda what: status.update(escape(what))
