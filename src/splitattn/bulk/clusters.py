"""Where shards are labeled: in this process, in several, or on a Ray cluster."""

import os
import signal
import socket
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from urllib.parse import urlsplit

from splitattn.bulk.plan import Plan, ShardReport
from splitattn.bulk.shards import ShardLabeler
from splitattn.errors import InputError, nearest
from splitattn.files import is_file
from splitattn.libraries import require
from splitattn.processes import end_with_parent

LOCAL, RAY, AUTO = "local", "ray", "auto"
_CLIENT = "ray://"  # begins the addresses that are reached through Ray Client
# Processors of each actor. Threads that decode use what its network leaves idle.
_PROCESSORS = 4
# An actor that is killed is replaced. A shard whose actors are killed more often ends the run.
_ATTEMPTS = 5
_RULE = 'cluster must be "local", "ray" or the address of a Ray cluster, such as ray://host:10001'
_TOKEN = (
    "; if the cluster uses tokens, as Ray's do by default, set RAY_AUTH_MODE=token, and put the "
    "head's token into ~/.ray/auth_token or RAY_AUTH_TOKEN"
)
_FIRST_WORKER_TIMEOUT = 60.0  # seconds without any worker, after which there is a warning
_CONNECT_TIMEOUT = 10.0  # seconds
_WAITING = (
    "no worker could start yet: the cluster has too few free processors, or cannot start more "
    "machines; still waiting"
)


class ClusterError(InputError):
    """A worker or the cluster is lost. What was done is kept."""


def check_cluster(cluster: str) -> None:
    """Check the name of a cluster, and that its libraries are installed. Connects to nothing.

    Args:
        cluster: see `label_shards`.

    Raises:
        InputError: it names none, or a library is missing.
    """
    if cluster == LOCAL:
        return
    if cluster not in (RAY, AUTO) and ":" not in cluster:
        raise InputError(f"{_RULE}, got {cluster!r}{nearest(cluster, [LOCAL, RAY])}")
    require("bulk on a cluster", "ray")
    if cluster.startswith(_CLIENT):
        require("ray:// addresses", "grpc")


def reach_cluster(cluster: str) -> None:
    """Raise unless the cluster answers.

    Args:
        cluster: see `label_shards`.

    Raises:
        ClusterError: it does not.
    """
    if cluster not in (LOCAL, RAY):
        with _connected(cluster):
            pass


def label_shards(
    plan: Plan, numbers: Sequence[int], *, cluster: str, actors: int | None
) -> Generator[ShardReport, None, None]:
    """Label shards, and yield the report of each, in any order. Closing it ends the workers.

    Args:
        numbers: which shards, see `ShardLabeler.label`.
        cluster: "local", "ray" to start Ray on this machine, or the address of a Ray cluster.
        actors: how many shards are labeled at once; None is one, and on Ray one for every four
            processors.

    Raises:
        InputError: see `ShardLabeler`.
        ClusterError: the cluster cannot be reached, or a worker is lost.
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
        actors, get_context("spawn"), initializer=_begin_process, initargs=(threads,)
    )
    remaining = iter(numbers)
    running: set[Future[ShardReport]] = set()
    try:
        while True:
            for number in islice(remaining, actors - len(running)):
                running.add(pool.submit(_label_here, plan, number))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise ClusterError(
            "a worker was killed, perhaps because memory ran out: to continue, run the same "
            "command again, with fewer actors"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process(threads: int) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # on Ctrl-C end at once; the parent reports it
    os.environ["OMP_NUM_THREADS"] = str(threads)


def _label_here(plan: Plan, number: int) -> ShardReport:
    return _labeler(plan).label(number)


_labeler = cache(ShardLabeler)


def _on_ray(
    plan: Plan, numbers: Sequence[int], *, cluster: str, actors: int | None
) -> Generator[ShardReport, None, None]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    with _connected(cluster):
        each, actors = _places(ray.nodes(), actors, shared=cluster != RAY)
        remote = ray.remote(ShardLabeler).options(
            num_cpus=each, max_restarts=-1, max_task_retries=_ATTEMPTS
        )
        try:
            yield from _by_actors(ray, [remote.remote(plan) for _ in range(actors)], numbers)
        except RayError as error:
            if not isinstance(error, RayTaskError):
                raise ClusterError(
                    f"a worker is lost: {_reason(error):.300}; to continue, run the same command "
                    "again"
                ) from error
            if isinstance(error.cause, InputError | OSError):
                raise error.cause from None
            raise


def _places(
    nodes: Iterable[dict[str, Any]], actors: int | None, *, shared: bool
) -> tuple[int, int]:
    """Processors of each actor, and how many actors.

    Args:
        nodes: what `ray.nodes()` says. An actor must fit on the smallest.
        actors: how many are asked for; None is as many as fit.
        shared: others use the cluster, too; else the actors share all of it.
    """
    found = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    processors = [count for count in found if count] or [1]
    each = min(_PROCESSORS, *processors)
    if actors is None:
        return each, sum(count // each for count in processors)
    return (each if shared else max(1, sum(processors) // actors)), actors


def _by_actors(
    ray: Any, actors: Iterable[Any], numbers: Sequence[int]
) -> Generator[ShardReport, None, None]:
    """Label shards on those actors that have started; others may wait for a place forever."""
    # Our own method, because Ray's `__ray_ready__` is missing where Ray is reached by its client.
    running = {actor.ready.remote(): actor for actor in actors}
    remaining, left, started = iter(numbers), len(numbers), False
    while left:
        done, _ = ray.wait(list(running), timeout=None if started else _FIRST_WORKER_TIMEOUT)
        if not done:
            warnings.warn(_WAITING, stacklevel=2)
        for reference in done:
            started = True
            actor, result = running.pop(reference), ray.get(reference)
            if (number := next(remaining, None)) is not None:
                running[actor.label.remote(number)] = actor
            else:  # an actor that is restarted with its shard may need this one's processors
                ray.kill(actor)
            if isinstance(result, ShardReport):
                left -= 1
                yield result


@contextmanager
def _connected(cluster: str) -> Iterator[None]:
    """Start Ray or connect to it at an address, and disconnect at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():  # by the caller, as in a notebook
        yield
        return
    found = _try_noted_address() if cluster == AUTO else False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        if cluster == RAY:  # "local" starts one, whatever RAY_ADDRESS says
            ray.init("local", include_dashboard=False, **quiet)
        else:
            found = _try_port(cluster) or found
            try:
                ray.init(cluster, **quiet)
            except ConnectionAbortedError:  # Ray forks a server for each client, which may hang
                ray.init(cluster, **quiet)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        # A cluster does not say that a token is missing; Ray's client then waits in vain.
        advice = _TOKEN if found or cluster.startswith(_CLIENT) else ""
        what = (
            "Ray cannot be started here"
            if cluster == RAY
            else f"cluster must be one that answers, got {cluster}"
        )
        raise ClusterError(f"{what}: {_reason(error):.200}{advice}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _try_port(cluster: str) -> bool:
    """Raise unless something listens at a head's address. Ray itself would wait for minutes.

    Returns:
        Whether something does. It is not tried for "auto" and for `ray://` addresses.

    Raises:
        OSError: nothing does.
        ValueError: the port is no number.
    """
    if cluster == AUTO or "://" in cluster:  # a ray:// address Ray gives up after 30 s
        return False
    parts = urlsplit(f"//{cluster}")
    socket.create_connection((parts.hostname, parts.port), _CONNECT_TIMEOUT).close()
    return True


def _try_noted_address() -> bool:
    """Raise unless something listens where Ray will look for "auto", if it has an address.

    Returns:
        Whether it has one.

    Raises:
        ClusterError: nothing does. The address is of a cluster that has ended.
    """
    note = Path(os.environ.get("RAY_TMPDIR") or gettempdir(), "ray", "ray_current_cluster")
    address, where, fix = os.environ.get("RAY_ADDRESS", ""), "RAY_ADDRESS", "unset RAY_ADDRESS"
    if not address and is_file(note):
        address, where, fix = note.read_text().strip(), str(note), "remove that file"
    if address in ("", AUTO):
        return False
    try:
        _try_port(address)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}, which {where} says: {_reason(error):.200}; "
            f"{fix}, start the cluster, or name another one with --cluster"
        ) from error
    return True


def _reason(error: Exception) -> str:
    """The reason in one line: the last one if Ray gives a traceback."""
    # Ray's errors about tokens have a `message`, which `str` follows with a page of advice.
    found = getattr(error, "strerror", None) or getattr(error, "message", None) or error
    return str(found).strip().rpartition("\n")[2]
