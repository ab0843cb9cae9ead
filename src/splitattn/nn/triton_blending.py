"""Pooling and blending on CUDA as Triton operators that read the large maps only once.

    pool             mean over the pixels of the sum of the splits
    blend            weighted sum of the splits, and the 3x3 average pooling that may follow it
    blend_backward   both gradients of `blend`

Sums are computed in float32, in an order that depends only on the shape, so results are
reproducible. Maps are float32, float16 or bfloat16, contiguous or channels_last; other layouts are
copied to contiguous ones. This module needs Triton.

The operators are `custom_op`s, not `triton_op`s. A `triton_op` shows the kernel's launch to the
compiler, which could not fuse it with anything, and torch.export keeps either as one node. Only a
`custom_op` has a fake implementation, so compilation and export can be tested in Triton's
interpreter on a machine without a GPU.

Shapes: B batch, R radix, C channels of the block's output, H and W rows and columns.
"""

from typing import Any

import torch
from torch import Tensor

from splitattn.nn.triton_kernels import blend_backward_kernel, blend_kernel, pool_kernel

# Values in a program's tile, and its warps: 16 values a thread are two loads of 16 bytes in half
# precision. With pooling each value needs nine reads, so tiles are half as large. Shared memory
# holds only the sums over warps. Untuned: no GPU has run the kernels yet.
_TILE = 4096
_WARPS = 8
# Values that a tile reads in a row from memory, in channels_last and in contiguous maps. Most
# stages have a multiple of 64 channels; maps have from 49 pixels to thousands.
_CHANNELS_IN_A_ROW = 64
_PIXELS_IN_A_ROW = 256


@torch.library.custom_op("splitattn::pool", mutates_args=())
def pool(splits: Tensor, radix: int) -> Tensor:
    """Map splits (B, R*C, H, W), radix-major, to the mean (B, C) over pixels of their sum."""
    layout = _layout(splits)
    splits = splits.contiguous(memory_format=layout)
    channels, pixels = splits.shape[1] // radix, splits.shape[2] * splits.shape[3]
    block_c, block_p = _tile(channels, pixels, layout, _TILE)
    tiles = _ceil_div(pixels, block_p)
    partials = splits.new_empty((splits.shape[0], tiles, channels), dtype=torch.float32)
    with _device(splits):
        pool_kernel[(splits.shape[0] * tiles, _ceil_div(channels, block_c))](
            splits,
            partials,
            *_strides(splits, layout),
            channels,
            pixels,
            tiles,
            RADIX=radix,
            BLOCK_C=block_c,
            BLOCK_P=block_p,
            num_warps=_WARPS,
        )
    return partials.sum(1).to(splits.dtype)


@torch.library.custom_op("splitattn::blend", mutates_args=())
def blend(splits: Tensor, attention: Tensor, radix: int, pool_stride: int | None = None) -> Tensor:
    """`blending.blend`, with both gradients in one pass; same arguments and result."""
    layout = _layout(splits)
    splits = splits.contiguous(memory_format=layout)
    blended = _empty_blend(splits, radix, pool_stride)
    batch, channels, out_rows, out_columns = blended.shape
    values = _TILE if pool_stride is None else _TILE // 2
    block_c, block_p = _tile(channels, out_rows * out_columns, layout, values)
    tiles = _ceil_div(out_rows * out_columns, block_p)
    with _device(splits):
        blend_kernel[(batch * tiles, _ceil_div(channels, block_c))](
            splits,
            attention.contiguous(),
            blended,
            *_strides(splits, layout),
            *_strides(blended, layout),
            channels,
            splits.shape[2],
            splits.shape[3],
            out_columns,
            out_rows * out_columns,
            tiles,
            RADIX=radix,
            POOL_STRIDE=pool_stride or 0,
            BLOCK_C=block_c,
            BLOCK_P=block_p,
            num_warps=_WARPS,
        )
    return blended


@torch.library.custom_op("splitattn::blend_backward", mutates_args=())
def blend_backward(
    grad: Tensor, splits: Tensor, attention: Tensor, radix: int, pool_stride: int | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the splits (B, R*C, H, W) and of the attention (B, R*C, 1, 1)."""
    layout = _layout(splits)
    splits, grad = (x.contiguous(memory_format=layout) for x in (splits, grad))
    batch, channels, grad_rows, grad_columns = grad.shape
    pixels = splits.shape[2] * splits.shape[3]
    block_c, block_p = _tile(channels, pixels, layout, _TILE)
    tiles = _ceil_div(pixels, block_p)
    grad_splits = torch.empty_like(splits)
    partials = splits.new_empty((batch, tiles, splits.shape[1]), dtype=torch.float32)
    with _device(splits):
        blend_backward_kernel[(batch * tiles, _ceil_div(channels, block_c))](
            grad,
            splits,
            attention.contiguous(),
            grad_splits,
            partials,
            *_strides(grad, layout),
            *_strides(splits, layout),
            channels,
            splits.shape[3],
            pixels,
            grad_rows,
            grad_columns,
            tiles,
            RADIX=radix,
            POOL_STRIDE=pool_stride or 0,
            BLOCK_C=block_c,
            BLOCK_P=block_p,
            num_warps=_WARPS,
        )
    return grad_splits, partials.sum(1).to(attention.dtype).reshape(attention.shape)


def _device(maps: Tensor) -> torch.cuda.device:
    """Makes the device of `maps` current, since kernels start there; does nothing on a CPU."""
    return torch.cuda.device(maps.get_device())


def _layout(maps: Tensor) -> torch.memory_format:
    """channels_last if `maps` is that and not also contiguous, otherwise contiguous."""
    if maps.is_contiguous() or not maps.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def _strides(maps: Tensor, layout: torch.memory_format) -> tuple[int, int, int]:
    """Strides of images, channels and pixels; those of a tensor are arbitrary where a size is 1."""
    channels, pixels = maps.shape[1], maps.shape[2] * maps.shape[3]
    if layout == torch.channels_last:
        return channels * pixels, 1, channels
    return channels * pixels, pixels, 1


def _tile(channels: int, pixels: int, layout: torch.memory_format, values: int) -> tuple[int, int]:
    """Channels and pixels of a tile: powers of two, together no more than `values`.

    The batch size does not matter, so an image's sums are the same in every batch.
    """
    channels, pixels = (1 << max(n - 1, 0).bit_length() for n in (channels, pixels))
    if layout == torch.channels_last:
        block_c = min(channels, _CHANNELS_IN_A_ROW)
        return block_c, min(pixels, values // block_c)
    block_p = min(pixels, _PIXELS_IN_A_ROW)
    return min(channels, values // block_p), block_p


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _empty_blend(splits: Tensor, radix: int, pool_stride: int | None) -> Tensor:
    batch, channels, rows, columns = splits.shape
    if pool_stride is not None:
        rows, columns = (rows - 1) // pool_stride + 1, (columns - 1) // pool_stride + 1
    return torch.empty(
        (batch, channels // radix, rows, columns),
        dtype=splits.dtype,
        device=splits.device,
        memory_format=_layout(splits),
    )


@pool.register_fake
def _fake_pool(splits: Tensor, radix: int) -> Tensor:
    return splits.new_empty((splits.shape[0], splits.shape[1] // radix))


@blend.register_fake
def _fake_blend(
    splits: Tensor, attention: Tensor, radix: int, pool_stride: int | None = None
) -> Tensor:
    del attention
    return _empty_blend(splits, radix, pool_stride)


@blend_backward.register_fake
def _fake_blend_backward(
    grad: Tensor, splits: Tensor, attention: Tensor, radix: int, pool_stride: int | None
) -> tuple[Tensor, Tensor]:
    del grad, radix, pool_stride
    dense = splits.contiguous(memory_format=_layout(splits))
    return torch.empty_like(dense), attention.new_empty(attention.shape)


def _remember_pool(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    del output
    splits, ctx.radix = inputs
    ctx.shape = splits.shape


def _pool_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    means = (grad / (ctx.shape[2] * ctx.shape[3])).repeat(1, ctx.radix)
    return means[:, :, None, None].expand(ctx.shape), None  # a view: no map is written


def _remember_blend(
    ctx: Any, inputs: tuple[Tensor, Tensor, int, int | None], output: Tensor
) -> None:
    del output
    splits, attention, ctx.radix, ctx.pool_stride = inputs
    ctx.save_for_backward(splits, attention)


def _blend_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    splits, attention = ctx.saved_tensors
    gradients = blend_backward(grad, splits, attention, ctx.radix, ctx.pool_stride)
    return *gradients, None, None


pool.register_autograd(_pool_gradient, setup_context=_remember_pool)
blend.register_autograd(_blend_gradients, setup_context=_remember_blend)
