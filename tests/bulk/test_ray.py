"""A run connects to an existing Ray cluster, through its head's or its client address."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest

from splitattn.bulk import bulk
from splitattn.bulk.shards import TooManyErrorsError
from splitattn.cli import main
from tests.bulk.photographs import assert_labeled_as_by_predict, rows_at

pytest.importorskip("ray")
pytest.importorskip("grpc", reason="Ray's client needs grpc")
# Ray forks a server for each client; if that hangs, giving it up takes half a minute.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
# The engine that loads fastest.
label_bulk = partial(bulk.label_bulk, engine="onnxruntime")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """A cluster's two addresses: for drivers on its head, and for clients on any machine."""
    head, client = free_ports(2)
    options = (f"--port={head}", f"--ray-client-server-port={client}", "--num-cpus=2")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options]
    quiet = ("--disable-usage-stats", "--include-dashboard=false")
    # Else the cluster asks for a token if this machine happens to have one.
    with (
        patch.dict("os.environ", RAY_AUTH_MODE="disabled"),
        subprocess.Popen([*command, *quiet], stdout=subprocess.DEVNULL) as process,
    ):
        try:
            wait_for(client, process)
            yield {"head": f"127.0.0.1:{head}", "client": f"ray://127.0.0.1:{client}"}
        finally:
            process.terminate()


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    ends = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert process.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.1)
        else:
            return


def test_the_head_of_a_cluster_labels_as_predict_does(
    addresses: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    report = label_bulk(photos, tmp_path, shard_size=3, cluster=addresses["head"])
    assert (report.images, report.errors, report.shards) == (11, 1, 4)
    assert_labeled_as_by_predict(rows_at(tmp_path), str(photos), photos)


def test_a_client_of_a_cluster_labels_as_predict_does(
    addresses: dict[str, str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    options = ("--shard-size=3", "--features", "--engine=onnxruntime")
    with pytest.raises(SystemExit) as ended:
        main(["bulk", str(photos), str(target), f"--cluster={addresses['client']}", *options])
    assert ended.value.code == 1  # one is broken
    assert "11 images in 4 parts, 1 error," in capsys.readouterr().out
    assert_labeled_as_by_predict(rows_at(target), str(photos), photos)
    assert sum(row["features"] is not None for row in rows_at(target)) == 10


def test_an_error_of_a_worker_reaches_a_client_in_one_line(
    addresses: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("gone.jpg\n" * 30)
    with pytest.raises(TooManyErrorsError, match=r"^at most 10% .*, got 30 of 30 in part-00000"):
        label_bulk(tmp_path / "list.txt", tmp_path / "out", cluster=addresses["client"])
