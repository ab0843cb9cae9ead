"""What every test may rely on: a fixed seed, CUDA where it is asked for, a hub of one's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import hub_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """A hub of one's own, empty, and the only one that huggingface_hub knows."""
    with hub_server.serving(tmp_path / "huggingface" / "hub") as running:
        hub_server.ask(running, monkeypatch)
        yield running
