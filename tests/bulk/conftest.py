"""Photographs that all tests of bulk labeling share."""

from pathlib import Path

import pytest

from tests.bulk.photographs import write_photographs


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures and a file that is none, below two folders."""
    folder = tmp_path_factory.mktemp("photos")
    write_photographs(folder)
    return folder
