"""How fast is `splitattn bulk`, from files and from a bucket, against `predict`; what memory?

usage: python benchmarks/bulk.py PHOTOGRAPHS [--rounds 3] [--output FILE]

Whole processes, which take turns. The bucket is served by moto on the same processors, so its rate
holds the server's work, too. Nothing else should run meanwhile. Needs moto[server] and boto3.

Memory is that of listing folders of 2,000 and 200,000 empty files into a manifest.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from splitattn import environment
from splitattn.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator

OUTPUT = Path(__file__).with_suffix(".json")
LISTED = (2_000, 200_000)
LISTING = """
import sys
from collections import Counter
from splitattn import environment
from splitattn.bulk.plan import write_manifest
from splitattn.bulk.sources import list_images
from splitattn.bulk.stores import open_store
entries = list_images(sys.argv[1], Counter())
assert sum(write_manifest(open_store(sys.argv[2]), entries, 10_000)) == int(sys.argv[3])
print(environment.peak_memory())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photographs", type=Path, help="a folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    arguments = parser.parse_args()
    photographs = sorted(path for path in arguments.photographs.rglob("*") if path.is_file())
    seconds: dict[str, list[float]] = {"predict": [], "bulk, files": [], "bulk, bucket": []}
    with TemporaryDirectory() as name, bucket(photographs) as server:
        for turn in range(arguments.rounds):
            out = Path(name, str(turn))
            folder = str(arguments.photographs)
            commands = {
                "predict": ("predict", folder, "--format=json", f"--output={out}.json"),
                "bulk, files": ("bulk", folder, f"{out}.files"),
                "bulk, bucket": ("bulk", "s3://photos/in", f"s3://photos/{turn}"),
            }
            for case, command in commands.items():
                begun = time.perf_counter()
                done = subprocess.run(
                    (sys.executable, "-m", "splitattn", *command),
                    env=os.environ | server,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode > 1:
                    sys.exit(done.stderr)
                seconds[case].append(round(time.perf_counter() - begun, 2))
        memory = {str(count): listed(Path(name), count) for count in LISTED}
    report = {
        "environment": environment.describe(),
        "photographs": len(photographs),
        "rounds": arguments.rounds,
        "seconds": seconds,
        "peak_memory_of_listing": memory,
    }
    with replacing(arguments.output) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@contextmanager
def bucket(photographs: list[Path]) -> "Iterator[dict[str, str]]":
    """A bucket with the photographs, and the environment that leads to it."""
    import boto3

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.update(server)
    command = (sys.executable, "-m", "moto.server", "-p", str(port))
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as moto:
        try:
            while moto.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.1)
            client = boto3.client("s3")
            client.create_bucket(Bucket="photos")
            for number, path in enumerate(photographs):
                key = f"in/{number:06d}{path.suffix}"
                client.put_object(Bucket="photos", Key=key, Body=path.read_bytes())
            yield server
        finally:
            moto.terminate()


def listed(folder: Path, count: int) -> int:
    """Peak bytes of a process that lists `count` files."""
    files = folder / f"listed-{count}"
    for number in range(count):
        path = files / f"{number // 1000:04d}" / f"{number:06d}.jpg"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    done = subprocess.run(
        (sys.executable, "-c", LISTING, files, folder / f"manifest-{count}", str(count)),
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


if __name__ == "__main__":
    main()
