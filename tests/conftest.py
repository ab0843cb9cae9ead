"""Fixtures for all tests: a fixed seed, an empty local hub; GPU tests are skipped without CUDA.

Tests in `without_torch` also run where PyTorch is not installed.
"""

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.hub_server import Hub

_HAS_TORCH = find_spec("torch") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    if _HAS_TORCH:
        import torch

        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Undo what `splitattn serve` does to logging: it sends all logs of the process to stderr."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler:  # pytest's own handlers have other classes
            logging.root.removeHandler(handler)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Hub]":
    """An empty local hub; huggingface_hub asks no other."""
    from tests import hub_server

    with hub_server.serving(tmp_path / "huggingface" / "hub") as running:
        hub_server.ask(running, monkeypatch)
        yield running
