"""The hand-written backward passes give the gradients that autograd gives."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from splitattn.nn import blending
from splitattn.nn.blending import blend, pool
from splitattn.nn.split_attention import SplitAttention2d


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blending, "_written_out", lambda _: False)


@pytest.mark.parametrize("radix", [1, 2, 4])
def test_gradients_are_those_of_finite_differences(radix: int) -> None:
    torch.manual_seed(0)
    splits = torch.randn(2, 3 * radix, 4, 5, dtype=torch.float64, requires_grad=True)
    attention = torch.rand(2, 3 * radix, 1, 1, dtype=torch.float64, requires_grad=True)

    def pooled_and_blended(splits: Tensor, attention: Tensor) -> Tensor:
        maps, means = pool(splits)
        return blend(maps, attention * means[:, :, None, None], radix)

    assert torch.autograd.gradcheck(pooled_and_blended, (splits, attention))
    assert torch.autograd.gradcheck(pooled_and_blended, (splits, attention.detach()))


@pytest.mark.parametrize("radix", [1, 2, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_block_has_the_gradients_of_plain_pytorch_in_the_same_memory_format(
    radix: int, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    block = SplitAttention2d(16, 16, radix=radix).double().to(memory_format=memory_format)
    x = torch.randn(3, 16, 6, 7, dtype=torch.float64).to(memory_format=memory_format)
    up = torch.randn(3, 16, 6, 7, dtype=torch.float64).to(memory_format=memory_format)
    found = []
    for patch in (lambda: None, lambda: plain(monkeypatch)):
        patch()
        own = x.clone(memory_format=torch.preserve_format).requires_grad_()
        block.zero_grad()
        seen: list[Tensor] = []
        handle = block.conv.register_forward_hook(
            lambda _, __, maps, seen=seen: maps.register_hook(seen.append) and None
        )
        out = block(own)
        out.backward(up)
        handle.remove()
        assert out.is_contiguous(memory_format=memory_format)
        assert seen[0].is_contiguous(memory_format=memory_format)
        found.append((out, own.grad, *(weight.grad.clone() for weight in block.parameters())))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_without_gradients_no_tensor_is_saved_for_them() -> None:
    maps = torch.randn(1, 4, 3, 3)
    assert pool(maps)[0] is maps
    assert blend(maps, torch.ones(1, 4, 1, 1), 2).grad_fn is None


def test_gradients_of_gradients_are_refused_rather_than_wrong() -> None:
    splits = torch.randn(1, 4, 3, 3, requires_grad=True)
    out = blend(splits, torch.ones(1, 4, 1, 1), 2)
    (first,) = torch.autograd.grad(out.square().sum(), splits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_block_can_be_traced_and_saved(tmp_path: Path) -> None:
    block = SplitAttention2d(8, 8).eval()
    x = torch.randn(1, 8, 5, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated but still used
        torch.jit.save(torch.jit.trace(block, x), tmp_path / "block.pt")
        loaded = torch.jit.load(tmp_path / "block.pt")
    torch.testing.assert_close(loaded(x), block(x))
