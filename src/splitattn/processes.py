"""Processes and threads: how many there may be, and what the system is told of them."""

import os
import sys
from contextlib import suppress
from multiprocessing import parent_process
from threading import Thread, get_native_id

_NICENESS = 5  # about a third of the usual share of a busy processor


def usable_cores() -> int:
    """How many cores of the processor this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cores_per_process() -> int:
    """This process's share of the machine's cores, one for the network left out; 1 to 8."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, usable_cores() // here - 1))


def end_with_parent() -> None:
    """End this process when the one that started it does, however that ends.

    A process that is killed tells its workers nothing, and one that waits for it waits forever.
    """
    if parent := parent_process():

        def wait() -> None:
            parent.join()
            os._exit(1)

        Thread(target=wait, daemon=True).start()


def give_way() -> None:
    """Let other threads go first where processors are short; on Linux only.

    Threads that this one starts give way too.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid it, and nothing depends on it
            thread = get_native_id()
            own = os.getpriority(os.PRIO_PROCESS, thread)  # not 0 where a service is started so
            os.setpriority(os.PRIO_PROCESS, thread, own + _NICENESS)
