"""Where shards are labeled: in this process, in several, or on a Ray cluster."""

import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from typing import Any

from splitattn.bulk.plan import Plan
from splitattn.bulk.shards import ShardLabeler, ShardReport
from splitattn.errors import InputError
from splitattn.libraries import require

LOCAL, RAY = "local", "ray"
# Processors of an actor: decoding keeps as many threads busy as the network leaves.
_PROCESSORS = 4
# An actor that is killed is replaced; a shard that ends so many is to blame itself.
_ATTEMPTS = 5


class ClusterError(InputError):
    """A worker or the cluster is lost. What was done is kept."""


def label_shards(
    plan: Plan, numbers: Iterable[int], *, cluster: str, actors: int | None
) -> Generator[ShardReport, None, None]:
    """Label shards, and tell of each that is done, in any order. Closing it ends the workers.

    Args:
        numbers: which shards, see `ShardLabeler.label`.
        cluster: "local", "ray" to start Ray on this machine, or the address of a Ray cluster.
        actors: how many shards are labeled at once; None is one, and on Ray one for every four
            processors.

    Raises:
        InputError: see `ShardLabeler`; or Ray is missing, or the cluster cannot be reached.
        ClusterError: a worker is lost.
    """
    if cluster != LOCAL:
        return _on_ray(plan, numbers, cluster=cluster, actors=actors)
    if actors in (None, 1):
        return _here(plan, numbers)
    return _in_processes(plan, numbers, actors)


def _here(plan: Plan, numbers: Iterable[int]) -> Generator[ShardReport, None, None]:
    labeler = ShardLabeler(plan)
    for number in numbers:
        yield labeler.label(number)


def _in_processes(
    plan: Plan, numbers: Iterable[int], actors: int
) -> Generator[ShardReport, None, None]:
    threads = max(1, (os.cpu_count() or 1) // actors)
    pool = ProcessPoolExecutor(
        actors, get_context("spawn"), initializer=_open_here, initargs=(plan, threads)
    )
    remaining = iter(numbers)
    running: set[Future[ShardReport]] = set()
    try:
        while True:
            for number in islice(remaining, actors - len(running)):
                running.add(pool.submit(_label_here, number))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise ClusterError(
            "a worker was killed, perhaps for want of memory: run the same command again to go on, "
            "with fewer actors"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


# Of a worker process.
_labeler: ShardLabeler | None = None


def _open_here(plan: Plan, threads: int) -> None:
    global _labeler
    os.environ["OMP_NUM_THREADS"] = str(threads)
    _labeler = ShardLabeler(plan)


def _label_here(number: int) -> ShardReport:
    assert _labeler is not None
    return _labeler.label(number)


def _on_ray(
    plan: Plan, numbers: Iterable[int], *, cluster: str, actors: int | None
) -> Generator[ShardReport, None, None]:
    require("bulk on a cluster", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is labeled is nobody else's
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    with _connected(cluster):
        processors = int(ray.cluster_resources().get("CPU", 1))
        actors = max(1, processors // _PROCESSORS) if actors is None else actors
        each = max(1, processors // actors) if cluster == RAY else min(_PROCESSORS, processors)
        remote = ray.remote(ShardLabeler).options(
            num_cpus=each, max_restarts=-1, max_task_retries=_ATTEMPTS
        )
        idle = [remote.remote(plan) for _ in range(actors)]
        remaining = iter(numbers)
        running: dict[Any, Any] = {}
        try:
            while True:
                for number in islice(remaining, len(idle)):
                    actor = idle.pop()
                    running[actor.label.remote(number)] = actor
                if not running:
                    return
                (done, *_), _ = ray.wait(list(running))
                idle.append(running.pop(done))
                yield ray.get(done)
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            raise
        except RayActorError as error:
            raise ClusterError(
                f"a worker ended {_ATTEMPTS + 1} times on one shard, perhaps for want of memory: "
                "run the same command again to go on, with fewer actors"
            ) from error


@contextmanager
def _connected(cluster: str) -> Iterator[None]:
    """Ray, started here or reached at an address, and let go at the end."""
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        if cluster == RAY:
            ray.init(include_dashboard=False, **quiet)
        else:
            ray.init(cluster, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ClusterError(
            f'cluster must be "local", "ray" or the address of a Ray cluster, got {cluster}: '
            f"{reason:.200}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
