"""The training loop: trains a network on a task with a recipe."""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from time import perf_counter
from typing import Any, Generic

import torch
from filelock import FileLock
from torch import nn

from splitattn import distributed
from splitattn.data.loading import dead_workers_named
from splitattn.errors import DataError, InputError, write_failure
from splitattn.files import remove_leftovers, replacing
from splitattn.training import resume as checkpoints
from splitattn.training.interrupt import StopRequest, stop_request
from splitattn.training.learner import Learner, micro_batches
from splitattn.training.log import Logger, TensorBoard, write_log
from splitattn.training.optimizer import learning_rate
from splitattn.training.output import claim, in_use, release, writing_to
from splitattn.training.pending import Pending
from splitattn.training.recipes import Recipe
from splitattn.training.report import write_report
from splitattn.training.resume import State, Sums
from splitattn.training.run import Run
from splitattn.training.task import Batch, Epoch, Measurement, Step, Task, epoch_text
from splitattn.weights.checkpoint import write_checkpoint

logger = logging.getLogger(__name__)

_LINES_PER_EPOCH = 20


def train(
    network: nn.Module,
    task: Task[Batch],
    run: Run,
    *,
    resume: bool = False,
    on_step: Callable[[Step], None] = lambda _: None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    on_measured: Callable[[int, int], None] = lambda _, __: None,
    loggers: Iterable[Logger] = (),
) -> Measurement:
    """Train `network` in place and write into the output folder:

    - `model.safetensors`, the result: the weights after the last epoch (the EMA's, if the recipe
      has one) and the task's metadata; `best.safetensors`, the same after the best epoch, if the
      task has a figure to compare epochs by (`Task.best`);
    - `last.pt`, the checkpoint, replaced every few minutes and after every epoch (see `resume`);
    - `log.jsonl`, `tensorboard/` (if it is installed), `report.html`, `recipe.toml`, and the task's
      own files.

    On the CPU, a run that is resumed from its checkpoint equals an uninterrupted one bit for bit.
    Ctrl-C and SIGTERM save a checkpoint and end. Under `torchrun` (see `distributed.processes`),
    every process calls this with the same arguments, except for its device; the first one writes.

    Args:
        network: the network to train.
        task: see `Task`.
        run: recipe, output folder, device and other settings.
        resume: continue from the output folder's checkpoint, if there is one. The recipe may have
            more epochs than before; schedules then follow the new number of epochs.
        on_step: called after each step.
        on_epoch: called after each epoch.
        on_measured: called during validation with the number of newly measured examples and the
            total of this process.
        loggers: receive each line of the log, in the first process. A logger that raises is dropped
            with a warning.

    Returns:
        The measurement after the last epoch.

    Raises:
        InputError: the data, the network and the recipe do not fit each other; the output folder
            holds another training or cannot be written; the loss is no longer finite; a worker
            process dies; or the task stops the training.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, with the state saved unless
            another process has ended.
    """
    asked = run.recipe.batch_size
    check(task, run)
    run = run.with_real_batch()
    if (real := run.recipe.batch_size) != asked and distributed.rank() == 0:
        logger.warning(
            "batch_size is %d instead of %d, to be split into %d equal parts",
            *(real, asked, real // run.batch_per_device),
        )
    if run.batch_per_device == 1 and _norms_are_local(run.recipe) and distributed.rank() == 0:
        logger.warning(
            "each device gets one example at a time, from which the batch norm of the attention "
            "learns nothing: set batch_size to at least two for each device"
        )
    with (
        dead_workers_named(),
        stop_request() as stop,
        _Training(
            Learner(network, task, run), stop, on_step, on_epoch, on_measured, loggers
        ) as training,
    ):
        training.begin(resume)
        return training.to_the_end()


def _norms_are_local(recipe: Recipe) -> bool:
    """Whether batch norms learn from the examples of their own device only."""
    over_all = recipe.sync_batch_norm and distributed.world_size() > 1
    return not (recipe.frozen_batch_norm or over_all)


def check(task: Task[Any], run: Run) -> None:
    """Raise if data and recipe do not work together, before training starts.

    Raises:
        InputError: see `train`.
    """
    real = run.with_real_batch()
    task.check(real)
    if run.recipe.patience and not task.best:
        raise InputError(
            f"patience must be 0 for {task.name}, which has no figure to compare epochs by, "
            f"got {run.recipe.patience}"
        )
    if task.examples < real.recipe.batch_size:
        raise DataError(
            f"batch_size must be at most the number of training {task.unit}, {task.examples}, got "
            f"{run.recipe.batch_size}; set batch_size to {min(16, task.examples)}"
        )


class _Training(Generic[Batch]):
    """A running training: its state and its output."""

    def __init__(
        self,
        learner: Learner[Batch],
        stop: StopRequest,
        on_step: Callable[[Step], None],
        on_epoch: Callable[[Epoch], None],
        on_measured: Callable[[int, int], None],
        loggers: Iterable[Logger],
    ) -> None:
        self.learner, self.task, self.run = learner, learner.task, learner.run
        self.stop, self.on_step, self.on_epoch = stop, on_step, on_epoch
        self.on_measured = on_measured
        self.writes = distributed.rank() == 0
        self.loggers = list(loggers) if self.writes else []
        self.epochs = self.run.recipe.epochs
        self.steps_per_epoch = self.task.examples // self.run.recipe.batch_size
        self.identity = {
            "task": self.task.name,
            **self.task.identity(),
            "recipe": asdict(self.run.recipe),
        }
        self.state = State()
        self.pending: Pending | None = None
        self.saved_at = self.stepped_at = perf_counter()
        self.tensorboard: TensorBoard | None = None
        self.lock: FileLock | None = None

    def begin(self, resume: bool) -> None:
        """Restore the checkpoint, if there is one, or create the folder."""
        run = self.run
        with writing_to(run.output):
            if self.writes:  # lock first: another training may just be ending
                run.output.mkdir(parents=True, exist_ok=True)
                self.lock = claim(run.output)
            exists = run.checkpoint.exists()
        if exists:
            if not resume and not checkpoints.of_this_launch(run.checkpoint):
                raise in_use(run.output)
            self.state, before = checkpoints.restore(
                run.checkpoint, self.identity, self.learner.parts()
            )
            if self.learner.ema:
                self.learner.ema.updates = self.state.step
            if before and self.writes and not self._out_of_patience():
                logger.warning(
                    "epochs raised from %d to %d: the learning rate now follows the schedule of %d "
                    "epochs, from %.2g",
                    *(before, self.epochs, self.epochs),
                    learning_rate(run.recipe, self.state.step, self.steps_per_epoch),
                )
        elif resume and self.writes:
            logger.warning("%s has no training to resume: a new one begins", run.output)
        # Also a barrier: the first process must not write before the others have looked.
        steps = set(distributed.gathered(self.state.step))
        if len(steps) > 1:
            raise InputError(
                f"output must be one folder that all machines share, got {run.output} with "
                f"trainings at steps {', '.join(map(str, sorted(steps)))}"
            )
        if self.writes:
            with writing_to(run.output):
                remove_leftovers(run.output)
                with replacing(run.output / "recipe.toml") as path:
                    path.write_text(run.recipe.to_toml(), encoding="utf-8")
                self.tensorboard = TensorBoard(run.output / "tensorboard", self.state.step)

    def __enter__(self) -> "_Training[Batch]":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Close files and release the folder."""
        if self.tensorboard:
            self.tensorboard.close()
        self._tell(lambda logger: _end(logger, error))
        if self.lock:
            release(self.lock)

    def to_the_end(self) -> Measurement:
        """Train the remaining epochs; return the last measurement."""
        measured = None
        while self.state.epochs_done < self.epochs and not self._out_of_patience():
            epoch = self.state.epochs_done
            self._train_epoch(epoch)
            self._save()
            measured = self._measure()
            self._end_epoch(epoch, measured)
        if self.state.epochs_done < self.epochs and self.writes:
            logger.warning(
                "ended after %d of %d epochs: no better %s since epoch %d",
                *(self.state.epochs_done, self.epochs),
                self.task.formats[self.task.best or "loss"].label,
                self.state.epochs_done - self._epochs_since_best(),
            )
        elif measured is None and self.writes:
            logger.warning(
                "the training is finished, epoch %d of %d, and is only measured again; "
                "--set epochs=N trains for more",
                *(self.state.epochs_done, self.epochs),
            )
        if measured is None:  # a finished training was resumed
            measured = self._measure()
        self._finish(measured)
        return measured

    def _out_of_patience(self) -> bool:
        """Whether `Task.best` has not improved for the recipe's `patience` epochs."""
        patience = self.run.recipe.patience
        return bool(patience) and self._epochs_since_best() >= patience

    def _epochs_since_best(self) -> int:
        """The number of epochs after the best one."""
        lines = [line for line in self.state.history if line["kind"] == "epoch"]
        figures = [line[f"val_{self.task.best}"] for line in lines]
        if not figures:
            return 0
        best = max(figures) if self.task.higher_is_better else min(figures)
        return len(figures) - 1 - figures.index(best)

    def _train_epoch(self, epoch: int) -> None:
        """Train the remaining steps of `epoch`."""
        run, learner, state = self.run, self.learner, self.state
        first_step = state.step - epoch * self.steps_per_epoch
        if first_step == self.steps_per_epoch:  # stopped before it was measured
            return
        self.task.begin_epoch(learner.network, epoch, run.recipe)
        learner.network.train()
        self.stepped_at = perf_counter()
        for batches in micro_batches(self.task, run, epoch, first_step):
            rate = learning_rate(run.recipe, state.step, self.steps_per_epoch)
            pending = learner.step(state.step, batches, rate)
            self._settle()
            self.pending = pending
            state.step += 1
            if run.device.type == "cpu":
                self._settle()
            # All processes must stop after the same step, or some would wait forever.
            if distributed.summed(torch.tensor(int(bool(self.stop)))).item():
                self._save()
                self._leave()
            if perf_counter() - self.saved_at > 60 * run.checkpoint_minutes:
                self._save()
        self._settle()

    def _settle(self) -> None:
        """Read the figures of the previous step; log them, and check that they are finite.

        Reading them one step late keeps the GPU busy.
        """
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        figures = pending.figures()
        now = perf_counter()
        examples = self.run.recipe.batch_size
        sums = Sums(figures=figures, examples=examples, seconds=now - self.stepped_at)
        self.stepped_at = now
        step = Step(
            step=pending.step,
            steps=self.epochs * self.steps_per_epoch,
            epoch=pending.step // self.steps_per_epoch,
            epochs=self.epochs,
            figures=self.task.means(figures, examples),
            formats=self.task.formats,
            learning_rate=pending.learning_rate,
            examples=examples,
            unit=self.task.unit,
            seconds=sums.seconds,
        )
        if self.learner.skips_every_step or not math.isfinite(step.figures["loss"]):
            raise step.diverged("stay finite")
        self.task.watch(step, figures, self.run)
        self.state.epoch += sums
        self.state.recent += sums
        if (step.step + 1) % max(self.steps_per_epoch // _LINES_PER_EPOCH, 1) == 0:
            self._log_recent(step)
        self.on_step(step)

    def _log_recent(self, step: Step) -> None:
        recent, self.state.recent = self.state.recent, Sums()
        self._log(
            {
                "kind": "train",
                "step": step.step + 1,
                "epoch": (step.step + 1) / self.steps_per_epoch,
                **self.task.means(recent.figures, recent.examples),
                "learning_rate": step.learning_rate,
                f"{self.task.unit}_per_second": recent.examples / recent.seconds,
            }
        )

    def _log(self, line: dict[str, Any]) -> None:
        self.state.history.append(line)
        if self.tensorboard:
            with writing_to(self.run.output):
                self.tensorboard.add(line, self.state.step)
        self._tell(lambda logger: logger.add(line, self.state.step))

    def _tell(self, what: Callable[[Logger], None]) -> None:
        """Call `what` with each logger; drop loggers that raise, so that training continues."""
        for one in [*self.loggers]:
            try:
                what(one)
            except Exception as error:
                self.loggers.remove(one)
                logger.warning("%s is dropped: %s", type(one).__name__, error)

    def _measure(self) -> Measurement:
        def on_measured(done: int, total: int) -> None:
            self.on_measured(done, math.ceil(total / distributed.world_size()))
            if self.stop:
                self._leave()

        self.learner.update_candidate()
        measured = self.task.measure(self.learner.candidate, self.run, on_measured)
        if not math.isfinite(loss := measured.figures.get("loss", 0.0)):
            raise InputError(
                f"the loss must stay finite, got {loss} in validation after step "
                f"{self.state.step}; lower learning_rate or use precision fp32"
            )
        return measured

    def _end_epoch(self, epoch: int, measured: Measurement) -> None:
        task, state = self.task, self.state
        facts = task.end_epoch(epoch, self.run)
        means = task.means(state.epoch.figures, state.epoch.examples)
        line = {
            "kind": "epoch",
            "epoch": epoch,
            **{f"train_{name}": value for name, value in means.items()},
            **{f"val_{name}": value for name, value in measured.figures.items()},
            **facts,
            "seconds": round(state.epoch.seconds, 1),
        }
        state.epoch = Sums()
        self._log(line)
        if task.best:
            figure = measured.figures[task.best]
            score = figure if task.higher_is_better else -figure
            if score > state.best:
                state.best = score
                self._write("best.safetensors", measured)
        self._save()
        text = epoch_text(task, facts, means["loss"], measured.figures)
        self.on_epoch(Epoch(epoch=epoch, epochs=self.epochs, line=line, text=text))

    def _finish(self, measured: Measurement) -> None:
        """Write the result and copy its weights into the network."""
        self.learner.finish()
        self._write("model.safetensors", measured)
        if not self.writes:
            return
        try:
            write_report(
                self.run.output / "report.html",
                self.task.report(self.run, measured),
                history=self.state.history,
                recipe=asdict(self.run.recipe),
            )
        except OSError as error:  # the weights are written, so do not fail
            logger.warning("no report: %s", write_failure(self.run.output / "report.html", error))

    def _write(self, name: str, measured: Measurement) -> None:
        """Write the weights that were measured."""
        if self.writes:
            state_dict = self.learner.as_saved(self.learner.candidate)
            metadata = self.task.metadata(self.run, measured)
            write_checkpoint(self.run.output / name, state_dict, metadata)

    def _save(self) -> None:
        """Save the checkpoint and the log."""
        self._settle()
        self.saved_at = perf_counter()
        if not self.writes:
            return
        run, state = self.run, self.state
        parts = {name: part.state_dict() for name, part in self.learner.parts().items()}
        metadata = self.task.metadata(run, None)
        text = metadata.to_json() if metadata else None
        checkpoints.save(run.checkpoint, self.identity, state, parts, metadata=text)
        with writing_to(run.output):
            write_log(run.output / "log.jsonl", state.history)
            self.task.write_files(run.output)

    def _leave(self) -> None:
        """Log the step that was saved, and end the process as the signal would have."""
        if self.writes:
            steps = self.epochs * self.steps_per_epoch
            logger.warning(
                "stopped and saved after step %d of %d; --resume continues", self.state.step, steps
            )
        self.stop.obey()


def _end(logger: Logger, error: BaseException | None) -> None:
    """Call a logger's `abort` if there is an error and it has one, otherwise its `close`."""
    abort = getattr(logger, "abort", None)
    if error is not None and callable(abort):
        abort(error)
    else:
        logger.close()
