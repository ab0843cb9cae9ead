"""Refusals, deadlines and the end of a service; the model's computation waits for the test."""

import asyncio
import base64
import logging
import signal
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import uvicorn

from splitattn.errors import InputError
from splitattn.serving import server
from splitattn.serving.app import application
from splitattn.serving.settings import Settings

from .running import WAIT, Gated, Running, gated, running, until_ready


def post(own: Running, content: bytes = b"image", **headers: str) -> httpx2.Response:
    return own.client.post("/v1/predict", content=content, headers=headers)


def fault(response: httpx2.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert error["status"] == response.status_code
    assert "\n" not in error["message"]
    return response.status_code, error["code"]


def wait_for(true: "object") -> None:
    pause = threading.Event()
    deadline = time.monotonic() + WAIT
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        pause.wait(0.005)


def send(own: Running, content: bytes, *, whole: bool = True) -> socket.socket:
    """Send a request on a new socket without reading the answer."""
    length = len(content) if whole else len(content) + 100
    connection = socket.create_connection(("127.0.0.1", own.port), timeout=WAIT)
    head = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def test_a_service_that_compiles_is_alive_but_not_ready() -> None:
    with gated(max_batch=4, compiled=False) as (own, model):
        model.gate.set()
        assert own.client.get("/livez").status_code == 200
        ready = own.client.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"ready": False, "state": "loading"})
        assert fault(post(own)) == (503, "loading")
        model.compiled.set()
        until_ready(own)
        assert model.prepared == [1, 4]
        assert post(own).status_code == 200


def test_a_full_queue_is_429_at_once_and_nothing_else() -> None:
    with (
        gated(max_queue=2, max_images=2, max_batch=1) as (own, model),
        ThreadPoolExecutor(2) as pool,
    ):
        accepted: list[Future[httpx2.Response]] = [pool.submit(post, own) for _ in range(2)]
        wait_for(lambda: own.metric("splitattn_queue_images") == 2)
        started = time.monotonic()
        refused = post(own)
        assert time.monotonic() - started < 1
        assert fault(refused) == (429, "queue_full")
        assert refused.headers["Retry-After"] == "1"
        model.gate.set()
        assert [each.result(WAIT).json()["length"] for each in accepted] == [5, 5]
        assert post(own).status_code == 200
        assert own.metric("splitattn_queue_images") == 0
        assert own.metric("splitattn_queue_bytes") == 0


def test_bytes_that_wait_are_bounded_too() -> None:
    with gated(max_queued_bytes=1000) as (own, model), ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, own, b"x" * 600)
        assert model.busy.wait(WAIT)
        assert fault(post(own, b"x" * 600)) == (429, "queue_full")
        model.gate.set()
        assert first.result(WAIT).status_code == 200
        assert post(own, b"x" * 600).status_code == 200


def test_a_bad_image_leaves_nothing_behind_that_is_not_counted() -> None:
    with gated(max_queue=4, max_images=4, max_batch=1) as (own, model), ThreadPoolExecutor(1) as p:
        stays = p.submit(post, own, b"stays")
        assert model.busy.wait(WAIT)
        data = [base64.b64encode(each).decode() for each in (b"broken", b"one", b"two")]
        tensor = {"name": "image", "datatype": "BYTES", "shape": [3], "data": data}
        for _ in range(5):
            refused = own.client.post("/v2/models/gated/infer", json={"inputs": [tensor]})
            assert (refused.status_code, "broken" in refused.json()["error"]) == (422, True)
            assert own.metric("splitattn_queue_images") == 1
        model.gate.set()
        assert stays.result(WAIT).status_code == 200
        assert post(own, b"next").status_code == 200
        assert model.batches == [[b"stays"], [b"next"]]


def test_only_so_many_images_are_decoded_while_one_is_computed() -> None:
    with gated(max_batch=2, workers=1) as (own, model), ThreadPoolExecutor(1) as pool:
        loaded: list[bytes] = []
        model.load = lambda content, *_: loaded.append(content) or content  # type: ignore[method-assign,assignment,func-returns-value]
        images = {"images": ["AAAA"] * 12}
        answer = pool.submit(own.client.post, "/v1/predict", json=images)
        assert model.busy.wait(WAIT)
        wait_for(lambda: len(loaded) == 8)
        time.sleep(0.05)
        assert len(loaded) == 8
        model.gate.set()
        assert len(answer.result(WAIT).json()["results"]) == 12


def test_parsing_a_body_counts_toward_the_deadline_and_files_are_not_parsed() -> None:
    with gated(deadline=0.3) as (own, model):
        model.gate.set()
        free = threading.Event()
        own.app.state.service._readers.submit(free.wait, WAIT)
        refused = own.client.post("/v1/predict", json={"image": "AAAA"})
        assert fault(refused) == (504, "deadline")
        assert post(own).status_code == 200
        free.set()


def test_json_of_very_many_values_is_413_before_it_takes_memory() -> None:
    with gated() as (own, _):
        for path in ("/v1/predict", "/v2/models/gated/infer"):
            content = b'{"images": [' + b"[]," * 2**20 + b"[]]}"
            json = {"Content-Type": "application/json"}
            refused = own.client.post(path, content=content, headers=json)
            assert refused.status_code == 413
            assert "JSON may hold 1,048,576 values" in refused.text


def test_a_request_is_refused_at_once_while_all_threads_decode() -> None:
    settings = {"max_queue": 2, "max_images": 2, "max_batch": 1, "workers": 1}
    with gated(**settings) as (own, model), ThreadPoolExecutor(2) as pool:
        decoding = threading.Event()

        def load(content: bytes, *_: object) -> bytes:
            decoding.set()
            assert model.gate.wait(WAIT)
            return content

        model.load = load  # type: ignore[method-assign,assignment]
        accepted = [pool.submit(post, own) for _ in range(2)]
        assert decoding.wait(WAIT)
        wait_for(lambda: own.metric("splitattn_queue_images") == 2)
        assert fault(post(own)) == (429, "queue_full")
        refused = own.client.post("/v1/predict", json={"images": ["AAAA"]})
        assert fault(refused) == (429, "queue_full")
        model.gate.set()
        assert [each.result(WAIT).status_code for each in accepted] == [200, 200]


def test_images_of_clients_that_left_are_not_computed() -> None:
    with gated(max_batch=1) as (own, model):
        stays = send(own, b"stays")
        assert model.busy.wait(WAIT)
        leaves = send(own, b"leaves")
        wait_for(lambda: own.metric("splitattn_queue_images") == 2)
        leaves.close()
        wait_for(lambda: own.metric("splitattn_queue_images") == 1)
        model.gate.set()
        assert stays.recv(100).startswith(b"HTTP/1.1 200")
        stays.close()
        assert model.batches == [[b"stays"]]
        assert own.metric('splitattn_dropped_total{reason="client_left"}') == 1


def test_after_the_deadline_it_is_504_and_not_computed() -> None:
    with gated(deadline=0.2, max_batch=1) as (own, model), ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, own, b"first")
        assert model.busy.wait(WAIT)
        assert fault(post(own, b"late")) == (504, "deadline")
        assert fault(first.result(WAIT)) == (504, "deadline")
        model.gate.set()
        assert post(own, b"next").status_code == 200
        assert model.batches == [[b"first"], [b"next"]]


def test_a_body_that_does_not_come_is_given_up_while_others_are_answered() -> None:
    with gated(body_timeout=0.3) as (own, model):
        model.gate.set()
        slow = [send(own, b"half", whole=False) for _ in range(20)]
        assert post(own).status_code == 200
        for connection in slow:
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
            connection.close()
        assert own.metric("splitattn_queue_bytes") == 0


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_413(chunked: bool) -> None:
    with gated(max_body=1000) as (own, model):
        model.gate.set()
        content = iter([b"x" * 600] * 2) if chunked else b"x" * 1001
        refused = own.client.post("/v1/predict", content=content)
        assert fault(refused) == (413, "too_large")
        assert post(own, b"x" * 1000).status_code == 200


def test_a_crash_of_the_network_is_500_and_the_next_image_is_answered() -> None:
    with gated() as (own, model):
        model.gate.set()
        refused = post(own, b"crash")
        assert fault(refused) == (500, "internal")
        assert "memory" not in refused.text  # details are only for the log
        assert post(own).json()["length"] == 5


def test_ending_answers_what_was_accepted() -> None:
    with gated(max_batch=1) as (own, model), ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(post, own) for _ in range(3)]
        wait_for(lambda: own.metric("splitattn_queue_images") == 3)
        own.app.state.service.drain()
        ready = own.client.get("/readyz")
        assert (ready.status_code, ready.json()["state"]) == (503, "draining")
        own.server.should_exit = True
        time.sleep(0.2)
        model.gate.set()
        assert [each.result(WAIT).json()["length"] for each in accepted] == [5] * 3


def test_while_it_drains_answers_close_their_connections() -> None:
    with gated() as (own, model):
        model.gate.set()
        assert "Connection" not in post(own).headers
        own.app.state.service.drain()
        answered = post(own)
        assert (answered.status_code, answered.headers["Connection"]) == (200, "close")
        assert own.client.get("/readyz").headers["Connection"] == "close"


def test_a_service_whose_model_cannot_be_prepared_is_not_alive(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Gated()
    model.prepare = lambda _: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with running(application(model, Settings())) as own:
        wait_for(lambda: own.client.get("/livez").status_code == 500)
        assert own.client.get("/v2/health/live").status_code == 500
        assert own.client.get("/readyz").json() == {"ready": False, "state": "failed"}
        assert fault(post(own)) == (503, "failed")
    assert "ZeroDivisionError" in caplog.text


def test_a_signal_while_the_model_is_prepared_ends_the_service_quietly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Gated()
    model.compiled.clear()
    app, listening = application(model, Settings()), server._listen("127.0.0.1", 0)
    own = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    told: list[str] = []

    async def interrupted() -> None:
        running = asyncio.create_task(server._run(own, app, Settings(), listening, told.append))
        while not own.started:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0.5)
        model.compiled.set()
        await running

    with caplog.at_level(logging.INFO):
        asyncio.run(interrupted())
    assert "Traceback" not in caplog.text
    assert "is served at" not in caplog.text
    assert not told


def test_the_address_is_reported_once_the_service_answers() -> None:
    app, listening = application(Gated(), Settings()), server._listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    own = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    told: list[tuple[str, str]] = []

    def tell(url: str) -> None:
        told.append((url, app.state.service.state))
        signal.raise_signal(signal.SIGINT)

    asyncio.run(server._run(own, app, Settings(), listening, tell))
    assert told == [(f"http://127.0.0.1:{port}", "ready")]


def test_a_service_is_ready_before_it_can_explain() -> None:
    model, prepared = Gated(), threading.Event()
    model.explains = True
    model.prepare_explanations = lambda: prepared.wait(WAIT)  # type: ignore[method-assign,assignment,return-value]
    with running(application(model, Settings())) as own:
        until_ready(own)
        prepared.set()


def test_a_service_that_stops_is_503() -> None:
    with gated() as (own, _):
        own.app.state.service.stop()
        assert fault(post(own)) == (503, "stopping")
        assert own.client.get("/livez").status_code == 200
        assert own.client.get("/readyz").status_code == 503


def test_requests_need_the_key_if_one_is_set() -> None:
    with gated(key="secret-key") as (own, model):
        model.gate.set()
        for wrong in ({}, {"Authorization": "Bearer secret-kez"}, {"Authorization": "secret-key"}):
            refused = own.client.post("/v1/predict", content=b"image", headers=wrong)
            assert fault(refused) == (401, "unauthorized")
        assert own.client.get("/metrics").status_code == 401
        right = {"Authorization": "Bearer secret-key"}
        assert own.client.post("/v1/predict", content=b"image", headers=right).status_code == 200
        assert "secret" not in repr(own.app.state.service.settings)


def test_untrusted_hosts_are_refused_if_trusted_ones_are_set() -> None:
    with gated(trusted_hosts=("localhost", "127.0.0.1", "::1")) as (own, _):
        for good in ("localhost", f"127.0.0.1:{own.port}", "[::1]:80", "LOCALHOST"):
            assert own.client.get("/v1/model", headers={"Host": good}).status_code == 200
        for bad in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"):
            refused = own.client.get("/v1/model", headers={"Host": bad})
            assert fault(refused) == (400, "untrusted_host")


def test_trusted_addresses_are_compared_in_their_short_form() -> None:
    with gated(trusted_hosts=("0:0:0:0:0:0:0:1", "FE80::A")) as (own, _):
        for good in ("[::1]:80", "[0::1]", "[fe80::a]"):
            assert own.client.get("/v1/model", headers={"Host": good}).status_code == 200, good
        refused = own.client.get("/v1/model", headers={"Host": "[::2]"})
        assert fault(refused) == (400, "untrusted_host")


@pytest.mark.parametrize(
    "host", ["", "...", "a..b", ".a", "http://a", "a:80", "a/b", "::x", 5, None]
)
def test_a_trusted_host_that_can_match_no_request_is_refused(host: Any) -> None:
    with pytest.raises(InputError, match="trusted_hosts must be names without a scheme, port or"):
        Settings(trusted_hosts=("localhost", host))


@pytest.mark.parametrize("hosts", ["localhost", b"localhost", 5, None])
def test_trusted_hosts_are_several(hosts: Any) -> None:
    with pytest.raises(
        InputError, match=r"trusted_hosts must be a tuple .*, got b?'?(local|5|None)"
    ):
        Settings(trusted_hosts=hosts)


@pytest.mark.parametrize("host", ["localhost", "a.example.", "my_host-1", "10.1.2.3", "::1"])
def test_names_and_addresses_are_trusted_hosts(host: str) -> None:
    assert Settings(trusted_hosts=(host,)).trusted_hosts == (host,)


PROBES = (*("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/gated/ready"),)


def test_probes_call_a_pod_by_its_address_and_have_no_key() -> None:
    with gated(trusted_hosts=("Photos.Example",), key="secret") as (own, _):
        by_address = {"Host": "10.1.2.3:8000"}
        for path in PROBES:
            assert own.client.get(path, headers=by_address).status_code == 200, path
        key = {"Authorization": "Bearer secret"}
        assert own.client.get("/metrics", headers=by_address | key).status_code == 200
        assert fault(own.client.get("/metrics", headers=by_address)) == (401, "unauthorized")
        named = own.client.get("/v1/model", headers={"Host": "photos.example"} | key)
        assert named.status_code == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"deadline": 0.0}, "deadline must be more than 0, got 0.0"),
        ({"max_wait": float("inf")}, "max_wait must be at least 0, got inf"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"max_images": 200}, "max_images must be at most max_queue, 128, got 200"),
        ({"key": ""}, "key must not be empty"),
    ],
)
def test_settings_are_checked_where_they_are_built(
    settings: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        Settings(**settings)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
