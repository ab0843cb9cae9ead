"""The rungs of the ladder take turns on one machine, and each turn is timed."""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from splitattn import environment
from splitattn.bench.ladder import Rung, Runner, Setting, rungs, warn_of_left_out
from splitattn.bench.peaks import Peaks, measure_peaks
from splitattn.bench.roofline import Cost, cost, roofline_seconds
from splitattn.differences import Difference, difference
from splitattn.errors import InputError
from splitattn.images.decode import decode
from splitattn.images.preprocess import normalize, preprocess
from splitattn.images.samples import sample_photographs
from splitattn.weights.catalogue import default_preprocessing

logger = logging.getLogger(__name__)

# Between turns: an engine lets its threads spin for a while after it is done.
_REST_SECONDS = 0.02
_FEWEST_ROUNDS = 2  # which have a spread
# About how long the peak rates take to measure, and the peak memory of one row, on two cores.
_PEAKS_SECONDS, _MEMORY_SECONDS = 10.0, 6.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of a rung at one batch size.

    Attributes:
        network, form, engine, precision: the rung.
        batch_size: images at once.
        milliseconds: of each timed turn; the n-th turns of all rungs were within one round.
        roofline_milliseconds: the least time that the machine needs for the network as trained.
        peak_memory: bytes, of a process that loads and runs nothing else or, on CUDA, of its
            tensors; None where it was not measured. Memory that only loading took is not counted.
        difference: the largest difference of a logit from the network as trained, in float32 on
            the same device, as a share of the largest logit.
        same_labels: images that get the label of the network as trained, in percent.
    """

    network: str
    form: str
    engine: str
    precision: str
    batch_size: int
    milliseconds: tuple[float, ...]
    roofline_milliseconds: float
    peak_memory: int | None
    difference: float
    same_labels: float

    @property
    def median(self) -> float:
        """Milliseconds for a batch."""
        return statistics.median(self.milliseconds)

    @property
    def images_per_second(self) -> float:
        """By the median."""
        return 1000 * self.batch_size / self.median


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        model: name of our network.
        batch_sizes: each is measured by itself.
        size: of the images, in pixels; None takes the model's own.
        rounds: timed turns of each rung.
        device: "cpu" or "cuda".
        ladder: measure every form and other projects' networks too, see `rungs`.
        only: text that a rung's label must hold.
        memory: whether peak memory is measured, each time in a process of its own.

    Raises:
        InputError: a number is too small, or the device another one.
    """

    model: str
    batch_sizes: tuple[int, ...] = (1, 16)
    size: int | None = None
    rounds: int = 20
    device: str = "cpu"
    ladder: bool = False
    only: str = ""
    memory: bool = True

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            got = ", ".join(map(str, self.batch_sizes)) or "none"
            raise InputError(f"batch sizes must be at least 1, got {got}")
        if self.rounds < _FEWEST_ROUNDS:
            raise InputError(
                f"rounds must be at least {_FEWEST_ROUNDS}, for their spread, got {self.rounds}"
            )
        if self.size is not None and self.size < 32:
            raise InputError(f"size must be at least 32 pixels, got {self.size}")
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"the ladder's device must be cpu or cuda, got {self.device!r}")

    def rungs(self) -> list[Rung]:
        """The rungs that take part."""
        return rungs(self.model, self.device, ladder=self.ladder, only=self.only)


def expected_seconds(plan: Plan) -> float:
    """About how long `measure` will take, from one turn of the network as trained.

    Raises:
        InputError: there is no such model or rung.
    """
    chosen = plan.rungs()
    with TemporaryDirectory() as folder:
        setting = _setting(plan, Path(folder))
    network = chosen[0].subject.trained().to(setting.device)
    turns = []
    for batch_size in plan.batch_sizes:
        images = _images(setting, batch_size)
        with torch.inference_mode():
            network(images)
            begin = time.perf_counter()
            network(images)
            _finished(images.device)
        turns.append(time.perf_counter() - begin)
    loading = sum(rung.way.seconds_to_load for rung in chosen)
    # A turn is two runs. The checks before the first round cost as much as one.
    running = sum(2 * (plan.rounds + 1) * len(chosen) * turn for turn in turns)
    memory = _MEMORY_SECONDS * len(chosen) * len(turns) if plan.memory else 0.0
    return _PEAKS_SECONDS + loading + running + memory


def measure(
    plan: Plan, *, on_step: Callable[[str], None] = lambda _: None
) -> tuple[Peaks, list[Row]]:
    """Measure every rung of the plan at every batch size.

    All rungs are loaded first. In every round each has a turn: one run to warm up and one that is
    timed, so that a machine that slows down slows all of them. Peak memory comes last. Ctrl-C keeps
    what is measured, once a batch size has two rounds.

    Args:
        on_step: called with what is being done, for people who wait.

    Raises:
        InputError: there is no such model or rung.
    """
    chosen = plan.rungs()
    warn_of_left_out(plan.model, plan.device, ladder=plan.ladder, only=plan.only)
    with TemporaryDirectory() as folder:
        setting = _setting(plan, Path(folder))
        runners: list[Runner] = []
        for rung in chosen:
            on_step(f"loading {rung.label}")
            runners.append(rung.load(setting))
        on_step("the machine's peak rates")  # right before what they are compared with
        peaks = measure_peaks(setting.device)
        costs = _costs(chosen, setting)
        rows: list[Row] = []
        for batch_size in plan.batch_sizes:
            try:
                on_step(f"batch {batch_size}, first runs")
                images = _images(setting, batch_size)
                with torch.inference_mode():
                    checks = _checks(chosen, runners, images)
                    seconds = _take_turns(plan, runners, images, on_step)
            except KeyboardInterrupt:
                if not rows:
                    raise
                logger.warning("stopped: batch %d is not measured", batch_size)
                return peaks, rows
            for rung, check, turns in zip(chosen, checks, seconds, strict=True):
                least = roofline_seconds(
                    costs[rung.subject.name],
                    peaks,
                    precision=rung.way.precision,
                    batch_size=batch_size,
                )
                rows.append(
                    Row(
                        network=rung.subject.name,
                        form=rung.subject.form,
                        engine=rung.way.engine,
                        precision=rung.way.precision,
                        batch_size=batch_size,
                        milliseconds=tuple(round(1000 * turn, 3) for turn in turns),
                        roofline_milliseconds=1000 * least,
                        peak_memory=None,
                        difference=check.relative,
                        same_labels=check.same_labels,
                    )
                )
            if len(seconds[0]) < plan.rounds:
                return peaks, rows
        # Last, since from here on nothing is timed and the machine may be busy.
        if plan.memory:
            rows = _with_peak_memory(plan, chosen, rows, folder, on_step)
    return peaks, rows


def _setting(plan: Plan, folder: Path) -> Setting:
    preprocessing = default_preprocessing(plan.model)
    preprocessing = replace(preprocessing, size=plan.size or preprocessing.size)
    photographs = [preprocess(decode(path), preprocessing) for path in sample_photographs()]
    return Setting(
        device=torch.device(plan.device),
        pixels=photographs,
        preprocessing=preprocessing,
        folder=folder,
    )


def _costs(chosen: list[Rung], setting: Setting) -> dict[str, Cost]:
    """The cost of each network, by name: it is the same for all forms of a network."""
    subjects = {rung.subject.name: rung.subject for rung in chosen}
    size = setting.preprocessing.size
    return {name: cost(subject.trained(), size) for name, subject in subjects.items()}


def _images(setting: Setting, batch_size: int) -> Tensor:
    photographs = np.stack(list(islice(cycle(setting.pixels), batch_size)))
    return torch.from_numpy(normalize(photographs, setting.preprocessing)).to(setting.device)


def _checks(chosen: list[Rung], runners: list[Runner], images: Tensor) -> list[Difference]:
    """How far each rung's outputs are from those of the network as trained."""
    expected: dict[str, Tensor] = {}
    for rung in chosen:
        if rung.subject.name not in expected:
            plain = rung.subject.trained().to(images.device)
            expected[rung.subject.name] = plain(images)
    return [
        difference(
            expected[rung.subject.name].float().cpu().numpy(),
            run(images).float().cpu().numpy(),
            image_size=images.shape[-1],
        )
        for rung, run in zip(chosen, runners, strict=True)
    ]


def _take_turns(
    plan: Plan, runners: list[Runner], images: Tensor, on_step: Callable[[str], None]
) -> list[list[float]]:
    """Seconds of each turn, by rung. Ctrl-C ends the turns early, after two whole rounds."""
    seconds: list[list[float]] = [[] for _ in runners]
    begun = time.perf_counter()
    try:
        for turn in range(plan.rounds):
            left = ""
            if turn:
                seconds_a_round = (time.perf_counter() - begun) / turn
                left = f", {seconds_a_round * (plan.rounds - turn):.0f} s left"
            on_step(f"batch {len(images)}, round {turn + 1} of {plan.rounds}{left}")
            for i in _rotated(range(len(runners)), turn):
                time.sleep(_REST_SECONDS)
                runners[i](images)
                _finished(images.device)
                begin = time.perf_counter()
                runners[i](images)
                _finished(images.device)
                seconds[i].append(time.perf_counter() - begin)
    except KeyboardInterrupt:
        whole = min(map(len, seconds))
        if whole < _FEWEST_ROUNDS:
            raise
        logger.warning(
            "stopped: batch %d has %d of %d rounds, and nothing after it is measured",
            len(images),
            whole,
            plan.rounds,
        )
        return [turns[:whole] for turns in seconds]
    return seconds


def _rotated(order: Sequence[int], by: int) -> list[int]:
    """`order` from another start, and every other time reversed: neighbors change."""
    by %= len(order)
    rotated = [*order[by:], *order[:by]]
    return rotated[::-1] if by % 2 else rotated


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _with_peak_memory(
    plan: Plan, chosen: list[Rung], rows: list[Row], folder: str, on_step: Callable[[str], None]
) -> list[Row]:
    peaks: list[int | None] = []
    try:
        for i, row in enumerate(rows):
            rung = i % len(chosen)
            on_step(f"batch {row.batch_size}, memory of {chosen[rung].label}")
            # A new process for each row, so that the memory of the others does not count.
            with ProcessPoolExecutor(1, get_context("spawn")) as executor:
                own = executor.submit(_own_peak, plan, rung, row.batch_size, folder)
                peaks.append(own.result())
    # Ctrl-C, or a system short of memory, must not lose the times, which may have taken an hour.
    except (KeyboardInterrupt, BrokenProcessPool):
        logger.warning("stopped: peak memory is known of %d of %d rows", len(peaks), len(rows))
        peaks += [None] * (len(rows) - len(peaks))
    return [replace(row, peak_memory=peak) for row, peak in zip(rows, peaks, strict=True)]


def _own_peak(plan: Plan, rung: int, batch_size: int, folder: str) -> int | None:
    """Measure a rung's peak memory in this process. Its exported file is in `folder` already."""
    setting = _setting(plan, Path(folder))
    images = _images(setting, batch_size)
    run = plan.rungs()[rung].load(setting)
    with torch.inference_mode():
        for _ in range(2):  # some engines compile for a size at once, others when it comes again
            run(images)
        if setting.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(setting.device)
        else:
            environment.forget_peak_memory()
        run(images)
    if setting.device.type == "cuda":
        return torch.cuda.max_memory_allocated(setting.device)
    return environment.peak_memory()
