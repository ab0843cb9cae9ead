"""`splitattn serve`: options, signals and ending. tests/serving tests what a service answers."""

import gc
import json
import logging
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2
import pytest

from splitattn.classifier import Classifier
from splitattn.cli import main
from splitattn.serving import server
from splitattn.serving.logs import log_as_json
from splitattn.serving.settings import Settings
from tests.cli.networks import write_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["serve", *map(str, arguments)])
    return int(end.value.code or 0)


def test_options_become_settings(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        server, "serve", lambda model, settings, **rest: asked.update(rest, m=model, s=settings)
    )
    key = tmp_path / "key"
    key.write_text("secret\n")
    options = ("--weights", weights, "--engine", "onnxruntime", "--api-key-file", key)
    numbers = ("--max-batch", 4, "--max-wait", 2, "--max-queue", 9, "--max-body-mib", 1)
    assert call(*options, *numbers, "--no-explain", "--port", 0) == 0
    assert isinstance(asked["m"], Classifier)
    assert asked["s"] == Settings(
        max_batch=4,
        max_wait=0.002,
        max_queue=9,
        max_images=9,
        max_body=2**20,
        explain=False,
        key="secret",
        trusted_hosts=("localhost", "127.0.0.1", "::1"),
    )
    assert (asked["host"], asked["port"]) == ("127.0.0.1", 0)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    asked["on_ready"]("http://127.0.0.1:8000")
    assert capsys.readouterr().out == "ready at http://127.0.0.1:8000; Ctrl+C ends it\n"
    assert call("--max-images", 64, "--max-queue", 32) == 2
    assert "max_images must be at most max_queue, 32, got 64" in capsys.readouterr().err
    call(*options, "--host", "0.0.0.0")
    assert asked["s"].trusted_hosts == ()
    call(*options, "--trusted-host", "photos.example")
    assert asked["s"].trusted_hosts == ("photos.example",)


def test_wrong_calls_are_reported_in_one_line(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    own = ("--weights", weights, "--engine", "onnxruntime")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in (
            (("--max-batch", 0), "max_batch must be at least 1, got 0"),
            (("--api-key-file", empty), "must hold a key, it is empty"),
            (("--api-key-file", tmp_path / "none"), "No such file"),
            ((*own, "--port", port), f"cannot listen on 127.0.0.1 port {port}"),
        ):
            assert call(*arguments) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert message in line


def test_after_sigterm_requests_are_answered_while_the_service_drains(weights: Path) -> None:
    """The main thread of this process serves while other threads send requests."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found: dict[str, Any] = {"lost": 0, "answered": 0}

    def keep_asking() -> None:
        """Send requests until the service closes the connection or announces that it will."""
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        while True:
            try:
                connection.request("POST", "/v1/predict", b"no image")
            except OSError:
                return
            try:
                answer = connection.getresponse()
            except OSError:
                found["lost"] += 1
                return
            answer.read()
            found["answered"] += 1
            if answer.headers["Connection"] == "close":
                return

    def ask() -> None:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            for _ in range(1000):
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx2.TransportError:
                    pass
                time.sleep(0.01)
            for thread in (others := [threading.Thread(target=keep_asking) for _ in range(4)]):
                thread.start()
            for _ in range(2000):
                if found["answered"] >= 5:
                    break
                time.sleep(0.01)
            before = found["answered"]
            found["frozen"] = gc.get_freeze_count() > 0
            os.kill(os.getpid(), signal.SIGTERM)
            for thread in others:
                thread.join(20)
            found["more"] = found["answered"] > before >= 5
            found["ready"] = client.get("/readyz").status_code
            found["answer"] = client.post("/v1/predict", content=b"no image").status_code

    asking = threading.Thread(target=ask)
    asking.start()
    model = Classifier(weights=weights, engine="onnxruntime")
    server.serve(model, Settings(drain_wait=1.0), port=port)
    asking.join(20)
    del found["answered"]
    assert found == {"ready": 503, "answer": 422, "lost": 0, "frozen": True, "more": True}
    assert gc.get_freeze_count() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_model_that_cannot_be_prepared_ends_the_service(
    weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = Classifier(weights=weights, engine="onnxruntime")

    def fail(*_: object) -> None:
        raise MemoryError("no room for the network")

    monkeypatch.setattr(model.engine, "fix_batches", fail)
    with pytest.raises(SystemExit) as end:
        server.serve(model, Settings(), port=0)
    assert end.value.code == 1
    assert "no room for the network" in caplog.text


def test_a_second_signal_ends_the_service_at_once(weights: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def end() -> None:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            for status in (200, 503):  # ready, and draining
                found = None
                while found != status:
                    time.sleep(0.01)
                    with suppress(httpx2.TransportError):
                        found = client.get("/readyz").status_code
                os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end)
    ending.start()
    started = time.monotonic()
    model = Classifier(weights=weights, engine="onnxruntime")
    server.serve(model, Settings(drain_wait=20.0), port=port)
    assert time.monotonic() - started < 15
    ending.join(20)


def test_other_libraries_log_only_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    """huggingface_hub logs each request, whose address may hold a signature."""
    log_as_json()
    for name in ("splitattn.serving", "uvicorn.any", "httpx", "huggingface_hub"):
        logging.getLogger(name).info("from %s", name)
        logging.getLogger(name).warning("warning from %s", name)
    lines = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert [line for line in lines if not line.startswith("warning")] == [
        "from splitattn.serving",
        "from uvicorn.any",
    ]
    assert len(lines) == 6
