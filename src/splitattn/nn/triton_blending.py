"""`blending` for CUDA: operators that read the largest maps of a block once, written in Triton.

    pool             mean over the pixels of the sum of the splits
    blend            weighted sum of the splits, and the 3x3 average pooling that may follow it
    blend_backward   both gradients of `blend`

Sums are in float32 and in an order that depends on nothing but the shape, so a result does not
depend on the run. Maps are float32, float16 or bfloat16, in either memory format; what is neither
is copied into the contiguous one. Needs Triton, unlike all other modules.

The operators are `custom_op`s rather than `triton_op`s. A `triton_op` lets a compiler look at the
launch of a kernel, which it cannot fuse with anything; torch.export keeps either as one node. And
only a `custom_op` has a fake implementation of its own, which is what lets all of it, compilation
and export included, be tested in Triton's interpreter on a machine without a GPU.

Shapes: B batch, R radix, C channels of the block's output, H and W rows and columns.
"""

from typing import Any

import torch
from torch import Tensor

from splitattn.nn.triton_kernels import blend_backward_kernel, blend_kernel, pool_kernel

# A program's tile, in values, and the warps that share it: 16 values a thread are two loads of 16
# bytes in half precision. The pooling keeps nine reads for each value in flight, so its tiles are
# half as large. Shared memory holds only what the warps add up. Untuned: no GPU has run them yet.
_TILE = 4096
_WARPS = 8
# Tiles are long along the memory and as wide across it as the rest allows. Widths are multiples of
# 64 channels in most stages; maps have from 49 pixels to thousands.
_CHANNELS_IN_A_ROW = 64
_PIXELS_IN_A_ROW = 256


@torch.library.custom_op("splitattn::pool", mutates_args=())
def pool(splits: Tensor, radix: int) -> Tensor:
    """Splits (B, R*C, H, W), radix-major, to the mean (B, C) of their sum."""
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
    """`blending.blend`: the same arguments and result, but both gradients in one pass."""
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
    """Where kernels start, which left alone is the current device; nothing happens on a CPU."""
    return torch.cuda.device(maps.get_device())


def _layout(maps: Tensor) -> torch.memory_format:
    """channels_last if that is what `maps` is and nothing else, contiguous otherwise."""
    if maps.is_contiguous() or not maps.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def _strides(maps: Tensor, layout: torch.memory_format) -> tuple[int, int, int]:
    """From an image, a channel and a pixel to the next; `maps` says it of no dimension of 1."""
    channels, pixels = maps.shape[1], maps.shape[2] * maps.shape[3]
    if layout == torch.channels_last:
        return channels * pixels, 1, channels
    return channels * pixels, pixels, 1


def _tile(channels: int, pixels: int, layout: torch.memory_format, values: int) -> tuple[int, int]:
    """Channels and pixels of a tile: powers of two, together no more than `values`.

    The batch has no say, so an image is summed alike in every batch.
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
