"""Files appear whole or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from splitattn.files import remove_leftovers, replacing


def test_a_file_is_replaced_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_goes_on_pointing_to_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "file")
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "new"


def test_a_file_is_as_readable_as_any_other_whoever_writes_it(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with replacing(tmp_path / "weights.safetensors") as temporary:
        save_file({"a": torch.ones(1)}, temporary)  # makes its files private
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    for name in (".last.pt.123.tmp", "last.pt", ".hidden", "notes.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", ".hidden", "notes.tmp"}
