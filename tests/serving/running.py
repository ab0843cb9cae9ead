"""A service on a local socket, and a model whose computation waits for the test."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette

from splitattn.errors import ImageError
from splitattn.images.limits import Limits
from splitattn.serving.app import application
from splitattn.serving.served import Options, Served, check_parameters
from splitattn.serving.settings import Settings

WAIT = 20  # seconds; everything that is waited for comes at once


class Gated(Served):
    """A model that answers with the length of each image, once its gate is open."""

    task = "classification"
    engine = "none"
    parameters: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.model, self.weights, self.classes = "gated", "none", ("a",)
        self.gate, self.busy = threading.Event(), threading.Event()
        self.compiled = threading.Event()
        self.compiled.set()
        self.batches: list[list[bytes]] = []

    def prepare(self, batch_sizes: Sequence[int]) -> None:
        self.prepared = list(batch_sizes)
        assert self.compiled.wait(WAIT)

    def load(self, content: bytes, limits: Limits, name: str, options: Options) -> bytes:
        del limits, options
        if content.startswith(b"broken"):
            raise ImageError(f"{name}: broken")
        return content

    def compute(self, loaded: list[bytes]) -> Sequence[int]:
        self.busy.set()
        assert self.gate.wait(WAIT)
        self.batches.append(loaded)
        if b"crash" in loaded:
            raise RuntimeError("out of memory")
        return [len(each) for each in loaded]

    def answer(self, loaded: Any, result: Any, options: Options, name: str) -> dict[str, Any]:
        del loaded, options, name
        return {"length": result}

    def options(self, query: Mapping[str, str]) -> Options:
        check_parameters(query, self.parameters)
        return {}


class Running:
    """A service that listens.

    Attributes:
        url: its address.
        port: its port.
        app: the application.
    """

    def __init__(self, server: uvicorn.Server, app: Starlette) -> None:
        self.server, self.app = server, app
        self.port: int = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx2.Client(base_url=self.url, timeout=WAIT)

    def metric(self, line: str) -> float:
        """The value of a line of `/metrics`."""
        text = self.app.state.service.metrics.text().decode()
        (value,) = (row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(line))
        return float(value)


@contextmanager
def running(app: Starlette) -> Iterator[Running]:
    config = uvicorn.Config(app, port=0, log_config=None, ws="none", timeout_keep_alive=75)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    ready = threading.Event()
    while not (server.started and app.state._state.get("starting")):
        assert thread.is_alive()
        ready.wait(0.005)
    own = Running(server, app)
    try:
        yield own
    finally:
        own.client.close()
        server.should_exit = True
        thread.join(WAIT)
        assert not thread.is_alive()


@contextmanager
def gated(*, compiled: bool = True, **settings: Any) -> Iterator[tuple[Running, Gated]]:
    model = Gated()
    if not compiled:
        model.compiled.clear()
    with running(application(model, Settings(**settings))) as own:
        try:
            if compiled:
                until_ready(own)
            yield own, model
        finally:
            model.gate.set()
            model.compiled.set()


def until_ready(own: Running) -> None:
    pause = threading.Event()
    while own.client.get("/readyz").status_code != 200:
        pause.wait(0.005)
