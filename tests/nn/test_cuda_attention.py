"""The Triton kernels on a GPU, at the sizes of real networks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from splitattn.architectures import Architecture
from splitattn.nn import blending
from splitattn.nn.resnest import ResNeSt
from splitattn.nn.split_attention import SplitAttention2d

from .networks import images, randomize_norms, small

pytestmark = pytest.mark.gpu

if torch.cuda.is_available():  # without CUDA, Triton may not be installed
    from . import triton_cases as cases

# Channels and sizes of the maps in the four stages at 224 pixels, and a map of odd size.
FIRST, *OTHERS = ((64, (56, 56)), (128, (28, 28)), (256, (14, 14)), (512, (7, 7)))
ODD = (40, (57, 43))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(autouse=True)
def _asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITATTN_TRITON", "1")


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blending, "_kernels_serve", lambda _: False)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("radix", "maps"),
    [(radix, maps) for radix in (1, 2, 4) for maps in (FIRST, ODD)]
    + [(2, maps) for maps in OTHERS],
)
def test_operators_equal_float64(
    radix: int,
    maps: tuple[int, tuple[int, int]],
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> None:
    channels, size = maps
    kind = {"radix": radix, "dtype": dtype, "layout": layout, "device": "cuda"}
    cases.check_pool(4, channels, size, **kind)
    for pool_stride in (None, 1, 2):
        cases.check_blend(4, channels, size, pool_stride=pool_stride, **kind)


def test_operators_keep_pytorchs_rules() -> None:
    cases.check_operators("cuda")


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_operators_compile_to_one_graph(backend: str) -> None:
    cases.check_compilation(backend, "cuda")


def test_operators_export_with_a_dynamic_batch() -> None:
    cases.check_export("cuda")


def test_the_kernels_serve_cuda_but_not_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.ones(1, 2, 3, 3, device="cuda")
    assert blending._kernels_serve(maps)
    assert not blending._kernels_serve(maps.double())
    out = blending.blend(maps.requires_grad_(), torch.ones(1, 2, 1, 1, device="cuda"), 2)
    assert "splitattn_blend" in type(out.grad_fn).__name__
    monkeypatch.delenv("SPLITATTN_TRITON")
    assert not blending._kernels_serve(maps)


def network(architecture: Architecture) -> ResNeSt:
    model = ResNeSt(architecture, num_classes=10)
    randomize_norms(model)
    return model.cuda().to(memory_format=torch.channels_last)


def output_after_backward(
    model: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype
) -> Tensor:
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        out = model(x)
    out.float().square().mean().backward()
    return out.detach().float()


@pytest.mark.parametrize("radix", [1, 2, 4])
def test_a_network_is_as_close_to_float32_as_plain_pytorch_is(
    radix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under bfloat16 autocast the kernels round less often, so they are rarely less exact."""
    model = network(small(radix)).eval()  # in training, batch norm would multiply rounding errors
    x = images(16, 97, 65).cuda().contiguous(memory_format=torch.channels_last)
    found = []
    for dtype, patch in (
        (torch.bfloat16, lambda: None),
        (torch.bfloat16, lambda: plain(monkeypatch)),
        (torch.float32, lambda: None),
    ):
        patch()
        model.zero_grad()
        out = output_after_backward(model, x, dtype)
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        found.append((out, gradient))
    for fused, usual, exact in zip(*found, strict=True):
        assert (fused - exact).norm() <= 1.5 * (usual - exact).norm()
        assert (fused - exact).norm() <= 0.03 * exact.norm()


def test_a_network_compiles_to_one_graph() -> None:
    model = network(small())
    x = images(4, 65, 65).cuda().contiguous(memory_format=torch.channels_last)
    expected = output_after_backward(model.eval(), x, torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    out = output_after_backward(compiled, x, torch.float32)
    torch.testing.assert_close(out, expected, atol=1e-2, rtol=1e-2)  # convolutions may use TF32


def peak_memory(block: nn.Module, x: Tensor) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = block(x)
    out.sum().backward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("channels", [64, 256])
def test_memory_is_not_above_that_of_plain_pytorch(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = SplitAttention2d(channels, channels).cuda().to(memory_format=torch.channels_last)
    x = torch.randn(32, channels, 56, 56, device="cuda", requires_grad=True)
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    block(x).sum().backward()  # allocates the libraries' workspaces and the gradients
    fused = peak_memory(block, x)
    plain(monkeypatch)
    assert fused <= peak_memory(block, x)


def test_a_second_run_gives_the_same_bits() -> None:
    splits = torch.randn(8, 128, 56, 56, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    attention = torch.rand(8, 128, 1, 1, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def run() -> tuple[Tensor, ...]:
        maps, means = blending.pool(splits, 2)
        out = blending.blend(maps, attention, 2, 2)
        loss = out.square().sum() + means.square().sum()
        return means, out, *torch.autograd.grad(loss, (splits, attention))

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)
