"""Progress on stderr: a bar on a terminal, lines elsewhere.

Rich is imported only if there is something to show.
"""

import io
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from splitattn.cli.output import say
from splitattn.errors import counted

if TYPE_CHECKING:
    from rich.console import Console

    from splitattn.bulk.plan import ShardReport
    from splitattn.training.task import Epoch, Step
    from splitattn.weights.download import Progress as Download

# Where stderr is no terminal: seconds until the first line of a training, and between later ones.
_FIRST_LINE, _NEXT_LINE = 5.0, 30.0
# Seconds: what comes within the first of these is one burst, a batch; a rate needs the second.
_BURST, _LEAST_TIMED = 0.1, 1.0


def _console(*, quiet: bool = False) -> "Console":
    """The terminal on stderr. Lines that appear above a bar are not broken: paths are copied."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, quiet=quiet, soft_wrap=True)


@contextmanager
def training_progress(
    *, shown: bool = True
) -> Iterator[
    tuple[Callable[["Step"], None], Callable[["Epoch"], None], Callable[[int, int], None]]
]:
    """A bar over the whole training with its figures and time left, and a line for each epoch.

    Until the first step it says that the training is being prepared. Where stderr is no terminal,
    there is no bar, but a line every half minute of a long epoch.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    console = _console(quiet=not shown)
    bar = Progress(
        TextColumn("{task.fields[epoch]}"),
        BarColumn(bar_width=8),
        # What does not fit is cut here, and nothing wraps.
        TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, ratio=1)),
        TimeRemainingColumn(),
        console=console,
        expand=True,
        # Rich takes FORCE_COLOR, which notebooks and CI set, for a terminal; a bar would fill logs.
        disable=not (shown and sys.stderr.isatty()),
        transient=True,
    )
    task = bar.add_task("", total=None, epoch="preparing the training", figures="")
    smoothed: dict[str, float] = {}
    measured = done = 0
    log = _Throttled(shown=shown and not sys.stderr.isatty())
    begun: float | None = None
    which = ""

    def on_step(step: "Step") -> None:
        nonlocal measured, done, begun, which
        measured, done = 0, done + 1
        begun = time.monotonic() - step.seconds if begun is None else begun
        which = f"epoch {step.epoch + 1}/{step.epochs}"
        now = {**step.figures, "rate": step.examples / step.seconds}
        share = max(0.05, 1 / done)  # over about twenty steps, or all of fewer
        for name, value in now.items():
            smoothed[name] = smoothed.get(name, value) * (1 - share) + value * share
        figures = [form.text(smoothed[k]) for k, form in step.formats.items() if k in smoothed]
        rate = f"{smoothed['rate']:.{0 if smoothed['rate'] >= 10 else 1}f} {step.unit}/s"
        figures += [rate, f"lr {step.learning_rate:.4f}"]
        bar.update(
            task,
            total=step.steps,
            completed=step.step + 1,
            epoch=which,
            figures=" ".join(figures),
        )
        left = (time.monotonic() - begun) / done * (step.steps - step.step - 1)
        log.say(
            f"{which}  step {step.step + 1}/{step.steps}  {'  '.join(figures)}  "
            f"{timedelta(seconds=round(left))} left"
        )

    def on_epoch(epoch: "Epoch") -> None:
        which, seconds = f"epoch {epoch.epoch + 1}/{epoch.epochs}", epoch.line["seconds"]
        line = f"{which}  {epoch.text}  {seconds:.0f} s"
        if console.is_terminal and len(line) > console.width:
            line = line.replace("  ", " ")
        console.print(line, soft_wrap=True)
        log.wait()

    def on_measured(more: int, total: int) -> None:
        nonlocal measured
        measured = min(measured + more, total)
        bar.update(task, figures=f"measuring {measured}/{total}")
        log.say(f"{which}  measuring {measured}/{total}".strip())

    with bar:
        yield on_step, on_epoch, on_measured


class _Throttled:
    """Prints a line on stderr at most every half minute, the first after so many seconds."""

    def __init__(self, *, shown: bool = True, first: float = _FIRST_LINE) -> None:
        self._shown = shown
        self._due = time.monotonic() + first

    def say(self, line: str) -> None:
        if self._shown and time.monotonic() >= self._due:
            say(line)
            self.wait()

    def wait(self) -> None:
        """Print nothing for half a minute, since something else has been printed."""
        self._due = time.monotonic() + _NEXT_LINE


@contextmanager
def counting(*, first: float = _NEXT_LINE) -> Iterator[Callable[[int, int | None], None]]:
    """A bar with rate and time left. The function takes how many more images are done, of how many.

    Where stderr is no terminal, a line every half minute, the first after so many seconds.
    """
    if not sys.stderr.isatty():
        yield _count_in_lines(first)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        BarColumn(bar_width=20),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
        console=_console(),
        transient=True,
        # On one terminal results appear above the bar; a pipe must get them as they are.
        redirect_stdout=sys.stdout.isatty(),
    )
    task = bar.add_task("", total=None, counts="opening the network")
    counts = _Counts()

    def count(more: int, total: int | None = None) -> None:
        bar.update(task, advance=more, total=total, counts=counts.after(more, total))

    with bar:
        yield count


class _Counts:
    """Counts images that are done, and how many are done a second.

    The results of a batch come at once, and the time until the first ones also goes into opening
    the network. So the rate is that of the images after the first burst of results, and is shown
    once a second has passed since then.
    """

    def __init__(self) -> None:
        self.done = 0
        self._first: float | None = None
        self._timed_from = (0.0, 0)  # the time and the count at the end of the first burst

    def after(self, more: int, total: int | None) -> str:
        """The count as text, with `more` images done, of how many if that is known."""
        self.done += more
        now = time.monotonic()
        self._first = now if self._first is None else self._first
        if now - self._first < _BURST:
            self._timed_from = now, self.done
        begun, already = self._timed_from
        text = counted(self.done, "image") if total is None else f"{self.done}/{total} images"
        if now - begun >= _LEAST_TIMED:
            text += f"  {(self.done - already) / (now - begun):.1f} images/s"
        return text


@contextmanager
def starting(what: str, *, shown: bool = True) -> Iterator[None]:
    """Show `what` on a terminal until the block ends or prints something else on stderr."""
    if not (shown and sys.stderr.isatty()):
        yield
        return
    with redirect_stderr(_Word(what, sys.stderr)) as word:
        try:
            yield
        finally:
            word.clear()


class _Word(io.TextIOBase):
    """A terminal that shows a word, and clears it before anything else is printed."""

    def __init__(self, what: str, terminal: TextIO) -> None:
        self._terminal, self._there = terminal, True
        terminal.write(f"{what} ...")
        terminal.flush()

    def clear(self) -> None:
        if self._there:
            self._there = False
            self._terminal.write("\r\x1b[2K")
            self._terminal.flush()

    def write(self, text: str) -> int:
        self.clear()
        return self._terminal.write(text)

    def flush(self) -> None:
        self._terminal.flush()

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._terminal.fileno()


def _count_in_lines(first: float) -> Callable[[int, int | None], None]:
    log, counts = _Throttled(first=first), _Counts()

    def count(more: int, total: int | None = None) -> None:
        line = counts.after(more, total)
        if counts.done != total:  # what comes next says so
            log.say(line)

    return count


@contextmanager
def exporting() -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """Shows each step, with a bar where it counts images; in a file, a line for each step."""
    if not sys.stderr.isatty():
        yield say, lambda _, __: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        console=_console(),
        transient=True,
    )
    task = bar.add_task("opening the network", total=None, counts="")
    counts = _Counts()

    def begin(step: str) -> None:
        nonlocal counts
        counts = _Counts()
        bar.reset(task, total=None, description=step, counts="")

    def count(more: int, total: int) -> None:
        bar.update(task, advance=more, total=total, counts=counts.after(more, total))

    with bar:
        yield begin, count


@contextmanager
def downloading() -> Iterator["Download"]:
    """A bar that appears once something is downloaded, with speed and time left."""
    if not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=_console(),
        transient=True,
    )
    task = bar.add_task("", total=None)

    def show(received: int, total: int | None) -> None:
        bar.update(task, completed=received, total=total)
        bar.start()  # not before: what stands on the terminal stays if nothing is downloaded

    try:
        yield show
    finally:
        bar.stop()


@contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """A line that says what is being done, replaced by the next; in a file, one per half minute."""
    from rich.markup import escape

    if not sys.stderr.isatty():
        yield _Throttled().say
        return
    with _console().status("") as status:
        yield lambda what: status.update(escape(what))


@contextmanager
def shards_progress() -> Iterator[
    tuple[Callable[[int], None], Callable[["ShardReport", int], None]]
]:
    """A bar of shards with images, errors, rate and time left; in a file, a line for each shard."""
    with _shards_bar() if sys.stderr.isatty() else nullcontext() as show:
        yield _shard_callbacks(show)


@contextmanager
def _shards_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar. The function takes the text beside it, and how many parts are done, of how many."""
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(
        BarColumn(bar_width=16),
        TextColumn("{task.fields[counts]}"),
        console=_console(),
        transient=True,
    )
    task = bar.add_task("", total=None, counts="opening the network")
    with bar:
        yield lambda counts, done, total: bar.update(
            task, completed=done, total=total, counts=counts
        )


def _shard_callbacks(
    show: Callable[[str, int, int | None], None] | None,
) -> tuple[Callable[[int], None], Callable[["ShardReport", int], None]]:
    """The functions of `shards_progress`. Without a bar to `show`, they print lines."""
    begun = time.monotonic()
    done = images = errors = 0
    first: float | None = None  # seconds until the first shard is done

    log = _Throttled(first=0.0)

    def on_listed(count: int) -> None:
        nonlocal begun
        begun = time.monotonic()  # of labeling, which follows
        counts = f"{counted(count, 'image')} listed"
        if show:
            show(counts, 0, None)
        else:
            log.say(counts)

    def on_shard(shard: "ShardReport", shards: int) -> None:
        nonlocal done, images, errors, first
        done, images, errors = done + 1, images + shard.labeled, errors + shard.errors
        seconds = max(time.monotonic() - begun, 0.001)
        first = first or seconds
        counts = (
            f"{done:,}/{shards:,} parts  {counted(images, 'image')}  {counted(errors, 'error')}  "
            f"{images / seconds:.1f}/s"
        )
        # The first shard of many workers ends long before the others, so it says little of the
        # time. Rich's own estimate looks back 30 seconds, in which no shard may end.
        if seconds >= 2 * first:
            # Shards of many workers end in waves. The mean time per shard is too long early in a
            # wave; without the first shard and its time, it is too short late in one. So this takes
            # the geometric mean of both.
            each = math.sqrt(seconds / done * (seconds - first) / (done - 1))
            counts += f"  {timedelta(seconds=round(each * (shards - done)))} left"
        if show:
            show(counts, done, shards)
        else:
            say(counts)

    return on_listed, on_shard
