"""Triton's kernels on a machine without a GPU, and the switch between them and plain PyTorch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from splitattn.nn import blending

CASES = Path(__file__).with_name("triton_cases.py")

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

# A separate process, because Triton decides at import whether to interpret.
RUN = """
import sys

import pytest

import splitattn.nn.resnest

assert "splitattn.nn.triton_blending" not in sys.modules
sys.exit(pytest.main(sys.argv[1:]))
"""


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_kernels_equal_plain_pytorch_in_tritons_interpreter() -> None:
    options = ("-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "--durations=5")
    done = subprocess.run(
        (sys.executable, "-c", RUN, *options, CASES),
        cwd=CASES.parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_plain_pytorch_serves_the_cpu(dtype: torch.dtype) -> None:
    assert not blending._kernels_serve(torch.ones(1, 2, 3, 3, dtype=dtype))


@pytest.mark.parametrize(
    ("setting", "serve"), [(None, False), ("", False), ("0", False), ("1", True)]
)
def test_the_kernels_serve_cuda_only_if_the_environment_asks_for_them(
    setting: str | None, serve: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPLITATTN_TRITON", raising=False)
    if setting is not None:
        monkeypatch.setenv("SPLITATTN_TRITON", setting)
    monkeypatch.setattr(blending, "_kernels_work", lambda *_: True)
    with FakeTensorMode():  # needs no GPU
        maps = torch.ones(1, 2, 3, 3, device="cuda")
        assert blending._kernels_serve(maps) is serve


@needs_triton
@pytest.mark.parametrize("installed", [True, False])
def test_kernels_that_cannot_run_are_not_used(
    installed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton cannot compile for a CPU, which stands for a GPU without a C compiler."""
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    blending._kernels_work.cache_clear()
    assert not blending._kernels_work(torch.device("cpu"), torch.float32)
    blending._kernels_work.cache_clear()
    warnings = [record.getMessage() for record in caplog.records]
    # Only where Triton is installed is it a surprise that its kernels are not used.
    assert len(warnings) == installed
    start = "Triton's kernels do not run on cpu in torch.float32: "
    assert all(text.startswith(start) for text in warnings)
    assert all("\n" not in text for text in warnings)


@needs_triton
@pytest.mark.parametrize("kernel", ["pool", "blend", "blend_backward"])
@pytest.mark.filterwarnings("default")  # Triton warns about its own code
def test_the_kernels_compile_without_a_gpu(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the compiler checks Triton's language; the interpreter runs Python.

    The target is an A100; maps are bfloat16 in channels_last, and the pooling is strided.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from splitattn.nn import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(triton_kernels, f"{kernel}_kernel")
    constants = {"RADIX": 2, "POOL_STRIDE": 2, "BLOCK_C": 64, "BLOCK_P": 32}
    constants |= {name: 1 for name in function.arg_names if name.endswith("channel_stride")}
    maps = {"splits", "attention", "blended", "grad", "grad_splits"}
    signature = {
        name: "*bf16" if name in maps else "*fp32" if name == "partials" else "i32"
        for name in function.arg_names
        if name not in constants
    }
    constants = {name: constants[name] for name in function.arg_names if name in constants}
    source = ASTSource(function, signature | dict.fromkeys(constants, "constexpr"), constants)
    compiled = compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 8})
    assert compiled.asm["cubin"]
    assert "atom" not in compiled.asm["ptx"]  # no atomics, so the order of sums is fixed
