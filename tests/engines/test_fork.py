"""A process that is forked after PyTorch's threads have worked can still use it."""

from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch

from splitattn.create import create_model
from splitattn.engines.pytorch import TorchEngine
from splitattn.preprocessing import center_crop
from tests.training.runs import ARCHITECTURE


def _run(engine: TorchEngine, pixels: Any, told: Any) -> None:
    told.send(engine.run(pixels, center_crop(64)))


def _threads(told: Any) -> None:
    told.send(torch.get_num_threads())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_that_runs_no_engine_keeps_its_threads() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        context = get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_threads, args=(theirs,), daemon=True)
        process.start()
        assert ours.poll(20)
        assert ours.recv() == 3
        process.join()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_engine_that_has_run_runs_in_a_forked_process_too() -> None:
    engine = TorchEngine(create_model(ARCHITECTURE).eval(), torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = engine.run(pixels, center_crop(64))
        context = get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(engine, pixels, theirs), daemon=True)
        process.start()
        assert ours.poll(20)
        np.testing.assert_allclose(ours.recv(), expected, atol=1e-4)
        process.join()
    finally:
        torch.set_num_threads(threads)
