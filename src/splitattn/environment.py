"""Describes the machine and software with which a figure was measured."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = (
    "splitattn",
    "numpy",
    "pillow",
    "onnxruntime",
    "openvino",
    "nncf",
    "torch",
    "torchvision",
    "timm",
    "triton",
)


# Vector extensions, newest first, by their flags in Linux. Engines, especially int8, are faster
# with newer ones, and a name such as "AMD EPYC" does not show which a processor has.
_INSTRUCTION_SETS = {
    "AMX": "amx_tile",
    "AVX-512 bf16": "avx512_bf16",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX-512": "avx512f",
    "AVX-VNNI": "avx_vnni",
    "AVX2": "avx2",
}


def describe() -> dict[str, str | int | None]:
    """Versions, hardware, date, and the commit if this is a checkout; ready for JSON.

    "threads" is the number of threads that PyTorch uses in this process; "gpu" and "cuda" describe
    PyTorch's CUDA device. All three are None if this process has not imported PyTorch.
    "instruction_set" is the processor's newest known vector extension; it is None if there is none,
    or on other systems than Linux. A library's version is None if it is not installed.
    """
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "processor": _cpu("model name") or platform.processor(),
        "instruction_set": _instruction_set(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "gpu": gpu,
        "cuda": torch.version.cuda if torch and gpu else None,
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
    }


def processor_of(described: Mapping[str, Any]) -> str:
    """The processor in a result of `describe`, with its instruction set if that is known."""
    found = described.get("instruction_set")
    return f"{described['processor']} ({found})" if found else str(described["processor"])


def peak_memory() -> int | None:
    """Peak memory of this process in bytes, or None if the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return kilobytes[0] * 1024 if kilobytes else None


def forget_peak_memory() -> None:
    """Reset the peak of `peak_memory`, if the system supports that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        # If the package is installed inside another project's checkout, git does not track it.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _instruction_set() -> str | None:
    flags = set(_cpu("flags").split())
    return next((name for name, flag in _INSTRUCTION_SETS.items() if flag in flags), None)


def _cpu(fact: str) -> str:
    """A fact from Linux's /proc/cpuinfo about the first processor, or an empty string."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    facts = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in facts if name.strip() == fact), "")
