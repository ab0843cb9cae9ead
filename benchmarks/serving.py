"""Check that `splitattn serve` keeps its limits under load on this machine.

usage: python benchmarks/serving.py DATA [--only PART ...] [--quick] [--requests 50000]
           [--model NAME] [--peers] [--output FILE]

DATA has photographs; 500 of them are sent. "met" of each part says whether it kept its limits. The
clients run in this process, on the same cores as the service, over the loopback interface. Every
part starts its own service. Nothing else should run meanwhile.

- "ready": time from the start of the process to the first 200 of `/readyz`.
- "equality": probabilities equal those of `Classifier.predict`, in batches of all sizes, which
  /metrics must have counted.
- "throughput": twice as many clients as images in a batch, in turn with `predict_stream` on the
  same files in another process.
- "single": latency for one client, compared with decoding and running one image in this process.
- "overload": 64 clients that send 1.5 times the rate that 16 clients reached just before.
- "memory": the service's memory over many requests of mixed files.
- "hostile": 1,000 idle connections, slow bodies, clients that disconnect, hostile and mutated
  files.
- "ends": SIGTERM and SIGKILL under load, 20 times each. After SIGTERM, clients continue until an
  answer says `Connection: close` or the service accepts no connection.
- "peers" (with --peers): the same clients against LitServe and a plain FastAPI script, both with
  timm's network of the same architecture in eager PyTorch, and against a FastAPI script with our
  `Classifier`, one image at a time. Ours run in OpenVINO, with random weights.

With --quick every part takes seconds and shows only that it runs. All parts take 20 minutes on two
cores, and "peers" 6 more. With --only, the named parts are added to FILE.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from splitattn import environment
from splitattn.classifier import Classifier
from splitattn.data.sources import open_data
from splitattn.files import replacing

ROOT = Path(__file__).parents[1]
OUTPUT = Path(__file__).with_suffix(".json")
MAX_BATCH = 8
QUEUE = 32  # limit in "overload", small enough to be reached
CLIENTS = 64
PATIENCE = 60  # seconds to wait for a service to be ready or to answer

PREDICT = """
import pickle, sys, time
from splitattn.classifier import Classifier
files = pickle.load(open(sys.argv[1], "rb"))
classifier = Classifier(*sys.argv[3:4])
for _ in classifier.predict_stream(files[:64], batch_size=8):
    pass
seconds, done = float(sys.argv[2]), 0
started = time.monotonic()
while time.monotonic() - started < seconds:
    for _ in classifier.predict_stream(files, batch_size=8):
        done += 1
print(done / (time.monotonic() - started))
"""

PEERS = {
    "FastAPI + splitattn": """
import sys, uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from splitattn.classifier import Classifier
classifier = Classifier(weights=sys.argv[3])
app = FastAPI()
@app.get("/readyz")
def ready():
    return {}
def label(content):
    return {"predictions": [[each.index, each.probability] for each in classifier.predict(content)]}
@app.post("/v1/predict")
async def predict(request: Request):
    return await run_in_threadpool(label, await request.body())
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
""",
    "FastAPI + timm": """
import io, sys, timm, torch, uvicorn
from fastapi import FastAPI, Request
from PIL import Image
model = timm.create_model(sys.argv[2]).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
app = FastAPI()
@app.get("/readyz")
def ready():
    return {}
def label(content):
    image = transform(Image.open(io.BytesIO(content)).convert("RGB"))
    with torch.inference_mode():
        probabilities = model(image[None]).softmax(1)[0]
    best = probabilities.topk(5)
    return {"predictions": list(zip(best.indices.tolist(), best.values.tolist()))}
@app.post("/v1/predict")
async def predict(request: Request):
    from fastapi.concurrency import run_in_threadpool
    return await run_in_threadpool(label, await request.body())
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
""",
    "LitServe": """
import base64, io, sys, timm, torch, litserve
from PIL import Image
class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = timm.create_model(sys.argv[2]).eval()
        config = timm.data.resolve_model_data_config(self.model)
        self.transform = timm.data.create_transform(**config, is_training=False)
    def decode_request(self, request):
        content = base64.b64decode(request["image"])
        return self.transform(Image.open(io.BytesIO(content)).convert("RGB"))
    def batch(self, images):
        return torch.stack(images)
    def predict(self, images):
        with torch.inference_mode():
            return self.model(images).softmax(1).topk(5)
    def unbatch(self, found):
        return list(zip(found.indices.tolist(), found.values.tolist()))
    def encode_response(self, found):
        return {"predictions": found}
if __name__ == "__main__":
    api = Api(max_batch_size=8, batch_timeout=0.0, api_path="/v1/predict")
    litserve.LitServer(api, accelerator="cpu", healthcheck_path="/readyz").run(
        port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
""",
}

RANDOM_WEIGHTS = """
import sys, splitattn
from splitattn.weights.catalogue import default_preprocessing
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata
classes = tuple(map(str, range(1000)))
preprocessing = default_preprocessing(sys.argv[2])
metadata = ModelMetadata(model=sys.argv[2], classes=classes, preprocessing=preprocessing)
write_checkpoint(sys.argv[1], splitattn.create_model(sys.argv[2]).state_dict(), metadata)
"""
RUNS_IN = {
    "splitattn": "OpenVINO",
    "FastAPI + splitattn": "OpenVINO",
    "FastAPI + timm": "PyTorch, eager",
    "LitServe": "PyTorch, eager, timm's network",
}
TIMM_NAMES = {"resnest50": "resnest50d", "resnest14": "resnest14d", "resnest26": "resnest26d"}


@dataclass(kw_only=True)
class Heard:
    """The answers that clients received.

    Attributes:
        seconds: the times until answers, by status.
        statuses: the number of answers of each status.
        lost: the number of requests without an answer.
        refused: the number of clients that ended because no service listened.
        told_to_close: the number of clients that ended because an answer said so.
    """

    seconds: dict[int, list[float]] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    refused: int = 0
    told_to_close: int = 0

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.seconds.setdefault(status, []).append(seconds)

    def milliseconds(self, percent: float, status: int = 200) -> float | None:
        values = self.seconds.get(status)
        return round(1000 * float(np.percentile(values, percent)), 2) if values else None


class RefusedError(Exception):
    """No service listened, so nothing was sent."""


class Connection:
    """A persistent connection, which is opened again after the service has closed it.

    Attributes:
        was_told_to_close: whether the last answer said `Connection: close`.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.was_told_to_close = False
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, content: bytes, path: str, kind: str) -> tuple[int, bytes]:
        """Send a request; returns status and body.

        Raises:
            RefusedError: no service accepts the connection.
            ConnectionError: the connection was accepted, but no answer came.
        """
        if self._streams is None or self._streams[1].is_closing():
            try:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError as error:
                raise RefusedError from error
        reader, writer = self._streams
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        try:
            writer.write(head.encode() + content)
            await writer.drain()
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            headers = dict(
                line.lower().split(": ", 1) for line in answer.split("\r\n")[1:] if ": " in line
            )
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        except asyncio.IncompleteReadError as error:
            self.close()
            raise ConnectionError("closed before the answer") from error
        except ConnectionError:
            self.close()
            raise
        self.was_told_to_close = headers.get("connection") == "close"
        if self.was_told_to_close:
            self.close()
        return int(answer.split(" ", 2)[1]), body

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
        self._streams = None


class Service:
    """A service in another process."""

    def __init__(self, command: Sequence[str | Path], port: int) -> None:
        self.port = port
        self._log = (TEMPORARY / f"log-{port}").open("wb")
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, start_new_session=True
        )

    async def ready(self) -> float:
        """Wait until the service says that it is ready; returns the seconds."""
        started = time.monotonic()
        while time.monotonic() - started < PATIENCE:
            with suppress(OSError, ConnectionError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                line = await reader.readline()
                writer.close()
                if b" 200 " in line:
                    return time.monotonic() - started
            if self.process.poll() is not None:
                break
            await asyncio.sleep(0.01)
        raise SystemExit(f"no service: {Path(self._log.name).read_text()[-2000:]}")

    def memory(self) -> int:
        """Resident bytes of the service, which is a single process."""
        return sum(
            int(line.split()[1]) * 1024
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            if line.startswith("VmRSS:")
        )

    def held(self) -> dict[str, int]:
        """The numbers of open files and sockets, and of threads."""
        own = Path(f"/proc/{self.process.pid}")
        return {
            "files": len(list((own / "fd").iterdir())),
            "threads": len(list((own / "task").iterdir())),
        }

    async def metrics(self) -> dict[str, float]:
        """The values of `/metrics` by line."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        rows = (line.rpartition(" ") for line in text.splitlines() if line.startswith("splitattn_"))
        return {name: float(value) for name, _, value in rows}

    async def end(self) -> int:
        """End the service by SIGTERM; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(self.process.wait, PATIENCE)
        with suppress(ProcessLookupError):  # LitServe leaves processes running
            os.killpg(self.process.pid, signal.SIGKILL)
        self._log.close()
        return status


TEMPORARY = Path()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@asynccontextmanager
async def serving(*options: str, peer: Sequence[str] = ()) -> AsyncIterator[Service]:
    port = free_port()
    ours = (sys.executable, "-m", "splitattn", "serve", "--port", str(port), *options)
    command = [each.replace("PORT", str(port)) for each in peer] or ours
    service = Service(command, port)
    try:
        await service.ready()
        yield service
    finally:
        await service.end()


async def clients(
    port: int,
    count: int,
    contents: Sequence[bytes],
    *,
    seconds: float = 1e9,
    requests: int = 10**9,
    rate: float | None = None,
    path: str = "/v1/predict",
    kind: str = "application/octet-stream",
    heard: Heard | None = None,
    until_closed: bool = False,
) -> tuple[Heard, float]:
    """Run clients; returns their answers and the seconds of all.

    Each client sends a request after the answer to the last one, or, with `rate`, at its share of
    that many requests per second. With `until_closed` a client ends when an answer says
    `Connection: close` or no service listens.
    """
    heard = Heard() if heard is None else heard
    started, asked = time.monotonic(), 0

    async def one(number: int) -> None:
        nonlocal asked
        connection = Connection(port)
        turn = 0
        while time.monotonic() - started < seconds and asked < requests:
            if rate:  # clients take turns, each with its share of the rate
                due = started + (turn * count + number) / rate
                await asyncio.sleep(max(due - time.monotonic(), 0))
            content = contents[asked % len(contents)]
            asked += 1
            turn += 1
            begun = time.monotonic()
            try:
                status, _ = await connection.post(content, path, kind)
                heard.add(status, time.monotonic() - begun)
            except OSError:
                heard.lost += 1
                return
            except RefusedError:
                heard.refused += 1
                return
            if until_closed and connection.was_told_to_close:
                heard.told_to_close += 1
                return
        connection.close()

    await asyncio.gather(*(one(number) for number in range(count)))
    return heard, time.monotonic() - started


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of the parts.

    Attributes:
        contents: encoded photographs.
        stored: a file with the photographs, for another process.
        quick: measure for seconds rather than minutes.
        requests: number of requests in "memory".
        model: the network in "peers".
    """

    contents: list[bytes]
    stored: Path
    quick: bool
    requests: int
    model: str

    @property
    def seconds(self) -> float:
        return 3 if self.quick else 20

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 5


async def ready(plan: Plan) -> dict[str, Any]:
    found = []
    for _ in range(plan.rounds):
        port = free_port()
        command = (sys.executable, "-m", "splitattn", "serve", "--port", str(port))
        service = Service(command, port)
        found.append(await service.ready())
        await service.end()
    median = statistics.median(found)
    return {"met": median <= 1.5, "seconds": found, "median": median, "at_most": 1.5}


async def equality(plan: Plan) -> dict[str, Any]:
    contents = plan.contents[: 40 if plan.quick else 200]
    classifier = Classifier()
    every = len(classifier.classes)
    expected = [
        {each.index: each.probability for each in predictions}
        for predictions in classifier.predict(contents, topk=every)
    ]
    worst = 0.0
    async with serving("--max-batch", str(MAX_BATCH)) as service:
        for together in (*range(1, MAX_BATCH + 2), 2 * MAX_BATCH):
            waiting = iter(enumerate(contents))

            async def one(waiting: Any = waiting) -> None:
                nonlocal worst
                connection = Connection(service.port)
                for index, content in waiting:
                    path = f"/v1/predict?topk={every}"
                    status, body = await connection.post(content, path, "image/jpeg")
                    assert status == 200, body
                    for each in json.loads(body)["predictions"]:
                        away = abs(each["probability"] - expected[index][each["index"]])
                        worst = max(worst, away)
                connection.close()

            await asyncio.gather(*(one() for _ in range(together)))
        sizes = batch_sizes(await service.metrics())
    return {
        "met": worst <= 1e-5 and all(size in sizes for size in range(1, MAX_BATCH + 1)),
        "images": len(contents),
        "batches": sizes,
        "largest_difference": worst,
        "at_most": 1e-5,
    }


def batch_sizes(metrics: dict[str, float]) -> dict[int, int]:
    """The number of batches of each size up to MAX_BATCH."""
    sizes, before = {}, 0.0
    for size in range(1, MAX_BATCH + 1):
        until = metrics[f'splitattn_batch_images_bucket{{le="{float(size)}"}}']
        if until > before:
            sizes[size] = int(until - before)
        before = until
    return sizes


async def predict_rate(plan: Plan) -> float:
    command = (sys.executable, "-c", PREDICT, str(plan.stored), str(plan.seconds))
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return float(out)


async def throughput(plan: Plan) -> dict[str, Any]:
    rows = []
    for _ in range(plan.rounds):
        plain = await predict_rate(plan)
        async with serving("--max-batch", str(MAX_BATCH)) as service:
            await clients(service.port, 2 * MAX_BATCH, plan.contents, seconds=1)
            heard, took = await clients(
                service.port, 2 * MAX_BATCH, plan.contents, seconds=plan.seconds
            )
        served = heard.statuses[200] / took
        rows.append({"predict": plain, "served": served, "ratio": served / plain})
        assert set(heard.statuses) == {200}, heard.statuses
        assert not heard.lost
    ratio = statistics.median(row["ratio"] for row in rows)
    return {
        "met": ratio >= 0.85,
        "clients": 2 * MAX_BATCH,
        "rounds": rows,
        "median_ratio": ratio,
        "at_least": 0.85,
    }


async def single(plan: Plan) -> dict[str, Any]:
    classifier = Classifier()
    classifier.engine.fix_batches([1, MAX_BATCH], classifier.preprocessing)
    rows = []
    async with serving("--max-batch", str(MAX_BATCH)) as service:
        for _ in range(plan.rounds):
            plain = []
            for content in plan.contents:
                begun = time.monotonic()
                pixels = await asyncio.to_thread(classifier.load, content)
                await asyncio.to_thread(classifier.probabilities, pixels[None])
                plain.append(1000 * (time.monotonic() - begun))
            heard, _ = await clients(service.port, 1, plan.contents, requests=len(plan.contents))
            rows.append(
                {
                    "decode_and_network_p50": float(np.median(plain)),
                    # Shows how much the machine, or other programs on it, vary these times.
                    "decode_and_network_p99": float(np.percentile(plain, 99)),
                    "p50": heard.milliseconds(50),
                    "p99": heard.milliseconds(99),
                }
            )
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    p50, p99 = 1.15 * middle["decode_and_network_p50"] + 1, 2 * middle["p50"]
    return {
        "met": middle["p50"] <= p50 and middle["p99"] <= p99,
        "milliseconds": rows,
        **middle,
        "p50_at_most": p50,
        "p99_at_most": p99,
    }


async def overload(plan: Plan) -> dict[str, Any]:
    options = ("--max-batch", str(MAX_BATCH), "--max-queue", str(QUEUE))
    rows, statuses, lost = [], Counter[int](), 0
    async with serving(*options) as service:
        for _ in range(plan.rounds):
            seconds = plan.seconds / 2
            heard, took = await clients(
                service.port, 2 * MAX_BATCH, plan.contents, seconds=seconds / 2
            )
            rate = heard.statuses[200] / took
            heard, took = await clients(
                service.port, CLIENTS, plan.contents, seconds=seconds, rate=1.5 * rate
            )
            statuses += heard.statuses
            lost += heard.lost
            rows.append(
                {
                    "rate": rate,
                    "asked": sum(heard.statuses.values()) / took,
                    "accepted_p99": heard.milliseconds(99) or 0.0,
                    "accepted_p99_at_most": 1000 * QUEUE / rate * 1.2,
                    "refused_p99": heard.milliseconds(99, 429) or 0.0,
                }
            )
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return {
        "met": 0 < middle["accepted_p99"] <= middle["accepted_p99_at_most"]
        and 0 < middle["refused_p99"] <= 20
        and set(statuses) == {200, 429}
        and not lost,
        "clients": CLIENTS,
        "rounds": rows,
        **middle,
        "refused_p99_at_most": 20,
        "statuses": dict(statuses),
        "lost": lost,
    }


def mixed(plan: Plan) -> list[bytes]:
    """The photographs, mixed with broken, empty, large and tiny files."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.effect_noise((3000, 2000), 50).convert("RGB").save(stream, "JPEG", quality=70)
    tiny = io.BytesIO()
    Image.new("RGB", (1, 1)).save(tiny, "PNG")
    odd = [b"no image", plan.contents[0][:1000], tiny.getvalue(), b""]
    contents = []
    for number, content in enumerate(plan.contents):
        contents.append(content)
        if number % 10 == 0:
            contents.append(odd[number // 10 % len(odd)])
        if number % 100 == 50:
            contents.append(stream.getvalue())
    return contents


async def memory(plan: Plan) -> dict[str, Any]:
    parts = 10
    contents, samples = mixed(plan), []
    statuses: Counter[int] = Counter()
    count = 2000 if plan.quick else plan.requests
    async with serving("--max-batch", str(MAX_BATCH)) as service:
        for _ in range(parts):
            heard, _ = await clients(service.port, 2 * MAX_BATCH, contents, requests=count // parts)
            statuses += heard.statuses
            samples.append(service.memory())
    growth = samples[-1] / samples[1] - 1  # the first part fills caches and pools
    return {
        "met": growth <= 0.05 and set(statuses) <= {200, 400, 422},
        "requests": sum(statuses.values()),
        "statuses": dict(statuses),
        "bytes": samples,
        "growth": growth,
        "at_most": 0.05,
    }


INFER = "/v2/models/resnest26_tiny/infer"
# Growth that is no leak: connections that are about to close, and threads of pools, which start on
# demand.
SPARE = {"files": 8, "threads": 40}
HEAD = "POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n"
LIST = b'{"images": ["AAAA", "iVBORw0KGgo="]}'
FORM = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nabc\r\n--b--\r\n'


def tensor(content: bytes) -> bytes:
    """A request of the Open Inference Protocol in JSON with one image."""
    data = [_base64(content)]
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}]
    return json.dumps({"inputs": inputs}).encode()


def mutated(contents: Sequence[bytes], count: int) -> list[bytes]:
    rng = random.Random(0)
    found = []
    for _ in range(count):
        content = bytearray(rng.choice(contents))
        for _ in range(rng.randint(1, 8)):
            if content:
                content[rng.randrange(min(len(content), 600))] = rng.randrange(256)
        found.append(
            bytes(content[: rng.randint(1, len(content))] if rng.random() < 0.3 else content)
        )
    return found


async def hostile(plan: Plan) -> dict[str, Any]:
    attacks = [path.read_bytes() for path in sorted((ROOT / "tests/attacks/images").iterdir())]
    count = 300 if plan.quick else 10_000
    idle_count = 100 if plan.quick else 1000
    async with serving("--max-batch", str(MAX_BATCH)) as service:
        await clients(service.port, 8, plan.contents, requests=200)
        await clients(service.port, 4, plan.contents, requests=20, path="/v1/explain")
        before = service.held()
        idle = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(idle_count)]
        slow = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(50)]
        for _, writer in slow:
            writer.write(HEAD.format(1000).encode() + b".")
        for _ in range(100):  # clients that disconnect before their answer
            _, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(HEAD.format(len(plan.contents[0])).encode() + plan.contents[0])
            writer.close()
        others, _ = await clients(service.port, 4, plan.contents, requests=200)
        kinds: Counter[int] = Counter()
        in_json = [tensor(content) for content in attacks]
        for path, contents in (
            ("/v1/predict", attacks),
            ("/v1/explain", attacks),
            (INFER, in_json),
        ):
            found, _ = await clients(service.port, 8, contents, requests=len(contents), path=path)
            kinds += found.statuses
            assert not found.lost
        for share, path, kind, originals in (
            (0.5, "/v1/predict", "image/jpeg", plan.contents),
            (0.2, "/v1/predict", "application/json", [LIST]),
            (0.2, "/v1/predict", "multipart/form-data; boundary=b", [FORM]),
            (0.1, INFER, "application/json", [tensor(b"abc")]),
        ):
            contents = mutated(originals, round(share * count))
            found, _ = await clients(
                service.port, 8, contents, requests=len(contents), path=path, kind=kind
            )
            kinds += found.statuses
            assert not found.lost
        for _, writer in (*idle, *slow):
            writer.close()
        await asyncio.sleep(1)
        after, _ = await clients(service.port, 4, plan.contents, requests=100)
        held = service.held()
        metrics = await service.metrics()
        alive = service.process.poll() is None
    everything = others.statuses + kinds + after.statuses
    errors = {s: n for s, n in everything.items() if s >= 500 and s not in (503, 504)}
    waiting = metrics["splitattn_queue_images"] + metrics["splitattn_queue_bytes"]
    return {
        "met": alive
        and not errors
        and not waiting
        and others.statuses[200] == after.statuses[200] * 2 == 200
        and all(held[name] <= before[name] + SPARE[name] for name in held),
        "statuses": dict(everything),
        "server_errors": errors,
        "others_answered": others.statuses[200],
        "held": [before, held],
        "still_waiting": waiting,
        "alive": alive,
    }


async def ends(plan: Plan) -> dict[str, Any]:
    rounds = 3 if plan.quick else 20
    heard = Heard()
    exits: dict[str, Counter[int]] = {"SIGTERM": Counter(), "SIGKILL": Counter()}
    readies = []
    for kind in (signal.SIGTERM, signal.SIGKILL):
        for number in range(rounds):
            port = free_port()
            # With and without a wait for load balancers; no request may be lost in either case.
            options = ("--max-batch", str(MAX_BATCH), "--drain-wait", ("0", "0.5")[number % 2])
            command = (sys.executable, "-m", "splitattn", "serve", "--port", str(port), *options)
            service = Service(command, port)
            took = await service.ready()
            if kind == signal.SIGKILL:
                readies.append(took)
            own = heard if kind == signal.SIGTERM else Heard()
            load = asyncio.create_task(
                clients(port, 2 * MAX_BATCH, plan.contents, heard=own, until_closed=True)
            )
            await asyncio.sleep(1)
            service.process.send_signal(kind)
            await load
            exits[kind.name][await service.end()] += 1
    return {
        "met": not heard.lost
        and set(heard.statuses) == {200}
        and set(exits["SIGTERM"]) == {0}
        and max(readies) <= 2,
        "rounds": rounds,
        "after_sigterm": {
            "lost": heard.lost,
            "statuses": dict(heard.statuses),
            "clients_told_to_close": heard.told_to_close,
            "clients_refused": heard.refused,
            "exits": dict(exits["SIGTERM"]),
        },
        "ready_after_sigkill": {
            "exits": dict(exits["SIGKILL"]),
            "seconds": readies,
            "largest": max(readies),
            "at_most": 2,
        },
    }


async def peers(plan: Plan) -> dict[str, Any]:
    weights = TEMPORARY / "random.safetensors"
    subprocess.run([sys.executable, "-c", RANDOM_WEIGHTS, weights, plan.model], check=True)
    commands: dict[str, Sequence[str]] = {
        "splitattn": (
            sys.executable,
            "-m",
            "splitattn",
            "serve",
            "--port",
            "PORT",
            "--weights",
            str(weights),
            "--deadline",  # a long one, since the other services have none
            "60",
        ),
    }
    for name, script in PEERS.items():
        # Not a package's name, which would hide the package.
        path = TEMPORARY / f"peer_{len(commands)}.py"
        path.write_text(script)
        commands[name] = (sys.executable, str(path), "PORT", TIMM_NAMES[plan.model], str(weights))
    contents = plan.contents[:200]
    bodies = {
        "LitServe": [json.dumps({"image": _base64(content)}).encode() for content in contents]
    }
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(1 if plan.quick else 3):
        for name, command in commands.items():
            own = bodies.get(name, contents)
            kind = "application/json" if name in bodies else "image/jpeg"
            async with serving(peer=command) as service:
                await clients(service.port, 4, own, requests=16, kind=kind)
                many, took = await clients(
                    service.port, 2 * MAX_BATCH, own, seconds=plan.seconds, kind=kind
                )
                one, _ = await clients(service.port, 1, own, requests=30, kind=kind)
            if set(many.statuses) != {200}:
                raise SystemExit(f"{name} answered {dict(many.statuses)}")
            rows[name].append(
                {
                    "images_per_second": many.statuses[200] / took,
                    "p99": many.milliseconds(99),
                    "single_p50": one.milliseconds(50),
                }
            )
    median = {
        name: {key: statistics.median(row[key] for row in own) for key in own[0]}
        for name, own in rows.items()
    }
    ours = median["splitattn"]
    return {
        "met": all(
            ours["images_per_second"] > other["images_per_second"] and ours["p99"] < other["p99"]
            for name, other in median.items()
            if name != "splitattn"
        ),
        "model": plan.model,
        "clients": 2 * MAX_BATCH,
        "runs_in": RUNS_IN,
        "rounds": rows,
        "median": median,
    }


def _base64(content: bytes) -> str:
    import base64

    return base64.b64encode(content).decode()


PARTS: dict[str, Callable[[Plan], Awaitable[dict[str, Any]]]] = {
    "ready": ready,
    "equality": equality,
    "throughput": throughput,
    "single": single,
    "overload": overload,
    "hostile": hostile,
    "ends": ends,
    "memory": memory,
    "peers": peers,
}


def main() -> None:
    global TEMPORARY
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="run only these parts")
    parser.add_argument("--peers", action="store_true", help="run the part peers too")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--requests", type=int, default=50_000, help="requests in the part memory")
    parser.add_argument(
        "--model", default="resnest50", choices=TIMM_NAMES, help="network in the part peers"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    images = open_data(arguments.data, "val").images
    contents = [
        image if isinstance(image, bytes) else Path(image).read_bytes()
        for image in (images[i] for i in range(min(len(images), 500)))
    ]
    chosen = arguments.only or [name for name in PARTS if name != "peers" or arguments.peers]
    measured: dict[str, Any] = {}
    if arguments.only and arguments.output.exists():
        measured = json.loads(arguments.output.read_text())
    with TemporaryDirectory() as folder:
        TEMPORARY = Path(folder)
        stored = TEMPORARY / "files.pickle"
        import pickle

        stored.write_bytes(pickle.dumps(contents))
        plan = Plan(
            contents=contents,
            stored=stored,
            quick=arguments.quick,
            requests=arguments.requests,
            model=arguments.model,
        )
        for name in chosen:
            sys.stderr.write(f"{name} ...\n")
            started = time.monotonic()
            row = asyncio.run(PARTS[name](plan))
            described = environment.describe()
            took = round(time.monotonic() - started, 1)
            measured[name] = {**row, "took": took, "commit": described["commit"]}
            sys.stdout.write(json.dumps({name: measured[name]}) + "\n")
            sys.stdout.flush()
            measured["environment"] = described
            with replacing(arguments.output) as temporary:
                temporary.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("SPLITATTN_OFFLINE", "1")
    main()
