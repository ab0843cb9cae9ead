"""Fixtures for the tests of bulk labeling."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bulk.photographs import write_photographs


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder and a subfolder with ten pictures and one file that is not a picture."""
    folder = tmp_path_factory.mktemp("photos")
    write_photographs(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _without_tokens() -> Iterator[None]:
    """Turn off Ray's tokens: it would store one in the user's home, for all later clusters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield
