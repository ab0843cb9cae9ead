"""Pooling and blending: the two steps of Split-Attention that read whole feature maps.

On the large maps of the first stages, memory traffic decides the speed. Autograd would compute the
gradient of each split as a separate map, concatenate the maps and add them up. The backward passes
here write the gradient once, and the Triton kernels in `triton_blending` read and write even less.
Plain PyTorch is the reference for both.

The Triton kernels run on CUDA, and only with SPLITATTN_TRITON=1 in the environment, since no GPU
has run their tests yet.

Shapes: B batch, R radix, C channels of the block's output, H and W rows and columns.
"""

import importlib.util
import logging
import os
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from splitattn.errors import one_line

logger = logging.getLogger(__name__)


def pool(maps: Tensor, radix: int = 1) -> tuple[Tensor, Tensor]:
    r"""Return the maps and :math:`\operatorname{mean}_{HW} \sum_r U_r`.

    Use the returned maps afterwards, not the argument: the gradients of maps and means are then
    added in one pass.

    Args:
        maps: :math:`U`, (B, R*C, H, W), radix-major.
        radix: R.

    Returns:
        The maps, and means (B, C).
    """
    if _written_out(maps):
        both: tuple[Tensor, Tensor] = _Pool.apply(maps, radix)
        return both
    return maps, _means(maps, radix)


def blend(splits: Tensor, attention: Tensor, radix: int, pool_stride: int | None = None) -> Tensor:
    r""":math:`\sum_r a_r \odot U_r`, in the memory format of the splits.

    Args:
        splits: :math:`U`, (B, R*C, H, W), radix-major.
        attention: :math:`a`, (B, R*C, 1, 1), radix-major.
        radix: R.
        pool_stride: stride of the 3x3 average pooling that follows, the block's `avd`; None for
            no pooling.

    Returns:
        (B, C, H, W), or (B, C, ceil(H / pool_stride), ceil(W / pool_stride)).
    """
    if _kernels_serve(splits):
        from splitattn.nn import triton_blending

        fused: Tensor = triton_blending.blend(splits, attention, radix, pool_stride)
        return fused
    if _written_out(splits):
        blended: Tensor = _Blend.apply(splits, attention, radix)
    else:
        blended = _blended(splits, attention, radix)
    return blended if pool_stride is None else F.avg_pool2d(blended, 3, pool_stride, padding=1)


def _recorded() -> bool:
    """Whether a compiler or an exporter is recording operations."""
    return bool(torch.compiler.is_compiling() or torch._C._get_tracing_state())


def _written_out(maps: Tensor) -> bool:
    """Whether the backward passes of this module are used instead of autograd's."""
    return torch.is_grad_enabled() and maps.requires_grad and not _recorded()


def _kernels_serve(maps: Tensor) -> bool:
    """Whether Triton's kernels run instead of plain PyTorch: on CUDA, with SPLITATTN_TRITON=1.

    Compilers and exporters get plain PyTorch: compilers fuse it with the batch norm and ReLU before
    it, and exported files then need no custom operator.
    """
    in_float32 = maps.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return (
        maps.is_cuda
        and os.environ.get("SPLITATTN_TRITON") == "1"
        and in_float32
        and not _recorded()
        and _kernels_work(maps.device, maps.dtype)
    )


@cache
def _kernels_work(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton is installed and a kernel runs; if it fails, log a warning with the reason.

    It fails on an old GPU or without a C compiler.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        from splitattn.nn import triton_blending

        triton_blending.pool(torch.ones(1, 1, 1, 1, device=device, dtype=dtype), 1)
    except torch.OutOfMemoryError:
        raise  # the kernels may still work
    except Exception as error:
        reason = one_line(str(error))
        logger.warning("Triton's kernels do not run on %s in %s: %s", device, dtype, reason)
        return False
    return True


def _means(maps: Tensor, radix: int) -> Tensor:
    if _kernels_serve(maps):
        from splitattn.nn import triton_blending

        means: Tensor = triton_blending.pool(maps, radix)
        return means
    # Summing the pooled splits gives the same mean without a sum of whole maps.
    return maps.mean((2, 3)).reshape(maps.shape[0], radix, -1).sum(1)


def _blended(splits: Tensor, attention: Tensor, radix: int) -> Tensor:
    # Slices of the channels keep channels_last; a sum over a radix axis would not.
    pairs = zip(attention.chunk(radix, 1), splits.chunk(radix, 1), strict=True)
    weight, split = next(pairs)
    blended = weight * split
    for weight, split in pairs:
        blended = torch.addcmul(blended, weight, split)
    return blended


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(maps: Tensor, radix: int) -> tuple[Tensor, Tensor]:
        return maps.view_as(maps), _means(maps, radix)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        del output
        maps, ctx.radix = inputs
        ctx.pixels = maps.shape[2] * maps.shape[3]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_maps: Tensor, grad_means: Tensor) -> tuple[Tensor, None]:
        of_each_split = grad_means.repeat(1, ctx.radix)[:, :, None, None]
        return torch.add(grad_maps, of_each_split, alpha=1 / ctx.pixels), None


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
        # Each split's gradient is written in place, so nothing is concatenated.
        grad_splits, grad_attention = torch.empty_like(splits), torch.empty_like(attention)
        for split, weight, grad_split, grad_weight in zip(
            *(x.chunk(ctx.radix, 1) for x in (splits, attention, grad_splits, grad_attention)),
            strict=True,
        ):
            torch.mul(weight, grad, out=grad_split)
            grad_weight.copy_((split * grad).sum((2, 3), keepdim=True))
        return grad_splits, grad_attention, None
