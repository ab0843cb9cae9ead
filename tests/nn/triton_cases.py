"""Tests of the kernels against plain PyTorch in float64, on any device. Not collected by pytest.

`test_triton_blending` runs this file in Triton's interpreter, `test_cuda_attention` takes the
comparisons to a GPU.
"""

import os
import warnings

import pytest
import torch
from torch import Tensor, nn

from splitattn.nn import blending, triton_blending
from splitattn.nn.resnest import ResNeSt

from .networks import images, randomize_norms, small

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

every_kind_of_map = pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        pytest.param(dtype, layout, id=f"{dtype}-{layout}".replace("torch.", ""))
        for dtype in DTYPES
        for layout in LAYOUTS
    ],
)


def random_maps(
    shape: tuple[int, int, int, int], dtype: torch.dtype, layout: torch.memory_format, device: str
) -> Tensor:
    # The mean is one, so that no mean is small by cancellation.
    return (1 + torch.randn(shape)).to(dtype).to(device).contiguous(memory_format=layout)


def blended_plainly(
    splits: Tensor, attention: Tensor, radix: int, pool_stride: int | None
) -> Tensor:
    weighted = (splits * attention).unflatten(1, (radix, -1)).sum(1)
    return weighted if pool_stride is None else nn.AvgPool2d(3, pool_stride, padding=1)(weighted)


def blend_and_gradients(
    splits: Tensor, attention: Tensor, grad: Tensor, radix: int, pool_stride: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The expected output and gradients of `blend`: plain PyTorch in float64."""
    splits, attention = (x.double().detach().requires_grad_() for x in (splits, attention))
    blended = blended_plainly(splits, attention, radix, pool_stride)
    return blended.detach(), *torch.autograd.grad(blended, (splits, attention), grad.double())


def assert_rounded_only(out: Tensor, exact: Tensor, magnitude: Tensor, terms: int) -> None:
    """Check that `out` and `exact` differ only by rounding in float32 and once to the dtype.

    With unit roundoff u, a float32 sum of n terms is off by about sqrt(n) u sum|x|, and hardly ever
    by four times that (Higham and Mary 2019, "A new approach to probabilistic rounding error
    analysis"). `magnitude` is the sum of absolute values; a few more operations are added. The
    result is then rounded by half a unit in the last place on a GPU, and by a whole one in the
    interpreter, which truncates to bfloat16.
    """
    kind, unit = torch.finfo(out.dtype), torch.finfo(torch.float32).eps / 2
    in_float32 = (4 * terms**0.5 + 4) * unit * magnitude
    allowed = in_float32 + kind.eps * exact.abs().clamp(min=kind.smallest_normal)
    excess = ((out.double() - exact).abs() / allowed).max().item()
    assert excess <= 1, f"{excess:.3g} times what rounding allows"


def check_pool(
    batch: int,
    channels: int,
    size: tuple[int, int],
    *,
    radix: int,
    dtype: torch.dtype,
    layout: torch.memory_format,
    device: str = "cpu",
) -> None:
    splits = random_maps((batch, radix * channels, *size), dtype, layout, device).requires_grad_()
    grad = torch.randn(batch, channels).to(dtype).to(device)
    means = triton_blending.pool(splits, radix)
    (grad_splits,) = torch.autograd.grad(means, splits, grad)

    exact, magnitude = (
        x.mean((2, 3)).unflatten(1, (radix, -1)).sum(1)
        for x in (splits.detach().double(), splits.detach().double().abs())
    )
    assert means.shape == (batch, channels)
    assert means.dtype == dtype
    assert_rounded_only(means, exact, magnitude, terms=radix * size[0] * size[1])
    expected = (grad.double() / (size[0] * size[1])).repeat(1, radix)[:, :, None, None]
    assert_rounded_only(grad_splits, expected.expand_as(splits), expected.abs(), terms=1)


def check_blend(
    batch: int,
    channels: int,
    size: tuple[int, int],
    *,
    radix: int,
    pool_stride: int | None,
    dtype: torch.dtype,
    layout: torch.memory_format,
    device: str = "cpu",
) -> None:
    splits = random_maps((batch, radix * channels, *size), dtype, layout, device).requires_grad_()
    attention = torch.rand(batch, radix * channels, 1, 1).to(dtype).to(device).requires_grad_()
    blended = triton_blending.blend(splits, attention, radix, pool_stride)
    grad = torch.randn(blended.shape).to(dtype).to(device)
    found = (blended, *torch.autograd.grad(blended, (splits, attention), grad))

    inputs = splits.detach(), attention.detach(), grad
    exact = blend_and_gradients(*inputs, radix, pool_stride)
    magnitudes = blend_and_gradients(*(x.double().abs() for x in inputs), radix, pool_stride)
    window = 1 if pool_stride is None else 9
    for out, expected, magnitude, terms in zip(
        found, exact, magnitudes, (radix * window, window, window * size[0] * size[1]), strict=True
    ):
        assert out.shape == expected.shape
        assert out.dtype == dtype
        assert_rounded_only(out, expected, magnitude, terms)
    assert blended.is_contiguous(memory_format=layout)
    assert found[1].is_contiguous(memory_format=layout)


def blend_inputs(
    layout: torch.memory_format = torch.channels_last, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    splits = random_maps((2, 6, 5, 4), torch.float32, layout, device).requires_grad_()
    return splits, torch.rand(2, 6, 1, 1, device=device).requires_grad_()


def check_operators(device: str = "cpu") -> None:
    """PyTorch's own checks of schemas, fake implementations and autograd."""
    for layout, pool_stride in zip(LAYOUTS, (None, 2), strict=True):
        splits, attention = blend_inputs(layout, device)
        with warnings.catch_warnings():
            # opcheck causes this warning itself: it reads .grad of tensors that have none.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
            torch.library.opcheck(triton_blending.pool, (splits, 2))
            torch.library.opcheck(triton_blending.blend, (splits, attention, 2, pool_stride))


class Ends(nn.Module):
    """A module with only the two operators at the ends of a block."""

    def forward(self, splits: Tensor, attention: Tensor) -> Tensor:
        means = triton_blending.pool(splits, 2).repeat(1, 2)[:, :, None, None]
        return triton_blending.blend(splits, attention * means, 2, 1)


def check_compilation(backend: str, device: str = "cpu") -> None:
    torch.compiler.reset()
    splits, attention = blend_inputs(device=device)
    expected = Ends()(splits, attention)
    grads = torch.autograd.grad(expected.square().sum(), (splits, attention))
    out = torch.compile(Ends(), fullgraph=True, backend=backend)(splits, attention)
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), (splits, attention)), grads, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def check_export(device: str = "cpu") -> None:
    inputs = tuple(x.detach() for x in blend_inputs(device=device))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(Ends(), inputs, dynamic_shapes=({0: batch}, {0: batch}))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.splitattn.pool.default in targets
    assert torch.ops.splitattn.blend.default in targets
    fewer = tuple(x[:1] for x in inputs)
    torch.testing.assert_close(program.module()(*fewer), Ends()(*fewer))


def test_this_is_the_interpreter() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"


@every_kind_of_map
@pytest.mark.parametrize("radix", [1, 2, 4])
def test_pool_equals_float64(radix: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    check_pool(2, 3, (7, 5), radix=radix, dtype=dtype, layout=layout)


@every_kind_of_map
@pytest.mark.parametrize("pool_stride", [None, 1, 2])
def test_blend_equals_float64(
    pool_stride: int | None, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    check_blend(2, 3, (7, 5), radix=2, pool_stride=pool_stride, dtype=dtype, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("pool_stride", [None, 1, 2])
@pytest.mark.parametrize("radix", [1, 4])
def test_blend_equals_float64_with_another_radix(
    radix: int, pool_stride: int | None, layout: torch.memory_format
) -> None:
    check_blend(
        1, 3, (5, 4), radix=radix, pool_stride=pool_stride, dtype=torch.float32, layout=layout
    )


@pytest.mark.parametrize(("channels", "size"), [(1, (1, 1)), (4, (1, 1)), (1, (2, 2)), (4, (1, 6))])
def test_sizes_at_the_edge(channels: int, size: tuple[int, int]) -> None:
    kind = {"radix": 2, "dtype": torch.float32, "layout": torch.channels_last}
    check_pool(1, channels, size, **kind)
    for pool_stride in (None, 1, 2):
        check_blend(1, channels, size, pool_stride=pool_stride, **kind)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("pool_stride", [None, 1, 2])
def test_several_tiles_of_pixels_and_of_channels(
    pool_stride: int | None, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_blending, "_TILE", 32)
    monkeypatch.setattr(triton_blending, "_CHANNELS_IN_A_ROW", 4)
    monkeypatch.setattr(triton_blending, "_PIXELS_IN_A_ROW", 8)
    assert triton_blending._tile(5, 20, layout, 32) == (4, 8)
    kind = {"radix": 2, "dtype": torch.float32, "layout": layout}
    check_pool(1, 5, (5, 4), **kind)
    check_blend(1, 5, (5, 4), pool_stride=pool_stride, **kind)


def test_maps_and_gradients_may_have_any_strides() -> None:
    """Maps may be slices with gaps, and gradients may have zero strides, as that of a sum."""
    dense, attention = blend_inputs()
    gaps = torch.zeros(2, 6, 5, 8)[..., ::2].copy_(dense.detach()).requires_grad_()
    for splits in (dense, gaps):
        blended = triton_blending.blend(splits, attention, 2, 2)
        found = torch.autograd.grad(blended.sum(), (splits, attention))
        expected = blend_and_gradients(splits, attention, torch.ones_like(blended), 2, 2)
        for ours, theirs in zip((blended, *found), expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    means = triton_blending.pool(gaps, 2)
    torch.testing.assert_close(means, triton_blending.pool(dense, 2))


def test_an_image_gives_the_same_in_every_batch() -> None:
    splits, attention = (x.detach() for x in blend_inputs())
    means = triton_blending.pool(splits, 2)
    blended = triton_blending.blend(splits, attention, 2, 2)
    for i in (0, 1):
        alone = splits[i : i + 1], attention[i : i + 1]
        assert torch.equal(triton_blending.pool(alone[0], 2), means[i : i + 1])
        assert torch.equal(triton_blending.blend(*alone, 2, 2), blended[i : i + 1])


def test_gradients_of_gradients_are_refused_rather_than_wrong() -> None:
    splits, attention = blend_inputs()
    out = triton_blending.blend(splits, attention, 2)
    (first,) = torch.autograd.grad(out.square().sum(), splits, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        first.sum().backward()


def test_operators_keep_pytorchs_rules() -> None:
    check_operators()


def test_compiles_to_one_graph() -> None:
    check_compilation("aot_eager")


def test_exports_with_a_dynamic_batch() -> None:
    check_export()


def test_a_network_gives_what_plain_pytorch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with float64, outputs and gradients are about as exact as plain PyTorch's."""
    network = ResNeSt(small(2, 2), num_classes=10).eval()
    randomize_norms(network)
    x = images(2, 33, 41)

    def run(dtype: torch.dtype) -> list[Tensor]:
        network.to(dtype).zero_grad()
        out = network(x.to(dtype))
        out.square().mean().backward()
        gradients = [parameter.grad.double() for parameter in network.parameters()]
        return [out.detach().double(), *gradients]

    exact, plain = run(torch.float64), run(torch.float32)
    monkeypatch.setattr(blending, "_kernels_serve", lambda _: True)
    fused = run(torch.float32)
    for ours, theirs, reference in zip(fused, plain, exact, strict=True):
        error, usual = ((one - reference).norm() for one in (ours, theirs))
        # If plain PyTorch happens to be exact, one unit in the last place is still allowed.
        assert error <= 3 * usual + torch.finfo(torch.float32).eps * reference.norm()
    assert any(not torch.equal(ours, theirs) for ours, theirs in zip(fused, plain, strict=True))
