"""A training that is killed at any moment resumes with the same result."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from splitattn.training.loop import train
from splitattn.training.task import Step
from tests.data.datasets import write_image_folder
from tests.training.runs import forkserver, make_run, make_task, network, with_recipe


def _train(folder: Path, steps: Connection) -> None:
    torch.set_num_threads(1)
    task = make_task(folder, train=18)
    run = with_recipe(make_run(folder), epochs=8)

    def tell(step: Step) -> None:
        steps.send(step.step)

    train(network(), task, replace(run, checkpoint_minutes=0.0), resume=True, on_step=tell)


def test_a_signal_to_all_processes_at_once_still_saves(tmp_path: Path) -> None:
    """Terminals, batch systems and torchrun send signals to the workers too."""
    write_image_folder(tmp_path / "data", train=18, val=4)
    command = [
        *(sys.executable, "-m", "splitattn", "train", str(tmp_path / "data")),
        *("--output", str(tmp_path / "out"), "--model=resnest14", "--workers=2", "--device=cpu"),
        "--recipe=plain",
        *("--set=train_size=32", "--set=test_size=32", "--set=batch_size=8"),
        *("--set=epochs=500", "--set=warmup_epochs=0"),
    ]
    for number in (signal.SIGTERM, signal.SIGINT):  # first a new training, then a resumed one
        process = subprocess.Popen(
            [*command, "--resume"], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stderr
        assert process.stderr.readline() == "loading PyTorch\n"
        if number == signal.SIGTERM:
            assert "has no training to resume: a new one begins" in process.stderr.readline()
        assert "epoch" in process.stderr.readline()
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + number, errors
        assert "stopped and saved after step" in errors
        assert "Traceback" not in errors
        assert (tmp_path / "out" / "last.pt").exists()


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_nothing(kills: int, tmp_path: Path) -> None:
    context = forkserver()

    def start(folder: Path) -> tuple[BaseProcess, Connection]:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_train, args=(folder, theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    undisturbed, _ = start(tmp_path / "whole")
    undisturbed.join()
    assert undisturbed.exitcode == 0

    chance = random.Random(0)
    folder = tmp_path / "killed"
    reached = []
    for _ in range(kills):
        process, steps = start(folder)
        first = steps.recv()
        begun = time.perf_counter()
        last = first + chance.randrange(1, 5)
        while steps.recv() < last:
            pass
        step_seconds = (time.perf_counter() - begun) / (last - first)
        time.sleep(chance.uniform(0, 2 * step_seconds))
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        reached.append(last)
    assert reached[-1] > reached[0]
    survivor, _ = start(folder)
    survivor.join()
    assert survivor.exitcode == 0
    for name in ("model.safetensors", "best.safetensors"):
        killed, whole = ((tmp_path / run / "out" / name) for run in ("killed", "whole"))
        assert killed.read_bytes() == whole.read_bytes()
    assert not list((folder / "out").glob(".*.tmp"))
