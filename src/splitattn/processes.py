"""Processes and threads: their number, their priority, and how they end."""

import ctypes
import os
import sys
from contextlib import suppress
from multiprocessing import parent_process
from threading import Thread, get_native_id

_SPINS = "10000"  # with fewer, training alone on a machine becomes slower (docs/log.md)
_PAUSE_SOFT = 1  # of OpenMP's `omp_pause_resource_t`: what the program has set stays
_NICENESS = 5  # a third of the usual share on a busy processor


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cores_per_process() -> int:
    """This process's share of the cores, minus one for the network; at least 1, at most 8."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, usable_cores() // here - 1))


def end_with_parent() -> None:
    """End this process when its parent ends, even if the parent is killed.

    A killed parent cannot stop its workers, which would wait for it forever.
    """
    if parent := parent_process():

        def wait() -> None:
            parent.join()
            os._exit(1)

        Thread(target=wait, daemon=True).start()


def limit_openmp_spin() -> None:
    """Make threads of GNU OpenMP, which PyPI's PyTorch for Linux uses, spin briefly, then sleep.

    By default they spin much longer while they wait for each other. Beside other programs that
    takes most of the time, for the thread that they wait for has no core (docs/log.md). Call this
    before PyTorch is imported. What the environment already says about waiting stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def end_openmp_threads() -> None:
    """End the threads of PyTorch's OpenMP; the next operation starts them again.

    Call this before a fork. A forked process has none of its parent's threads, and GNU OpenMP would
    wait for them forever there.
    """
    with suppress(AttributeError):  # a PyTorch without OpenMP has no such threads
        ctypes.CDLL(None).omp_pause_resource_all(_PAUSE_SOFT)


def give_way() -> None:
    """Lower the priority of this thread, and of threads that it starts; only on Linux."""
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid it
            thread = get_native_id()
            own = os.getpriority(os.PRIO_PROCESS, thread)  # a service may not start at 0
            os.setpriority(os.PRIO_PROCESS, thread, own + _NICENESS)
