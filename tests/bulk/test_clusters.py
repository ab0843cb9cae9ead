"""Shards are distributed to workers by a fake Ray, whose actors start, wait or are lost."""

import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from splitattn.bulk import clusters
from splitattn.bulk.bulk import label_bulk
from splitattn.bulk.clusters import ClusterError, label_shards
from splitattn.bulk.plan import Plan, ShardReport
from splitattn.errors import DataError


def report(number: int) -> ShardReport:
    return ShardReport(
        number=number, images=1, labeled=1, errors=0, classes={}, error_kinds={}, examples=[]
    )


class RayError(Exception):
    pass


class TokenError(RayError):
    """As Ray's AuthenticationError, which has a long text."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"{self.message}. Ensure that ..., see:\nhttps://..."


class RayTaskError(RayError):
    cause: BaseException | None = None


class Method:
    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


class Actor:
    """A fake actor with `ready` and `label`. A reference is a function that returns its value."""

    def __init__(self, ray: "Ray") -> None:
        self.ready = Method(lambda: self._reference(lambda: None))
        self.label = Method(lambda number: self._label(ray, number))

    def _label(self, ray: "Ray", number: int) -> Callable[[], Any]:
        if number in ray.deadly:
            ray.deadly.remove(number)
            ray.actors.remove(self)
            ray.actors.append(self)  # restarts behind all that wait
        return self._reference(lambda: ray.answer(number))

    def _reference(self, value: Callable[[], Any]) -> Callable[[], Any]:
        def reference() -> Any:
            return value()

        reference.actor = self  # type: ignore[attr-defined]
        return reference


class Ray(ModuleType):
    """A fake of the parts of the module `ray` that are used.

    Attributes:
        places: number of actors that can run at once; the first ones do.
        deadly: shards that end the first actor that labels them.
        empty: which calls of `wait` with a timeout return nothing, counted from 1.
        refusals: exceptions that the next connections raise.
    """

    def __init__(self, *, places: int = 100, running: bool = False) -> None:
        super().__init__("ray")
        self.places = places
        self.actors: list[Actor] = []
        self.deadly: set[int] = set()
        self.answer: Callable[[int], ShardReport] = report
        self.addresses: list[str] = []
        self.refusals: list[Exception] = []
        self.running = running
        self.waits = 0
        self.empty = {1}
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def is_initialized(self) -> bool:
        return self.running

    def init(self, address: str, **_: Any) -> None:
        self.addresses.append(address)
        if self.refusals:
            raise self.refusals.pop(0)
        self.running = True

    def shutdown(self) -> None:
        self.running = False

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def remote(self, _: type) -> Any:
        def start(_: Plan) -> Actor:
            self.actors.append(Actor(self))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    def wait(self, references: list[Any], timeout: float | None) -> tuple[list[Any], list[Any]]:
        self.waits += 1
        if timeout is not None and self.waits in self.empty:
            return [], references  # as if the timeout had passed
        run = self.actors[: self.places]
        ready = [reference for reference in references if reference.actor in run]
        assert ready, "the real wait would block forever"
        return ready[:1], ready[1:]

    def kill(self, actor: Actor) -> None:
        self.actors.remove(actor)

    def get(self, reference: Callable[[], Any]) -> Any:
        return reference()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Ray], Ray]:
    monkeypatch.setattr(clusters, "require", lambda *_: None)
    # "auto" would find a cluster that this machine has, or had.
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def set_modules(ray: Ray) -> Ray:
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setitem(sys.modules, "ray.exceptions", ray.exceptions)  # type: ignore[misc]
        return ray

    return set_modules


def label(cluster: str = "ray", actors: int | None = 4) -> list[int]:
    plan: Plan = None  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="no worker could start yet"):
        return [s.number for s in label_shards(plan, range(5), cluster=cluster, actors=actors)]


@pytest.mark.parametrize("places", [1, 4, 100])
def test_a_run_completes_although_some_workers_cannot_start(
    places: int, use: Callable[[Ray], Ray]
) -> None:
    ray = use(Ray(places=places))
    assert sorted(label()) == [0, 1, 2, 3, 4]
    assert ray.addresses == ["local"]
    assert not ray.running


def test_slow_workers_cause_no_warning_of_a_full_cluster(
    use: Callable[[Ray], Ray],
) -> None:
    ray = use(Ray())
    ray.empty = {2, 3, 4}  # the first shards take minutes
    plan: Plan = None  # type: ignore[assignment]
    found = [each.number for each in label_shards(plan, range(5), cluster="ray", actors=2)]
    assert sorted(found) == [0, 1, 2, 3, 4]


def test_a_lost_worker_restarts_where_idle_workers_were(
    use: Callable[[Ray], Ray],
) -> None:
    ray = use(Ray(places=2))
    ray.deadly = {1, 3}
    assert sorted(label(actors=3)) == [0, 1, 2, 3, 4]


def test_a_cluster_that_does_not_answer_is_found_before_anything_is_listed(
    use: Callable[[Ray], Ray], tmp_path: Path
) -> None:
    ray = use(Ray())
    (tmp_path / "list.txt").write_text("1.jpg\n")
    run = partial(label_bulk, tmp_path / "list.txt", tmp_path / "out", engine="onnxruntime")
    with pytest.raises(ClusterError, match=r"^cluster must be .*, got 127\.0\.0\.1:1: .*refused$"):
        run(cluster="127.0.0.1:1")
    assert not ray.addresses  # Ray itself would retry for minutes
    ray.refusals = [ConnectionError("ray client connection timeout")]
    with pytest.raises(
        ClusterError,
        match=r"got ray://head:1: ray client connection timeout; .* set RAY_AUTH_MODE=token, and",
    ):
        run(cluster="ray://head:1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = f"127.0.0.1:{server.getsockname()[1]}"
        ray.refusals = [TokenError("no token")]
        with pytest.raises(
            ClusterError, match=rf"got {head}: no token; .* set RAY_AUTH_MODE=token, and"
        ):
            run(cluster=head)
    assert not (tmp_path / "out").exists()


def test_errors_of_ray_are_passed_on(use: Callable[[Ray], Ray]) -> None:
    ray = use(Ray())
    ray.refusals = [ConnectionError("no answer:\nTraceback:\nof another version")]
    with pytest.raises(ClusterError, match=r"^cluster must .*, got auto: of another version$"):
        clusters.reach_cluster("auto")


@pytest.mark.parametrize("kind", ["head", "client", "unset"])
def test_auto_names_tokens_only_if_an_address_is_set(
    kind: str, use: Callable[[Ray], Ray], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = use(Ray())
    ray.refusals = [TokenError("no token")]
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = f"127.0.0.1:{server.getsockname()[1]}"
        if kind != "unset":
            monkeypatch.setenv("RAY_ADDRESS", head if kind == "head" else f"ray://{head}")
        with pytest.raises(ClusterError, match="got auto: no token") as raised:
            clusters.reach_cluster("auto")
    assert ("set RAY_AUTH_MODE=token" in str(raised.value)) == (kind != "unset")
    assert ray.addresses == ["auto"]


def test_ray_that_cannot_be_started_is_not_called_an_address(use: Callable[[Ray], Ray]) -> None:
    ray = use(Ray())
    ray.refusals = [OSError(28, "No space left on device")]
    plan: Plan = None  # type: ignore[assignment]
    with pytest.raises(
        ClusterError, match=r"^Ray cannot be started here: No space left on device$"
    ):
        list(label_shards(plan, range(1), cluster="ray", actors=1))


def test_a_client_whose_server_does_not_start_tries_again(use: Callable[[Ray], Ray]) -> None:
    ray = use(Ray())
    ray.refusals = [ConnectionAbortedError("Initialization failure from server")]
    assert sorted(label("auto")) == [0, 1, 2, 3, 4]
    assert ray.addresses == ["auto", "auto"]


def test_a_running_ray_is_used_and_kept_running(use: Callable[[Ray], Ray]) -> None:
    ray = use(Ray(running=True))
    assert sorted(label("ray://head:10001")) == [0, 1, 2, 3, 4]
    assert not ray.addresses
    assert ray.running


@pytest.mark.parametrize(
    ("counts", "actors", "shared", "expected"),
    [
        ((16, 16), None, True, (4, 8)),
        ((0, 2, 16), None, True, (2, 9)),  # a head without CPUs, and a small node
        ((2, 2), 4, True, (2, 4)),
        ((2,), 4, False, (1, 4)),
        ((16,), 2, False, (8, 2)),
        ((), None, True, (1, 1)),
    ],
)
def test_actors_fit_on_the_smallest_node(
    counts: tuple[int, ...], actors: int | None, shared: bool, expected: tuple[int, int]
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": float(n)} if n else {}} for n in counts]
    nodes.append({"Alive": False, "Resources": {"CPU": 1.0}})
    assert clusters._places(nodes, actors, shared=shared) == expected


def test_errors_of_workers_are_passed_on(use: Callable[[Ray], Ray]) -> None:
    ray = use(Ray())

    def dies(_: int) -> ShardReport:
        raise RayError("The actor died.\nTraceback:\nModuleNotFoundError: No module named 'PIL'\n")

    def refuses(_: int) -> ShardReport:
        error = RayTaskError("Traceback:\nDataError: other weights")
        error.cause = DataError("other weights")
        raise error

    ray.answer = dies
    with pytest.raises(
        ClusterError, match=r"lost: ModuleNotFoundError: No module named 'PIL'; to continue"
    ):
        label()
    ray.waits, ray.answer = 0, refuses
    with pytest.raises(DataError, match=r"^other weights$"):
        label()
