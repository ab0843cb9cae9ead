"""Two processes under `torchrun` train as one does, measure exactly, and survive a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import DistBackendError

from splitattn import distributed
from splitattn.cli import main
from splitattn.create import load_trained
from splitattn.data.sources import open_data
from splitattn.engines.pytorch import TorchEngine
from splitattn.errors import InputError
from splitattn.evaluation import measure
from splitattn.training.interrupt import stop_request
from splitattn.weights.metadata import read_metadata
from splitattn.weights.resolve import resolve
from tests.data.datasets import write_image_folder

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
# Without regularization whose random numbers depend on the process.
RECIPE = """
epochs = 3
batch_size = 12
learning_rate = 0.05
warmup_epochs = 1.0
mixup_alpha = 0.0
train_size = 32
test_size = 32
crop_scale = 0.5
sync_batch_norm = true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    # More than two batches of 64 to measure, so that each process gets one.
    write_image_folder(folder / "data", train=16, val=50)
    (folder / "data" / "train" / "red" / "drawing.svg").write_text("<svg/>")  # causes a warning
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def arguments(folder: Path, output: str) -> list[str]:
    return [
        *("train", str(folder / "data"), "--output", str(folder / output)),
        *("--model=resnest14", "--recipe", str(folder / "recipe.toml"), "--device=cpu"),
        *("--workers=0", "--checkpoint-minutes=0"),
    ]


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def together(folder: Path) -> Path:
    """The output folder of a training by two processes."""
    command = [*TORCHRUN, "-m", "splitattn", *arguments(folder, "together")]
    done = subprocess.run(
        command, env=ONE_THREAD, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    # Two processes print as much as one does.
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.count("epoch 3/3") == 1
    assert done.stderr.count("1 file is skipped") == 1
    return folder / "together"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread, as the processes do: two threads would sum in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_two_processes_learn_what_one_learns(folder: Path, together: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(folder, "alone"))
    assert not ended.value.code
    ours, theirs = log_of(together), log_of(folder / "alone")
    assert [line["kind"] for line in ours] == [line["kind"] for line in theirs]
    for our_line, their_line in zip(ours, theirs, strict=True):
        for key in our_line.keys() & {"loss", "train_loss", "val_loss", "learning_rate"}:
            assert our_line[key] == pytest.approx(their_line[key], rel=1e-3), (key, our_line)
    first = [line["loss"] for line in ours if line["kind"] == "train"]
    assert first[0] != first[-1]


def test_two_processes_measure_exactly_what_one_measures(folder: Path, together: Path) -> None:
    resolved = resolve("resnest14", str(together / "model.safetensors"))
    metadata = read_metadata(resolved.path)
    assert metadata is not None
    data = open_data(str(folder / "data"), "val")
    engine = TorchEngine(load_trained(resolved).eval(), torch.device("cpu"))
    alone = measure(engine, data, metadata.preprocessing, workers=1)
    assert metadata.metrics == {
        "top1": alone.top1,
        "top5": alone.top5,
        "loss": alone.loss,
        "n": 150,
    }


@pytest.mark.parametrize("override", ["--set=epoch=3", "--set=mosaic=0.5"])
def test_an_error_of_both_processes_is_printed_once(folder: Path, override: str) -> None:
    """The errors occur before the processes are connected, and after."""
    command = [*TORCHRUN, "-m", "splitattn", *arguments(folder, "wrong"), override]
    done = subprocess.run(
        command, env=ONE_THREAD, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    assert not (folder / "wrong").exists()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_more_processes_than_gpus_are_refused_in_each(
    rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {
        "TORCHELASTIC_RUN_ID": "tests",
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    assert distributed.own_device("auto") == f"cuda:{rank}"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(InputError, match=r"--nproc-per-node must be at most 2, .* got 3; or set"):
        distributed.own_device("auto")


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "1"}, True),
        ({"TORCHELASTIC_RUN_ID": "tests", "RANK": "0"}, True),
        ({"TORCHELASTIC_RUN_ID": "tests", "RANK": "1"}, False),
    ],
)
def test_a_rank_counts_only_among_processes_of_torchrun(
    environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters set RANK for any job; without torchrun, every process must print."""
    for name in ("RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.is_first() == first


def test_an_error_of_the_second_process_alone_is_printed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "from splitattn import cli, distributed\n"
        "distributed._APART = 0.5\n"
        "if os.environ['RANK'] == '1':\n"
        "    cli.main(['evaluate', 'nowhere'])\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run(
        [*TORCHRUN, script], env=ONE_THREAD, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1, done.stderr


def test_a_process_that_loses_another_leaves_the_message_to_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, torch, typer\n"
        "from splitattn import cli, distributed\n"
        "from splitattn.errors import InputError\n"
        "distributed._APART = 2.0\n"
        "def fail():\n"
        "    with distributed.processes(torch.device('cpu')):\n"
        "        if os.environ['RANK'] == '1':\n"
        "            raise InputError('only mine')\n"
        "        distributed.summed(torch.ones(1))\n"
        "app = typer.Typer()\n"
        "app.command()(fail)\n"
        "cli.create_app = lambda _: app\n"
        "cli.main([])\n"
    )
    done = subprocess.run(
        [*TORCHRUN, script], env=ONE_THREAD, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert "error: only mine\n" in done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "RuntimeError" not in done.stderr


LOST = (
    RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer"),
    DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:77, remote process exited or there was a network "
        "error\nncclRemoteError: A call failed possibly due to a network error or a remote process "
        "exiting prematurely.\nLast error:\nConnection refused"
    ),
    DistBackendError("NCCL communicator was aborted on rank 1."),
)


def lose_a_peer(error: RuntimeError, *, told_to_end: bool) -> None:
    if told_to_end:
        os.kill(os.getpid(), signal.SIGTERM)
    raise error


@pytest.mark.parametrize("lost", LOST, ids=lambda lost: str(lost)[:20])
def test_a_process_that_torchrun_ends_does_not_report_that_it_lost_others(
    lost: RuntimeError,
) -> None:
    with pytest.raises(type(lost)), stop_request():
        lose_a_peer(lost, told_to_end=False)
    with pytest.raises(SystemExit) as end, stop_request():
        lose_a_peer(lost, told_to_end=True)
    assert end.value.code == 128 + signal.SIGTERM


def test_an_error_of_this_process_is_reported_though_torchrun_ends_it() -> None:
    own = DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error\nncclUnhandledCudaError: "
        "Call to CUDA function failed.\nLast error:\nCuda failure 'out of memory'"
    )
    with pytest.raises(DistBackendError), stop_request():
        lose_a_peer(own, told_to_end=True)


@pytest.mark.slow
def test_a_killed_process_is_replaced_and_nothing_is_lost(folder: Path, together: Path) -> None:
    command = [*TORCHRUN, "--max-restarts=1", "-m", "splitattn", *arguments(folder, "restarted")]
    # Without this variable torchrun's restarts always fail; see `distributed.processes`.
    environment = ONE_THREAD | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as torchrun:
        checkpoint = folder / "restarted" / "last.pt"
        deadline = time.monotonic() + 60
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        _, errors = torchrun.communicate(timeout=100)
    assert torchrun.returncode == 0, errors
    assert "exitcode: -9" in errors  # torchrun noticed the kill
    ours, theirs = (
        (f / "model.safetensors").read_bytes() for f in (folder / "restarted", together)
    )
    assert ours == theirs
