"""A network with its optimizer and everything else that one training step changes."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from splitattn import distributed
from splitattn.data.loading import derive_seed
from splitattn.errors import InputError
from splitattn.nn.batch_norm import synchronize
from splitattn.training.ema import EMA
from splitattn.training.optimizer import make_optimizer, set_learning_rate
from splitattn.training.pending import Pending
from splitattn.training.precision import autocast_dtype
from splitattn.training.run import Run
from splitattn.training.task import Batch, Task

# Smallest scale of the loss in float16; if gradients still overflow, every step is skipped.
_SMALLEST_SCALE = 1e-4


class Learner(Generic[Batch]):
    """A network on its device, with optimizer, EMA, precision and the other processes.

    Args:
        network: changed in place.
        task: computes the loss.
        run: with the rounded batch size (see `Run.with_real_batch`).

    Attributes:
        candidate: the network that is measured and written, in evaluation mode.
    """

    def __init__(self, network: nn.Module, task: Task[Batch], run: Run) -> None:
        recipe = run.recipe
        self.task, self.run = task, run
        self.network = network.to(run.device).to(memory_format=torch.channels_last)
        task.prepare(network, recipe)
        if recipe.sync_batch_norm:
            synchronize(network)
        self.ema = EMA(network, recipe.ema_decay) if recipe.ema_decay else None
        self.optimizer = make_optimizer(network, recipe)
        self.autocast = autocast_dtype(recipe.precision, run.device)
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=self.autocast is torch.float16)
        self.candidate = self._folded(network)
        self._parallel: DistributedDataParallel | None = None
        if distributed.world_size() > 1:
            devices = [run.device] if run.device.type == "cuda" else None
            self._parallel = DistributedDataParallel(network, device_ids=devices)

    def step(self, number: int, batches: Sequence[Batch], rate: float) -> Pending:
        """One step of the optimizer, from the gradients of one or more micro-batches.

        Args:
            number: of the step in the whole training, from 0.
            rate: the learning rate.
        """
        recipe = self.run.recipe
        # Random choices depend only on the seed, the step and the process.
        torch.manual_seed(derive_seed(recipe.seed, number, distributed.rank()))
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            sums = self._add_gradients(batch, last=i == len(batches) - 1)
            totals = {name: totals[name] + value if i else value for name, value in sums.items()}
        if recipe.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.network)
        summed = distributed.summed(torch.stack([*totals.values()]))
        return Pending(number, rate, [*totals], summed)

    def _add_gradients(self, batch: Batch, *, last: bool) -> dict[str, Tensor]:
        """Add the gradients of one micro-batch and return its summed figures."""
        run, task = self.run, self.task
        # Gradients are summed over processes once, in the last micro-batch.
        alone = self._parallel.no_sync() if self._parallel and not last else nullcontext()
        try:
            with alone:
                loss, sums = task.forward(self._forward, batch, run)
                scaled = self.scaler.scale(loss / run.accumulation)
                scaled.backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"a batch must fit into the device's memory, got {run.batch_per_device} "
                f"{task.unit} at once; set --batch-per-device lower"
            ) from error
        return {name: _scalar(value, run.device) for name, value in sums.items()}

    def _forward(self, *inputs: Any) -> Any:
        """Run the network in the recipe's precision; gradients are summed over all processes."""
        enabled = self.autocast is not None
        with torch.autocast(self.run.device.type, self.autocast, enabled=enabled):
            return (self._parallel or self.network)(*inputs)

    @property
    def skips_every_step(self) -> bool:
        """Whether float16 gradients overflow even at the smallest scale."""
        return self.scaler.is_enabled() and self.scaler.get_scale() < _SMALLEST_SCALE

    def update_candidate(self) -> None:
        """Copy the current weights, the EMA's if there is one, into `candidate`.

        They are folded by the task and rounded as they will be in the file. Running statistics
        differ between processes; the first process's are used.
        """
        self.candidate = self._folded(self.ema.module if self.ema else self.network)
        self.candidate.load_state_dict(self.as_saved(self.candidate))
        distributed.copy_from_first(self.candidate.state_dict().values())

    def finish(self) -> None:
        """Copy the weights of `candidate` into the network."""
        self.task.fold(self.network)
        self.network.load_state_dict(self.candidate.state_dict())

    def _folded(self, network: nn.Module) -> nn.Module:
        folded = deepcopy(network).eval()
        self.task.fold(folded)
        return folded

    def as_saved(self, network: nn.Module) -> dict[str, Tensor]:
        """The weights in the recipe's `saved_precision`; biases and norms stay float32."""
        halve = self.run.recipe.saved_precision == "fp16"
        state = network.state_dict()
        return {k: v.half() if halve and v.ndim > 1 else v for k, v in state.items()}

    def parts(self) -> dict[str, Any]:
        """All objects with a state dict that training changes, by their keys in a checkpoint."""
        parts = {
            "model": self.network,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "task": self.task,
        }
        return parts | ({"ema": self.ema.module} if self.ema else {})


def micro_batches(
    task: Task[Batch], run: Run, epoch: int, first_step: int
) -> Iterator[tuple[Batch, ...]]:
    """The micro-batches of each step of `epoch`, from `first_step` on."""
    parts = [iter(task.batches(run, epoch, first_step))] * run.accumulation
    return zip(*parts, strict=True)


def _scalar(value: Tensor | float, device: torch.device) -> Tensor:
    return value.float() if isinstance(value, Tensor) else torch.full((), value, device=device)
