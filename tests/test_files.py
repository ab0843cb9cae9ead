"""Files appear whole or not at all."""

import errno
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from splitattn.data.sources import open_data
from splitattn.engines.onnx_runtime import quantize
from splitattn.engines.open_vino import ov, save
from splitattn.errors import DataError, InputError, WeightsError
from splitattn.files import (
    as_on_disk,
    check_can_make_folder,
    check_can_write,
    is_utf8,
    open_file,
    remove_leftovers,
    replacing,
    writing_native,
)
from splitattn.opening import open_network
from splitattn.training import resume as checkpoints
from splitattn.training.recipe_files import load_recipe
from splitattn.training.resume import State
from splitattn.weights.checkpoint import (
    read_checkpoint,
    read_tensors,
    save_pickle,
    write_checkpoint,
)
from splitattn.weights.metadata import read_metadata
from tests.small_disk import small_disk


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


def test_writing_through_a_link_keeps_the_link(tmp_path: Path) -> None:
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
        save_file({"a": torch.ones(1)}, temporary)  # makes files that only their owner can read
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_link_that_stands_where_the_temporary_file_was_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("mine")

    def plant() -> None:
        with replacing(path) as temporary:
            temporary.unlink()
            temporary.symlink_to(victim)

    with pytest.raises(OSError, match=r"links|loop"):
        plant()
    assert victim.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [victim]


def test_no_two_writers_share_a_temporary_file(tmp_path: Path) -> None:
    """Not in one process, nor in containers whose processes have the same id."""
    path = tmp_path / "file"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one.read_text() == "one"
    assert path.read_text() == "one"  # the writer that ended last wins
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_as_long_as_the_system_allows_is_written(tmp_path: Path) -> None:
    with replacing(tmp_path / ("x" * 255)) as temporary:
        temporary.write_text("new")
    assert (tmp_path / ("x" * 255)).read_text() == "new"


def make_odd_files(folder: Path) -> list[Path]:
    """A pipe, a socket and a device."""
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
    return [folder / "pipe", folder / "socket", Path(os.devnull)]


@pytest.mark.timeout(10, func_only=True)
def test_pipes_sockets_and_devices_are_neither_read_nor_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # relative, since a socket's path must be short
    for path in make_odd_files(Path()):
        kind = stat.S_IFMT(path.stat().st_mode)
        with pytest.raises(OSError, match="pipe, device or socket"):
            open_file(path)
        with pytest.raises(OSError, match="pipe, device or socket"), replacing(path) as temporary:
            temporary.write_text("new")
        assert stat.S_IFMT(path.stat().st_mode) == kind
        for read in (read_metadata, read_checkpoint, read_tensors):
            with pytest.raises(WeightsError, match="pipe, device or socket"):
                read(path)
    for name in ("pipe.csv", "pipe.parquet", "pipe.toml", "pipe.onnx", "pipe.txt"):
        os.mkfifo(name)
    for data in ("pipe.csv", "pipe.parquet", "pipe.txt"):
        with pytest.raises(DataError):
            open_data(data, "val")
    Path("list.csv").write_text("path,label\n1.png,a\n")
    with pytest.raises(DataError, match="class names must be a text file"):
        open_data("list.csv", "val", Path("pipe.txt"))
    with pytest.raises(InputError, match="TOML file"):
        load_recipe("pipe.toml", model="resnest50")
    with pytest.raises(WeightsError, match="pipe, device or socket"):
        open_network(weights="pipe.onnx")


def test_a_name_whose_accents_are_composed_in_another_way_is_found(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    (tmp_path / apart).mkdir()
    (tmp_path / apart / f"{composed}.png").touch()
    found = tmp_path / apart / f"{composed}.png"
    for folder in (composed, apart):
        for name in (composed, apart):
            assert as_on_disk(tmp_path / folder / f"{name}.png") == found
    missing = tmp_path / composed / "th\u00e9.png"
    assert as_on_disk(missing) == missing
    both = tmp_path / apart / f"{apart}.png"
    both.touch()
    assert as_on_disk(both) == both, "an exact match comes first"
    assert is_utf8(found)
    assert not is_utf8(Path(os.fsdecode(b"caf\xe9.png")))


def test_where_no_file_can_be_made_is_found_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "none" / "target")
    for path in ("none/a.csv", "file/a.csv", "link"):
        with pytest.raises(InputError, match=f"cannot write .*{path}: there is no folder /"):
            check_can_write(tmp_path / path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    check_can_write(tmp_path / "loop")  # writing to it says what is wrong
    check_can_write(tmp_path / "new.csv")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # root may write anywhere
    with pytest.raises(InputError, match="no file can be made in the folder"):
        check_can_write(tmp_path / "new.csv")


def test_where_no_folder_can_be_made_is_found_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    check_can_make_folder(tmp_path / "new" / "deep", "got")
    check_can_make_folder(tmp_path, "got")
    with pytest.raises(InputError, match=r"got .*/file/deep: .*/file is no folder"):
        check_can_make_folder(tmp_path / "file" / "deep", "got")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # root may write anywhere
    with pytest.raises(InputError, match=f"got .*/deep: no file can be made in .*{tmp_path.name}$"):
        check_can_make_folder(tmp_path / "new" / "deep", "got")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs user ids")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_a_folder_of_somebody_else_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "closed" / "inner").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"cannot write .*: Permission denied"):
            check_can_write(tmp_path / "closed" / "inner" / "a.csv")
    finally:
        os.seteuid(0)


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    with replacing(tmp_path / "last.pt") as temporary:
        ours = temporary.name
    others = {".last.pt.123.tmp", "last.pt", ".hidden", "notes.tmp", ".splitattn-mine.tmp"}
    for name in (ours, *others):
        (tmp_path / name).touch()
    (tmp_path / ours.replace("-", "-0", 1)).touch()
    link = tmp_path / (ours[:-5] + ("0" if ours[-5] != "0" else "1") + ".tmp")
    link.symlink_to(tmp_path / "last.pt")
    remove_leftovers(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*others, link.name, ours.replace("-", "-0", 1)}


def _save_ir(path: Path) -> None:
    parameter = ov.op.Parameter(ov.Type.f32, ov.Shape([100_000]))
    weight = np.arange(100_000, dtype=np.float32)
    total = ov.opset13.add(parameter, ov.opset13.constant(weight))
    save(ov.Model([total], [parameter]), path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_pickle(path, {"a": torch.zeros(100_000)}, None),
        lambda path: checkpoints.save(path, {}, State(), {"model": {"a": torch.zeros(100_000)}}),
        lambda path: write_checkpoint(path, {"a": torch.zeros(100_000)}),
        _save_ir,
    ],
)
def test_a_write_that_the_system_refuses_is_reported_in_one_line(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    with small_disk(), pytest.raises((OSError, InputError)) as raised:
        write(tmp_path / "a")
    assert re.search("File too large|OpenVINO could not write", str(raised.value))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("free", "said"), [(1_300_000, "No space left"), (9_000_000, "OpenVINO")])
def test_a_disk_with_less_space_than_an_ir_takes_counts_as_full(
    free: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO writes large parts at once, so that much may be free after it failed."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with small_disk(), pytest.raises(OSError, match=said):
        _save_ir(tmp_path / "a.xml")


def test_a_full_temporary_folder_is_named_in_place_of_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InputError, match=f"full: {tmp_path} .* another place with TMPDIR$"):
        quantize(onnx.ModelProto(), [], floats=[])


def test_native_code_may_go_on_writing_after_a_write_that_failed(
    tmp_path: Path,
) -> None:
    taken = []

    def write() -> None:
        with writing_native(tmp_path / "a") as file:
            taken.extend((file.write(b"a" * 20_000), file.write(memoryview(b"bc"))))
            raise RuntimeError("unexpected position")

    with small_disk(), pytest.raises(OSError, match="File too large"):
        write()
    assert taken == [20_000, 2]
    with writing_native(tmp_path / "b") as file:
        file.write(b"whole")
    assert (tmp_path / "b").read_bytes() == b"whole"
