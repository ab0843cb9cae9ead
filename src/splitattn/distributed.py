"""Several processes that act as one, as `torchrun` starts them.

With one process, everything here does nothing and costs nothing: PyTorch is not even imported.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from splitattn.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
# Seconds: more than processes that start together are apart on a busy machine.
_APART = 20.0


@contextmanager
def processes(device: "torch.device") -> Iterator[None]:
    """Join the other processes that `torchrun` started, for the length of the block.

    For `torchrun --max-restarts` to work, its environment needs
    `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`: restarted processes otherwise look for one another at
    the addresses of those that died (github.com/pytorch/pytorch/issues/135712).

    Args:
        device: of this process, see `own_device`.

    Raises:
        InputError: the processes do not find one another.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or world_size() > 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)
    # gloo beside nccl: what is agreed on the CPU need not wait for the GPU.
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        advice = "; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun" if restarted() else ""
        raise InputError(
            f"processes must reach one another, got {' '.join(str(error).split())[:200]}{advice}"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def own_device(name: str) -> str:
    """The device of this process, where `name` leaves it open: of several GPUs, that of its rank.

    Raises:
        InputError: there are more processes than GPUs.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or name not in ("auto", "cuda"):
        return name
    import torch

    here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if gpus and here > gpus:
        raise InputError(
            f"--nproc-per-node must be at most {gpus}, the number of GPUs, got {here}; or set "
            "--device cpu"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}" if gpus else name


def rank() -> int:
    """Number of this process, from 0."""
    return int(_group().get_rank()) if _together() else 0


def world_size() -> int:
    """How many processes act as one."""
    return int(_group().get_world_size()) if _together() else 1


def gathered(value: T) -> list[T]:
    """The `value` of every process, by rank, in every process; anything that can be pickled."""
    if not _together():
        return [value]
    values: list[T] = [value] * world_size()
    _group().all_gather_object(values, value)
    return values


def summed(values: "Tensor") -> "Tensor":
    """The sum over all processes of each of `values`, which is changed in place."""
    if _together():
        _group().all_reduce(values)
    return values


def copy_from_first(tensors: "Iterable[Tensor]") -> None:
    """Give `tensors`, in place, the values that they have in the first process."""
    if _together():
        for tensor in tensors:
            _group().broadcast(tensor, src=0)


def is_first() -> bool:
    """Whether this is the first process that `torchrun` started, or the only one.

    Before they have joined, when `rank` does not know yet. Clusters set RANK for jobs without
    `torchrun` too, whose processes are on their own.
    """
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def restarted() -> bool:
    """Whether `torchrun` starts these processes again, after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run the block in the first process of a machine, and then in all others."""
    if _together() and int(os.environ.get("LOCAL_RANK", "0")):
        _group().barrier()
        yield
        return
    try:
        yield
    finally:
        if _together():
            _group().barrier()


def wait_for_first_process_to_fail() -> None:
    """Call this before an error is printed. An error that all processes share is printed once.

    All processes of a machine but the first wait here. If the first one fails too, `torchrun` ends
    the others meanwhile. If it does not, the error is their own.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("LOCAL_RANK", "0")):
        time.sleep(_APART)


def _group() -> Any:
    return sys.modules["torch.distributed"]


def _together() -> bool:
    """Whether this process has joined others; before PyTorch is imported, it cannot have."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and bool(dist.is_available() and dist.is_initialized())
