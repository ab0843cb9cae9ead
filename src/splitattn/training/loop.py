"""The training loop: a built network and a data set go in, trained weights come out."""

import logging
import math
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from hashlib import sha256
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import StochasticDepth

from splitattn import distributed
from splitattn.data.loading import Batch, derive_seed, epoch_batches, train_loader
from splitattn.engines.pytorch import TorchEngine
from splitattn.errors import DataError, InputError
from splitattn.evaluation import Evaluation, evaluate
from splitattn.files import remove_leftovers, replacing
from splitattn.images.preprocess import normalize
from splitattn.nn.batch_norm import synchronize
from splitattn.nn.drop_block import DropBlock2d
from splitattn.nn.freezing import thaw
from splitattn.nn.resnest import ResNeSt
from splitattn.training import checkpoint
from splitattn.training.average import MovingAverage
from splitattn.training.checkpoint import State, Sums
from splitattn.training.interrupt import StopRequest, stop_request
from splitattn.training.log import TensorBoard, write_log
from splitattn.training.mixing import mix, smoothed_loss
from splitattn.training.optimizer import (
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from splitattn.training.precision import autocast_dtype
from splitattn.training.recipes import Recipe
from splitattn.training.report import write_report
from splitattn.training.run import Run, check_data
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata

logger = logging.getLogger(__name__)

_LINES_PER_EPOCH = 20
# Of the images of a split: with more than this unreadable, something is wrong with all of it.
_UNREADABLE_SHARE = 0.01
# A network that guesses at random has a loss of log(classes). Ten times that for ten steps running
# is no noise.
_EXPLOSION_FACTOR, _EXPLOSION_STEPS = 10, 10
# Of float16's gradients: where even that does not keep them finite, every step is skipped.
_SMALLEST_SCALE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands, told after every step.

    Attributes:
        step, steps: this step, counted from 0, of how many in the whole training.
        epoch: the epoch that the step is in, counted from 0.
        loss, top1: of the step's images, as they were mixed; top-1 in percent.
        learning_rate: of the step.
        images: images of the step, over all devices.
        seconds: what the step took.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    top1: float
    learning_rate: float
    images: int
    seconds: float


def train(
    model: ResNeSt,
    run: Run,
    *,
    resume: bool = False,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Evaluation:
    """Train `model` in place, and leave in the output folder:

    - `model.safetensors`, the result: weights (the averaged ones, if the recipe averages), classes,
      preprocessing, recipe and figures, all that `Classifier` needs; `best.safetensors` is the same
      after the epoch with the highest top-1;
    - `last.pt`, the checkpoint, replaced every few minutes and after every epoch;
    - `log.jsonl`, `tensorboard/` (where that is installed), `report.html`, `recipe.toml`, and
      `unreadable.txt` if there were such images.

    On the CPU, a run that is resumed from its checkpoint equals an uninterrupted one bit for bit.
    Ctrl-C and SIGTERM save one and leave. In processes that `torchrun` started (see
    `distributed.processes`), all of them call this, each with the same arguments but its device;
    the first of them writes.

    Args:
        resume: continue from the output folder's checkpoint, where there is one.
        on_step: told after each step.
        on_epoch: told each line of the log that ends an epoch.

    Raises:
        DataError: the data set is too small for the recipe, has one class, validates on what it
            trains on, its splits differ in their classes, or over 1 % of it cannot be read.
        InputError: the output folder holds another training or cannot be written; the loss is no
            longer finite, or explodes.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, with the state saved.
    """
    run = run.with_real_batch()
    check_data(run)
    _check_network(model, run.recipe)
    with (
        stop_request() as stop,
        closing(_Training(model, run, stop, on_step, on_epoch)) as training,
    ):
        training.begin(resume)
        return training.to_the_end()


class _Training:
    """A training under way: the parts that change, and what happens to them."""

    def __init__(
        self,
        model: ResNeSt,
        run: Run,
        stop: StopRequest,
        on_step: Callable[[Progress], None],
        on_epoch: Callable[[dict[str, Any]], None],
    ) -> None:
        self.run = run
        self.stop = stop
        self.on_step = on_step
        self.on_epoch = on_epoch
        self.writes = distributed.rank() == 0
        recipe = run.recipe

        self.model = model.to(run.device).to(memory_format=torch.channels_last)
        thaw(model)  # what an earlier training of this network froze
        model.freeze_stages(recipe.frozen_stages)
        if recipe.sync_batch_norm:
            synchronize(model)
        self.average = MovingAverage(model, recipe.ema_decay) if recipe.ema_decay else None
        self.optimizer = make_optimizer(model, recipe)
        self.autocast = autocast_dtype(recipe.precision, run.device)
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=self.autocast is torch.float16)
        # What is measured and written: the network's, or the averaged, weights as a file has them.
        self.candidate = deepcopy(model).eval()
        self.parallel: DistributedDataParallel | None = None
        if distributed.world_size() > 1:
            devices = [run.device] if run.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(model, device_ids=devices)
        self.identity = _identity(run)
        self.state = State()
        self.pending: _Pending | None = None
        self.exploded = 0
        self.saved_at = self.stepped_at = perf_counter()
        self.tensorboard: TensorBoard | None = None

    def begin(self, resume: bool) -> None:
        """Take up the checkpoint that is there, or make the folder."""
        run = self.run
        with checkpoint.writing_to(run.output):
            exists = run.checkpoint.exists()
        if exists:
            if not resume and not checkpoint.of_this_launch(run.checkpoint):
                raise InputError(
                    f"output must be a new folder, got {run.output} with a training in it; "
                    "add --resume to continue it"
                )
            self.state = checkpoint.restore(run.checkpoint, self.identity, self._parts())
        # Also a barrier, before the first of them writes what the others look for.
        steps = set(distributed.gathered(self.state.step))
        if len(steps) > 1:
            raise InputError(
                f"output must be one folder that all machines share, got {run.output} with "
                f"trainings at steps {', '.join(map(str, sorted(steps)))}"
            )
        if self.writes:
            with checkpoint.writing_to(run.output):
                run.output.mkdir(parents=True, exist_ok=True)
                remove_leftovers(run.output)
                with replacing(run.output / "recipe.toml") as path:
                    path.write_text(run.recipe.to_toml(), encoding="utf-8")
                self.tensorboard = TensorBoard(run.output / "tensorboard", self.state.step)

    def close(self) -> None:
        """Let go of files."""
        if self.tensorboard:
            self.tensorboard.close()

    def to_the_end(self) -> Evaluation:
        """Train what is left, epoch by epoch; the last measurement."""
        run, state = self.run, self.state
        measured = None
        while state.epochs_done < run.recipe.epochs:
            epoch = state.epochs_done
            self._train_epoch(epoch)
            self._save()
            measured = self._measure()
            self._end_epoch(epoch, measured)
        if measured is None:  # a finished training was resumed
            measured = self._measure()
        self._finish(measured)
        return measured

    def _parts(self) -> dict[str, Any]:
        """All that changes and has a state dict."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return parts | ({"average": self.average} if self.average else {})

    def _save(self) -> None:
        self._settle()
        self.saved_at = perf_counter()
        if not self.writes:
            return
        run, state = self.run, self.state
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        checkpoint.save(run.checkpoint, self.identity, state, parts)
        with checkpoint.writing_to(run.output):
            write_log(run.output / "log.jsonl", state.history)
            self._write_unreadable()

    def _leave(self) -> None:
        """Say where, with everything saved, and end as the signal says."""
        if self.writes:
            logger.warning(
                "stopped and saved after step %d of %d; --resume continues",
                self.state.step,
                self.run.recipe.epochs * self.run.steps_per_epoch,
            )
        self.stop.obey()

    def _train_epoch(self, epoch: int) -> None:
        """Train what is left of `epoch`."""
        run, recipe = self.run, self.run.recipe
        first_step = self.state.step - epoch * run.steps_per_epoch
        if first_step == run.steps_per_epoch:  # stopped before it was measured
            return
        self.model.set_drop_block(recipe.drop_block * epoch / max(recipe.epochs - 1, 1))
        self.model.train()
        loader = train_loader(
            run.train,
            recipe.augmentation(epoch),
            batches=epoch_batches(
                len(run.train),
                batch_size=recipe.batch_size,
                seed=recipe.seed,
                epoch=epoch,
                first_step=first_step,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
                accumulation=run.accumulation,
            ),
            workers=run.workers,
            seed=recipe.seed,
            epoch=epoch,
        )
        self.stepped_at = perf_counter()
        parts = [iter(loader)] * run.accumulation
        for batches in zip(*parts, strict=True):
            self._step(batches)
            # All processes stop after the same step, or some would wait for ever.
            new = self._note_unreadable("train", (p for batch in batches for p in batch.problems))
            stop, new = distributed.summed(torch.tensor([int(bool(self.stop)), new])).tolist()
            self.state.unreadable_in_train += new
            self._check_unreadable("train", self.state.unreadable_in_train)
            if stop:
                self._save()
                self._leave()
            if perf_counter() - self.saved_at > 60 * run.checkpoint_minutes:
                self._save()
        self._settle()

    def _step(self, batches: tuple[Batch, ...]) -> None:
        """One step of the optimizer, from the gradients of one or more parts of a batch."""
        run, recipe, state = self.run, self.run.recipe, self.state
        # Every random choice follows from the seed, the step and the process.
        torch.manual_seed(derive_seed(recipe.seed, state.step, distributed.rank()))
        rate = learning_rate(recipe, state.step, run.steps_per_epoch)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        totals = torch.zeros(2, device=run.device)
        for i, batch in enumerate(batches):
            try:
                totals += self._add_gradients(batch, last=i == len(batches) - 1)
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"a batch must fit into the device's memory, got {len(batch.labels)} images at "
                    "once; set --batch-per-device lower"
                ) from error
        if recipe.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.model)
        self._settle()
        self.pending = _Pending(state.step, rate, distributed.summed(totals))
        state.step += 1
        if run.device.type == "cpu":
            self._settle()

    def _add_gradients(self, batch: Batch, *, last: bool) -> Tensor:
        """Add the gradients of one part; its summed loss and right guesses."""
        run, recipe = self.run, self.run.recipe
        images = normalize(batch.images.to(run.device, non_blocking=True), recipe.preprocessing)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = batch.labels.to(run.device, non_blocking=True)
        images, targets = mix(images, labels, len(run.train.classes), recipe)
        # Processes add their gradients up once, with those of the last part.
        alone = self.parallel.no_sync() if self.parallel and not last else nullcontext()
        with alone:
            with torch.autocast(run.device.type, self.autocast, enabled=self.autocast is not None):
                logits = (self.parallel or self.model)(images)
            loss = smoothed_loss(logits, targets, recipe)
            self.scaler.scale(loss / run.accumulation).backward()  # type: ignore[no-untyped-call]
        right = (logits.detach().argmax(1) == targets.argmax(1)).sum()
        return torch.stack([loss.detach() * len(labels), right.float()])

    def _settle(self) -> None:
        """Read the figures of the step before, and act on them.

        On a GPU they are read one step late, so that it need not wait for the processor.
        """
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        run, state = self.run, self.state
        now = perf_counter()
        loss, right = pending.totals()
        images = run.recipe.batch_size
        sums = Sums(loss=loss, right=right, images=images, seconds=now - self.stepped_at)
        self.stepped_at = now
        mean, top1 = sums.means()
        self._check_loss(mean, pending)
        state.epoch += sums
        state.recent += sums
        done = pending.step + 1
        if done % max(run.steps_per_epoch // _LINES_PER_EPOCH, 1) == 0:
            self._log_recent(done, pending.learning_rate)
        self.on_step(
            Progress(
                step=pending.step,
                steps=run.recipe.epochs * run.steps_per_epoch,
                epoch=pending.step // run.steps_per_epoch,
                loss=mean,
                top1=top1,
                learning_rate=pending.learning_rate,
                images=images,
                seconds=sums.seconds,
            )
        )

    def _check_loss(self, loss: float, pending: "_Pending") -> None:
        if self.scaler.is_enabled() and self.scaler.get_scale() < _SMALLEST_SCALE:
            loss = math.nan
        limit = _EXPLOSION_FACTOR * math.log(len(self.run.train.classes))
        self.exploded = self.exploded + 1 if loss > limit else 0
        if math.isfinite(loss) and self.exploded < _EXPLOSION_STEPS:
            return
        rule = f"stay below {limit:.3g}" if math.isfinite(loss) else "stay finite"
        raise InputError(
            f"the loss must {rule}, got {loss:.4g} at step {pending.step} with learning rate "
            f"{pending.learning_rate:.4g}; lower learning_rate, raise warmup_epochs, set clip_norm "
            "or use precision float32"
        )

    def _log_recent(self, step: int, rate: float) -> None:
        recent, self.state.recent = self.state.recent, Sums()
        loss, top1 = recent.means()
        line = {
            "kind": "train",
            "step": step,
            "epoch": step / self.run.steps_per_epoch,
            "loss": loss,
            "top1": top1,
            "learning_rate": rate,
            "images_per_second": recent.images / recent.seconds,
        }
        self._log(line)

    def _log(self, line: dict[str, Any]) -> None:
        self.state.history.append(line)
        if self.tensorboard:
            with checkpoint.writing_to(self.run.output):
                self.tensorboard.add(line, self.state.step)

    def _note_unreadable(self, split: str, problems: Iterable[str]) -> int:
        """Remember them; how many are new."""
        known = len(self.state.unreadable)
        self.state.unreadable |= dict.fromkeys(problems, split)
        return len(self.state.unreadable) - known

    def _check_unreadable(self, split: str, count: int) -> None:
        """Stop where they are too many: in all processes, for `count` is that of all."""
        run = self.run
        of = len(run.train if split == "train" else run.val)
        if count <= _UNREADABLE_SHARE * of:
            return
        self._gather_unreadable()
        with checkpoint.writing_to(run.output):
            self._write_unreadable()
        first = next(line for line, where in self.state.unreadable.items() if where == split)
        raise DataError(
            f"at most 1 % of the {of} images in {split} may be unreadable, got {count} so far; "
            f"mend or remove those in {run.output / 'unreadable.txt'}; the first: {first}"
        )

    def _gather_unreadable(self) -> None:
        for problems in distributed.gathered(list(self.state.unreadable.items())):
            self.state.unreadable |= dict(problems)

    def _write_unreadable(self) -> None:
        lines = [f"{split}: {problem}\n" for problem, split in self.state.unreadable.items()]
        if lines and self.writes:
            with replacing(self.run.output / "unreadable.txt") as path:
                path.write_text("".join(lines), encoding="utf-8")

    def _measure(self) -> Evaluation:
        """Measure the weights as a file would hold them; the same result in every process."""
        run = self.run
        source = self.average.module if self.average else self.model
        self.candidate.load_state_dict(self._as_saved(source))
        # Each process has running statistics of its own last step: those of the first are written.
        distributed.copy_from_first(self.candidate.state_dict().values())

        def leave_if_asked(_: int) -> None:
            if self.stop:
                self._leave()

        measured = evaluate(
            TorchEngine(self.candidate, run.device),
            run.val,
            run.recipe.preprocessing,
            workers=run.workers,
            on_images=leave_if_asked,
        )
        self._note_unreadable("val", measured.problems)
        self._check_unreadable("val", len(measured.problems))
        if not math.isfinite(measured.loss):
            raise InputError(
                f"the loss must stay finite, got {measured.loss} in validation after step "
                f"{self.state.step}; lower learning_rate or use precision float32"
            )
        return measured

    def _end_epoch(self, epoch: int, measured: Evaluation) -> None:
        state = self.state
        self._gather_unreadable()
        loss, top1 = state.epoch.means()
        line = {
            "kind": "epoch",
            "epoch": epoch,
            "size": self.run.recipe.size_in(epoch),
            "train_loss": loss,
            "train_top1": top1,
            "val_loss": measured.loss,
            "val_top1": measured.top1,
            "val_top5": measured.top5,
            "unreadable": len(state.unreadable),
            "seconds": round(state.epoch.seconds, 1),
        }
        state.epoch = Sums()
        self._log(line)
        if measured.top1 > state.best:
            state.best = measured.top1
            self._write("best.safetensors", measured)
        self._save()
        self.on_epoch(line)

    def _finish(self, measured: Evaluation) -> None:
        """Write the result, and leave the network with its weights."""
        run = self.run
        self.model.load_state_dict(self.candidate.state_dict())
        self._write("model.safetensors", measured)
        if not self.writes:
            return
        try:
            write_report(
                run.output / "report.html",
                title=f"{run.name} on {len(run.train.classes)} classes",
                history=self.state.history,
                evaluation=measured,
                data=run.val,
                recipe=asdict(run.recipe),
            )
        except OSError as error:  # the result is there: no reason to fail
            logger.warning("no report: %s", error)

    def _write(self, name: str, measured: Evaluation) -> None:
        run = self.run
        if not self.writes:
            return
        metadata = ModelMetadata(
            model=run.name,
            classes=run.train.classes,
            preprocessing=run.recipe.preprocessing,
            recipe=asdict(run.recipe),
            metrics={
                "top1": measured.top1,
                "top5": measured.top5,
                "loss": measured.loss,
                "n": measured.n,
            },
        )
        write_checkpoint(run.output / name, self._as_saved(self.candidate), metadata)

    def _as_saved(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights in the format of the file; biases and norms stay float32."""
        halve = self.run.recipe.saved_precision == "float16"
        state = model.state_dict()
        return {k: v.half() if halve and v.ndim > 1 else v for k, v in state.items()}


class _Pending:
    """Figures of a step that may still be on their way from the device."""

    def __init__(self, step: int, learning_rate: float, totals: Tensor) -> None:
        self.step = step
        self.learning_rate = learning_rate
        self._totals = totals
        self._arrived: torch.cuda.Event | None = None
        if totals.is_cuda:
            # Reading the device's own tensor later would wait for the step after, too.
            self._totals = torch.empty_like(totals, device="cpu", pin_memory=True)
            self._totals.copy_(totals, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def totals(self) -> tuple[float, float]:
        """Summed loss and right guesses."""
        if self._arrived:
            self._arrived.synchronize()
        loss, right = self._totals.tolist()
        return loss, right


def _identity(run: Run) -> dict[str, Any]:
    """What must be the same for a training to be the same."""
    labels = np.asarray([*run.train.labels, *run.val.labels], dtype=np.int64)
    return {
        "model": run.name,
        "classes": list(run.train.classes),
        "images": [len(run.train), len(run.val), sha256(labels.tobytes()).hexdigest()],
        "recipe": asdict(run.recipe),
    }


def _check_network(model: nn.Module, recipe: Recipe) -> None:
    """What the recipe says of the network must be true of it."""
    kinds = {"drop_path": StochasticDepth, "drop_block": DropBlock2d}
    for name, kind in kinds.items():
        has = any(isinstance(module, kind) for module in model.modules())
        if has != bool(getattr(recipe, name)):
            raise InputError(
                f"the network must be built with the recipe's {name}, {getattr(recipe, name)}, "
                f"got one {'with' if has else 'without'}; pass it to create_model"
            )
