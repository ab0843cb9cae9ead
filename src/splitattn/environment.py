"""Where a figure was measured: without that it means nothing."""

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


# The newest first, with the flags of Linux. Engines, those of int8 above all, are faster with each,
# and a name such as "AMD EPYC" does not say which of them a processor has.
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

    "threads" is how many threads PyTorch uses in this process; "gpu" and "cuda" name the CUDA
    device that PyTorch sees. All three are None if this process has not imported PyTorch.
    "instruction_set" is the newest vector extension of the processor, None where it has none of
    those known or the system does not tell (Linux does). A library's version is None if it is not
    installed.
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
    """The processor in what `describe` gave, with its instruction set if that was noted."""
    found = described.get("instruction_set")
    return f"{described['processor']} ({found})" if found else str(described["processor"])


def peak_memory() -> int | None:
    """Bytes that this process had in memory at most, or None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return kilobytes[0] * 1024 if kilobytes else None


def forget_peak_memory() -> None:
    """Let `peak_memory` tell of what comes from now on, where the system can do that."""
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
        # Installed inside somebody else's checkout, the package is no file of theirs.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _instruction_set() -> str | None:
    flags = set(_cpu("flags").split())
    return next((name for name, flag in _INSTRUCTION_SETS.items() if flag in flags), None)


def _cpu(fact: str) -> str:
    """What Linux says of the first processor, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    facts = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in facts if name.strip() == fact), "")
