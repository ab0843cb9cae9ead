# mypy: ignore-errors
# Triton compiles these functions for the GPU; mypy cannot check them.
"""The kernels of `triton_blending`: each program reads its tile of the maps once.

A tile is BLOCK_C channels by BLOCK_P pixels of one image; pixels are counted row by row. Strides of
images, channels and pixels are arguments, so one kernel serves both memory formats: the compiler
specializes it for the stride that is 1, and neighboring threads read neighboring values.

Arithmetic is in float32. Sums over all pixels are returned as one partial sum per tile, (B, tiles,
channels), and added later in a fixed order. Atomic additions would depend on the order in which
programs end.

POOL_STRIDE is the stride of the 3x3 average pooling that follows the blend (padding 1, zeros of the
padding counted), or 0 where none follows.
"""

import triton
import triton.language as tl


@triton.jit
def pool_kernel(
    splits,
    partials,
    image_stride,
    channel_stride,
    pixel_stride,
    channels,
    pixels,
    tiles,
    RADIX: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Partial means over the pixels of the sum of the splits."""
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (c < channels)[:, None] & (p < pixels)[None, :]
    here = (c * channel_stride)[:, None] + (p * pixel_stride)[None, :]

    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for r in tl.static_range(RADIX):
        split = splits + image * image_stride + r * channels * channel_stride
        total += tl.load(split + here, mask=inside, other=0.0).to(tl.float32)
    to = partials + (image * tiles + tile) * channels + c
    tl.store(to, tl.sum(total, 1) / pixels, mask=c < channels)


@triton.jit
def blend_kernel(
    splits,
    attention,
    blended,
    image_stride,
    channel_stride,
    pixel_stride,
    out_image_stride,
    out_channel_stride,
    out_pixel_stride,
    channels,
    rows,
    columns,
    out_columns,
    out_pixels,
    tiles,
    RADIX: tl.constexpr,
    POOL_STRIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The splits, each weighted by its attention, added up; the tile is one of the output."""
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (c < channels)[:, None] & (p < out_pixels)[None, :]

    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for r in tl.static_range(RADIX):
        split = splits + image * image_stride + (r * channels + c)[:, None] * channel_stride
        if POOL_STRIDE == 0:
            value = tl.load(split + (p * pixel_stride)[None, :], mask=inside, other=0.0)
            value = value.to(tl.float32)
        else:
            # The attention is constant in the window, so it multiplies the window's sum.
            value = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
            for tap in tl.static_range(9):
                row = (p // out_columns) * POOL_STRIDE + tap // 3 - 1
                column = (p % out_columns) * POOL_STRIDE + tap % 3 - 1
                exists = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
                there = ((row * columns + column) * pixel_stride)[None, :]
                value += tl.load(split + there, mask=inside & exists[None, :], other=0.0).to(
                    tl.float32
                )
            value = value / 9
        weight = attention + (image * RADIX + r) * channels + c
        total += tl.load(weight, mask=c < channels, other=0.0).to(tl.float32)[:, None] * value
    to = image * out_image_stride + (c * out_channel_stride)[:, None]
    tl.store(blended + to + (p * out_pixel_stride)[None, :], total, mask=inside)


@triton.jit
def blend_backward_kernel(
    grad,
    splits,
    attention,
    grad_splits,
    partials,
    grad_image_stride,
    grad_channel_stride,
    grad_pixel_stride,
    image_stride,
    channel_stride,
    pixel_stride,
    channels,
    columns,
    pixels,
    grad_rows,
    grad_columns,
    tiles,
    RADIX: tl.constexpr,
    POOL_STRIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The gradient of the splits, and partial sums of the attention's; the tile is of the splits.

    The gradient that reaches a pixel is the same for all splits and is gathered once.
    """
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (c < channels)[:, None] & (p < pixels)[None, :]

    source = grad + image * grad_image_stride + (c * grad_channel_stride)[:, None]
    if POOL_STRIDE == 0:
        reached = tl.load(source + (p * grad_pixel_stride)[None, :], mask=inside, other=0.0)
        reached = reached.to(tl.float32)
    else:
        reached = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
        # Windows i cover the rows from i * POOL_STRIDE - 1 to i * POOL_STRIDE + 1. Those that cover
        # this row start at the first of these, and there are at most 2 // POOL_STRIDE + 1 of them.
        first_row = (p // columns + POOL_STRIDE - 2) // POOL_STRIDE
        last_row = (p // columns + 1) // POOL_STRIDE
        first_column = (p % columns + POOL_STRIDE - 2) // POOL_STRIDE
        last_column = (p % columns + 1) // POOL_STRIDE
        for down in tl.static_range(2 // POOL_STRIDE + 1):
            for right in tl.static_range(2 // POOL_STRIDE + 1):
                row = first_row + down
                column = first_column + right
                exists = (row >= 0) & (row <= last_row) & (row < grad_rows)
                exists &= (column >= 0) & (column <= last_column) & (column < grad_columns)
                there = ((row * grad_columns + column) * grad_pixel_stride)[None, :]
                reached += tl.load(source + there, mask=inside & exists[None, :], other=0.0).to(
                    tl.float32
                )
        reached = reached / 9

    for r in tl.static_range(RADIX):
        here = image * image_stride + (r * channels + c)[:, None] * channel_stride
        here += (p * pixel_stride)[None, :]
        weight = attention + (image * RADIX + r) * channels + c
        weight = tl.load(weight, mask=c < channels, other=0.0).to(tl.float32)
        tl.store(grad_splits + here, weight[:, None] * reached, mask=inside)
        value = tl.load(splits + here, mask=inside, other=0.0).to(tl.float32)
        to = partials + ((image * tiles + tile) * RADIX + r) * channels + c
        tl.store(to, tl.sum(value * reached, 1), mask=c < channels)
