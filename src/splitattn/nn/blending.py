"""The two ends of Split-Attention that touch whole feature maps, with few passes over memory.

On the maps of the first stages an operation costs what it reads and writes. Left to autograd, the
gradient of the splits is made in pieces, put together and added up: more traffic than the
backward passes written out here. Where nothing needs gradients, or operations are recorded for a
compiler, the same arithmetic is plain PyTorch.

Shapes: B batch, R radix, C channels of the block's output, H and W rows and columns.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def pool(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, C, H, W) to themselves and their means (B, C).

    What uses the maps afterwards must use the ones returned: both gradients then meet here and are
    added in one pass.
    """
    if _written_out(maps):
        both: tuple[Tensor, Tensor] = _Pool.apply(maps)
        return both
    return maps, maps.mean((2, 3))


def blend(splits: Tensor, attention: Tensor, radix: int) -> Tensor:
    r""":math:`\sum_r a_r \odot U_r`, in the memory format of the splits.

    Args:
        splits: :math:`U`, (B, R*C, H, W), radix-major.
        attention: :math:`a`, (B, R*C, 1, 1), radix-major.
        radix: R.

    Returns:
        (B, C, H, W).
    """
    if _written_out(splits):
        blended: Tensor = _Blend.apply(splits, attention, radix)
        return blended
    return _blended(splits, attention, radix)


def _written_out(maps: Tensor) -> bool:
    recorded = torch.compiler.is_compiling() or torch._C._get_tracing_state()
    return torch.is_grad_enabled() and maps.requires_grad and not recorded


def _blended(splits: Tensor, attention: Tensor, radix: int) -> Tensor:
    # Slices of the channels, rather than a radix axis and a sum over it, keep channels_last.
    pairs = zip(attention.chunk(radix, 1), splits.chunk(radix, 1), strict=True)
    weight, split = next(pairs)
    blended = weight * split
    for weight, split in pairs:
        blended = torch.addcmul(blended, weight, split)
    return blended


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(maps: Tensor) -> tuple[Tensor, Tensor]:
        return maps.view_as(maps), maps.mean((2, 3))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        del output
        ctx.pixels = inputs[0].shape[2] * inputs[0].shape[3]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_maps: Tensor, grad_means: Tensor) -> Tensor:
        return torch.add(grad_maps, grad_means[:, :, None, None], alpha=1 / ctx.pixels)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(splits: Tensor, attention: Tensor, radix: int) -> Tensor:
        return _blended(splits, attention, radix)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        del output
        splits, attention, ctx.radix = inputs
        ctx.save_for_backward(splits, attention)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        splits, attention = ctx.saved_tensors
        # Each split's gradient goes straight to its place: nothing is concatenated.
        grad_splits, grad_attention = torch.empty_like(splits), torch.empty_like(attention)
        for split, weight, grad_split, grad_weight in zip(
            *(x.chunk(ctx.radix, 1) for x in (splits, attention, grad_splits, grad_attention)),
            strict=True,
        ):
            torch.mul(weight, grad, out=grad_split)
            grad_weight.copy_((split * grad).sum((2, 3), keepdim=True))
        return grad_splits, grad_attention, None
