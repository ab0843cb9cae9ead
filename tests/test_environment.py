"""The description of the machine in stored measurements."""

import json
import mmap
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from splitattn import environment


def test_hardware_threads_and_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "timm":
            raise PackageNotFoundError(name)
        return f"{name} 1.0"

    monkeypatch.setattr(environment, "version", version)
    found = json.loads(json.dumps(environment.describe()))
    assert found["threads"] == torch.get_num_threads()
    assert found["torch"] == "torch 1.0"
    assert found["openvino"] == "openvino 1.0"
    assert found["timm"] is None


def test_a_gpu_is_named_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = environment.describe()
    assert (found["gpu"], found["cuda"]) == ("a GPU", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = environment.describe()
    assert (found["gpu"], found["cuda"]) == (None, None)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("sse2 avx avx2 avx512f avx_vnni avx512_bf16 avx512_vnni amx_bf16 amx_tile", "AMX"),
        ("sse2 avx avx2 avx512f avx512_bf16 avx512_vnni", "AVX-512 bf16"),
        ("sse2 avx avx2 avx512f avx512_vnni", "AVX-512 VNNI"),
        ("sse2 avx avx2 avx512f avx512dq", "AVX-512"),
        ("sse2 avx avx2 avx_vnni", "AVX-VNNI"),
        ("sse2 avx avx2", "AVX2"),
        ("sse2 avx", None),
    ],
)
def test_the_instruction_set_is_the_newest_that_the_processor_has(
    flags: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "cpuinfo"
    said.write_text(f"processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {flags}\n", encoding="utf-8")
    monkeypatch.setattr(environment, "Path", lambda _: said)
    found = environment.describe()
    assert (found["processor"], found["instruction_set"]) == ("A CPU", name)
    assert environment.processor_of(found) == ("A CPU" if name is None else f"A CPU ({name})")


def test_a_system_that_does_not_tell_has_no_instruction_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "Path", lambda _: tmp_path / "missing")
    assert environment.describe()["instruction_set"] is None


def test_old_measurements_name_only_their_processor() -> None:
    assert environment.processor_of({"processor": "A CPU"}) == "A CPU"


def test_the_peak_of_memory_can_be_reset() -> None:
    before = environment.peak_memory()
    if before is None:
        pytest.skip("this system does not report peak memory")
    size = 2**28
    # mmap, because an allocator may keep memory that is freed.
    with mmap.mmap(-1, size) as ballast:
        for page in range(0, size, mmap.PAGESIZE):
            ballast[page] = 1
        high = environment.peak_memory()
    environment.forget_peak_memory()
    low = environment.peak_memory()
    assert high is not None
    assert low is not None
    assert low < high - size // 2
