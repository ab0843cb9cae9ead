"""Measure the rate and memory of `splitattn bulk`, and check its labels after kills.

usage: python benchmarks/bulk.py [--photographs 20000] [--kills 10] [--rounds 3] [--only rates]
                               [--output FILE]

1. Rates: `predict`, `bulk` from files and `bulk` from a bucket label a fifth of the photographs, in
   processes that take turns, each on one core. moto serves the bucket in this process, on another
   core. Wall-clock and CPU seconds are measured. With `--only rates` the rest of FILE is kept.
2. Faults: two workers on Ray label all photographs of the bucket into another bucket, while the
   store answers one request in twenty with 503. Repeatedly, a worker is killed (-9), then the
   driver, and the command is run again. In the end, every image must have one row, with the labels
   of `predict`.
3. Memory: the peak while 2,000, 20,000 and 200,000 images are listed into a manifest: empty files
   in folders of 1,000, empty files in one folder, and objects of a bucket.

Nothing else should run meanwhile. Needs Linux, two cores, ray, moto[server], boto3 and psutil.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from io import BytesIO
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

from PIL import Image

from splitattn import environment
from splitattn.files import replacing
from splitattn.images.samples import sample_photographs

OUTPUT = Path(__file__).with_suffix(".json")
BUCKET, LABELS = "photos", "labels"
SIDE = 160
SHARD = 250  # images; small, so that there are parts enough for all kills
BUSY = 0.05
LISTED_BUCKET = "listed-"  # followed by the number of objects that the bucket lists
LISTED = (2_000, 20_000, 200_000)  # a shard of 10,000 is held in memory
LISTING = """
import sys
from collections import Counter
from splitattn import environment
from splitattn.bulk.plan import write_manifest
from splitattn.bulk.listing import list_images
from splitattn.bulk.stores import open_store
entries = list_images(sys.argv[1], Counter())
assert sum(write_manifest(open_store(sys.argv[2]), entries, 10_000)) == int(sys.argv[3])
print(environment.peak_memory())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photographs", type=int, default=20_000)
    parser.add_argument(
        "--kills", type=int, default=10, help="number of kills of a worker and of the driver"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["rates"])
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    arguments = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)
    with TemporaryDirectory() as name:
        folder = Path(name)
        photographs = folder / "photographs"
        write_photographs(photographs, arguments.photographs)
        with bucket() as store:
            say("put the photographs into the bucket")
            store.put_folder(photographs)
            measured = rates(photographs / "rates", folder, arguments.rounds)
            if arguments.only:
                report = json.loads(arguments.output.read_text("utf-8")) | {"rates": measured}
            else:
                report = {
                    "environment": environment.describe(),
                    "photographs": arguments.photographs,
                    "rates": measured,
                    "faults": faults(photographs, folder, arguments.kills, store),
                    "peak_memory_of_listing": memory_of_listing(folder),
                }
    with replacing(arguments.output) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def say(what: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")


def write_photographs(folder: Path, count: int) -> None:
    """Write different crops of the package's photographs, a fifth of them into `rates`."""
    say(f"write {count:,} photographs")
    chance = Random(0)
    wholes = [Image.open(path).convert("RGB") for path in sample_photographs()]
    for number in range(count):
        whole = wholes[number % len(wholes)]
        side = chance.randint(100, min(whole.size))
        x, y = (chance.randint(0, length - side) for length in whole.size)
        path = folder / ("others" if number % 5 else "rates") / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.resize((SIDE, SIDE), box=(x, y, x + side, y + side)).save(path)


class Store:
    """An S3 server that counts requests and answers a share of them with 503."""

    def __init__(self, app: Callable[[dict[str, Any], Any], Iterable[bytes]]) -> None:
        self._app = app
        self._chance = Random(0)
        self.share = 0.0
        self.refused = self.requests = 0

    def __call__(self, request: dict[str, Any], start: Any) -> Iterable[bytes]:
        # Requests of this benchmark itself are not counted.
        if "boto" in request.get("HTTP_USER_AGENT", "").lower():
            return self._app(request, start)
        bucket = request["PATH_INFO"].split("/")[1]
        if bucket.startswith(LISTED_BUCKET):
            start("200 OK", [("Content-Type", "application/xml")])
            return [listing(int(bucket.removeprefix(LISTED_BUCKET)), request["QUERY_STRING"])]
        self.requests += 1
        if self._chance.random() >= self.share:
            return self._app(request, start)
        self.refused += 1
        request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
        start("503 Slow Down", [("Content-Type", "application/xml")])
        return [b"<Error><Code>SlowDown</Code></Error>"]

    @cached_property
    def client(self) -> Any:
        import boto3

        return boto3.client("s3")

    def put_folder(self, folder: Path) -> None:
        client = self.client
        for name in (BUCKET, LABELS):
            client.create_bucket(Bucket=name)
        for path in folder.rglob("*.jpg"):
            key = f"in/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())

    def parts(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=LABELS, Prefix="faults/part-"
        )
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def rows(self) -> Iterator[dict[str, Any]]:
        import pyarrow.parquet as pq

        for key in self.parts():
            content = self.client.get_object(Bucket=LABELS, Key=key)["Body"].read()
            yield from pq.read_table(BytesIO(content)).to_pylist()


@contextmanager
def bucket() -> Iterator[Store]:
    """Serve buckets; environment variables point S3 clients at the server."""
    import logging

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = Store(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.server_port}",
        AWS_ACCESS_KEY_ID="someone",
        AWS_SECRET_ACCESS_KEY="secret",
        AWS_REGION="us-east-1",
        AWS_DEFAULT_REGION="us-east-1",
    )
    try:
        yield store
    finally:
        server.shutdown()


def command(*arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-m", "splitattn", *map(str, arguments))


@contextmanager
def apart() -> Iterator[int]:
    """Keep this process, which serves the buckets, on one core; yields another for commands."""
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        sys.exit("two cores are needed, one for the bucket, got one")
    own, other, *_ = sorted(cores)

    def keep_on(some: set[int]) -> None:
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # the thread has ended
                os.sched_setaffinity(int(thread.name), some)

    keep_on({own})
    try:
        yield other
    finally:
        keep_on(cores)


def timed(command: Sequence[str]) -> dict[str, float]:
    """Run a command; returns its wall-clock and CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"seconds": round(seconds, 2), "busy": round(busy, 2)}


def rates(photographs: Path, folder: Path, rounds: int) -> dict[str, Any]:
    cases: dict[str, list[dict[str, float]]] = {"predict": [], "files": [], "bucket": []}
    for turn in range(rounds):
        say(f"rates, round {turn + 1}")
        out = folder / f"rates-{turn}"
        run = {
            "predict": ("predict", photographs, "--format=json", f"--output={out}.json"),
            "files": ("bulk", photographs, out),
            "bucket": ("bulk", f"s3://{BUCKET}/in/rates", f"s3://{LABELS}/rates-{turn}"),
        }
        with apart() as core:
            for case, arguments in run.items():
                on_one = ("taskset", "--cpu-list", str(core), *command(*arguments))
                cases[case].append(timed(on_one))
    images = len(list(photographs.iterdir()))
    return {"environment": environment.describe(), "images": images, **cases}


def faults(photographs: Path, folder: Path, kills: int, store: Store) -> dict[str, Any]:
    """Kill workers and drivers while labeling, and compare the labels with those of `predict`."""
    say("predict all")
    predicted = folder / "all.json"
    undisturbed = timed(command("predict", photographs, "--format=json", f"--output={predicted}"))
    options = ("--cluster=ray", "--actors=2", f"--shard-size={SHARD}")
    arguments = ("bulk", f"s3://{BUCKET}/in", f"s3://{LABELS}/faults", *options)
    store.share, store.requests, store.refused = BUSY, 0, 0
    killed: Counter[str] = Counter()
    begun = time.perf_counter()
    for _ in range(kills):
        with subprocess.Popen(
            command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as driver:
            killed.update(disturb(driver, store))
        say(f"killed {dict(killed)}, {len(store.parts())} parts")
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode:
        sys.exit(done.stderr)
    say("compare")
    store.share = 0.0
    return {
        "shard_size": SHARD,
        "killed": dict(killed),
        "requests": store.requests,
        "refused": store.refused,
        "seconds": round(seconds, 2),
        "predict": undisturbed,
        **compared(store.rows(), predicted, photographs),
    }


def disturb(driver: "subprocess.Popen[bytes]", store: Store) -> Iterator[str]:
    """Kill a worker after the next part, and the driver after another; yields what was killed."""
    import psutil

    own = psutil.Process(driver.pid)
    if not part_is_written(driver, store):
        return
    workers = [p for p in own.children(recursive=True) if "ShardLabeler" in "".join(p.cmdline())]
    if workers:
        workers[0].kill()
        yield "worker"
    if not part_is_written(driver, store):
        return
    left = own.children(recursive=True)
    driver.kill()
    yield "driver"
    ends = time.monotonic() + 3
    # Ray's processes should end with the driver.
    while alive := [process for process in left if runs(process)]:
        if time.monotonic() > ends:
            say(f"{', '.join(process.name() for process in alive)} did not end")
            for process in alive:
                process.kill()
            return
        time.sleep(0.1)


def runs(process: Any) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def part_is_written(driver: "subprocess.Popen[bytes]", store: Store) -> bool:
    """Wait for one more part; false if the driver has ended."""
    before = len(store.parts())
    while driver.poll() is None:
        if len(store.parts()) > before:
            return True
        time.sleep(0.2)
    return False


def compared(rows: Iterable[dict[str, Any]], predicted: Path, photographs: Path) -> dict[str, Any]:
    expected = {
        Path(each["path"]).relative_to(photographs).as_posix(): each["predictions"]
        for each in map(json.loads, predicted.read_text("utf-8").splitlines())
    }
    found = {}
    count = 0
    for row in rows:
        count += 1
        found[row["path"].removeprefix(f"s3://{BUCKET}/in/")] = row
    names = expected.keys() & found.keys()
    pairs = [(expected[name], found[name]) for name in names if not found[name]["error"]]
    differences = [
        abs(each["probability"] - probability)
        for labels, row in pairs
        for each, probability in zip(labels, row["probabilities"], strict=True)
    ]
    return {
        "rows": count,
        "images_twice": count - len(found),
        "images_lost": len(expected.keys() - found.keys()),
        "errors": sum(row["error"] is not None for row in found.values()),
        "first_label_differs": sum(a[0]["label"] != b["labels"][0] for a, b in pairs),
        "any_label_differs": sum([x["label"] for x in a] != b["labels"] for a, b in pairs),
        "largest_difference_of_probabilities": max(differences),
    }


def memory_of_listing(folder: Path) -> dict[str, dict[str, int]]:
    """Peak memory in bytes of processes that list images, by place and number of the images."""
    found: dict[str, dict[str, int]] = {"folders": {}, "one folder": {}, "a bucket": {}}
    for count in LISTED:
        say(f"list {count:,} images")
        for where, each in (("folders", 1000), ("one folder", count)):
            files = folder / f"{where}-{count}"
            write_empty_files(files, count, each)
            found[where][str(count)] = peak_of_listing(files, folder, count)
        found["a bucket"][str(count)] = peak_of_listing(
            f"s3://{LISTED_BUCKET}{count}", folder, count
        )
    return found


def write_empty_files(folder: Path, count: int, each: int) -> None:
    for number in range(count):
        path = folder / f"{number // each:04d}" / f"{number:06d}.jpg"
        if number % each == 0:
            path.parent.mkdir(parents=True)
        path.touch()


def peak_of_listing(source: str | Path, folder: Path, count: int) -> int:
    done = subprocess.run(
        (sys.executable, "-c", LISTING, source, folder / "manifest", str(count)),
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def listing(count: int, query: str) -> bytes:
    """A page of the listing of a bucket with `count` objects, which are not stored."""
    first = int(parse_qs(query).get("continuation-token", ["0"])[0])
    last = min(first + 1000, count)
    objects = "".join(
        f"<Contents><Key>{number:06d}.jpg</Key><Size>0</Size><ETag>&quot;{number:032x}&quot;</ETag>"
        "<LastModified>2026-11-01T00:00:00.000Z</LastModified></Contents>"
        for number in range(first, last)
    )
    more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < count else ""
    return (
        f"<ListBucketResult><IsTruncated>{str(last < count).lower()}</IsTruncated>{more}{objects}"
        "</ListBucketResult>"
    ).encode()


if __name__ == "__main__":
    main()
