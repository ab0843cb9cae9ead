"""Training and evaluation in several processes, started by `torchrun`.

With one process, the functions here do nothing, and PyTorch is not imported.
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
# Parts of gloo's and NCCL's messages about another process. NCCL's other errors are about this one.
_LOST = (
    "gloo/transport",
    "ncclRemoteError",
    "Connection closed by remote peer",
    "NCCL communicator was aborted",
)
# Seconds to wait: processes that start together may be this far apart on a busy machine.
_APART = 20.0


class PeerError(InputError):
    """Another process has ended or does not answer, so this one cannot go on."""


@contextmanager
def processes(device: "torch.device") -> Iterator[None]:
    """Join the other processes that `torchrun` started, within the context.

    For `torchrun --max-restarts` to work, its environment needs
    `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`: restarted processes otherwise look for one another at
    the addresses of those that died (github.com/pytorch/pytorch/issues/135712).

    Args:
        device: of this process, see `own_device`.

    Raises:
        InputError: the processes do not find one another.
        PeerError: another process has ended or does not answer.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or world_size() > 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)
    # gloo in addition to nccl: messages between CPUs need not wait for the GPU.
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        advice = "; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun" if restarted() else ""
        raise InputError(
            f"processes must reach one another, got {' '.join(str(error).split())[:200]}{advice}"
        ) from error
    try:
        yield
    except RuntimeError as error:
        if not is_of_peer(error):
            raise
        raise PeerError(
            "all processes must run to the end, but another one has ended or does not answer: see "
            "what it and torchrun print"
        ) from error
    finally:
        dist.destroy_process_group()


def own_device(name: str) -> str:
    """The device of this process: `name`, or if that leaves it open, the GPU of its local rank.

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
    """Number of processes that work together."""
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
    """Copy the values of `tensors` in the first process to all others, in place."""
    if _together():
        for tensor in tensors:
            _group().broadcast(tensor, src=0)


def is_first() -> bool:
    """Whether this is the first process that `torchrun` started, or the only one.

    Works before the processes have joined, unlike `rank`. RANK alone is not enough, since clusters
    also set it for jobs without `torchrun`, whose processes do not work together.
    """
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def restarted() -> bool:
    """Whether `torchrun` has restarted these processes after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run the context in the first process of a machine, then in all others."""
    if _together() and int(os.environ.get("LOCAL_RANK", "0")):
        _group().barrier()
        yield
        return
    try:
        yield
    finally:
        if _together():
            _group().barrier()


def is_of_peer(error: RuntimeError) -> bool:
    """Whether PyTorch raised `error` because another process has ended or does not answer."""
    return any(part in str(error) for part in _LOST)


def wait_for_others_to_fail(error: Exception) -> None:
    """Wait before printing `error`, so that one error in all is printed.

    All processes of a machine but the first wait. If the first one fails too, `torchrun` ends the
    others meanwhile. Otherwise the error is only theirs, and they print it. Processes that failed
    because another one did wait for longer, the first one too: the other's error says more.
    """
    if isinstance(error, PeerError):
        time.sleep(2 * _APART)
    elif "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("LOCAL_RANK", "0")):
        time.sleep(_APART)


def _group() -> Any:
    return sys.modules["torch.distributed"]


def _together() -> bool:
    """Whether this process has joined others, which is impossible without PyTorch imported."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and bool(dist.is_available() and dist.is_initialized())
