"""Normalization in PyTorch, on the device where the network is."""

from functools import cache

import torch
from torch import Tensor

from splitattn.preprocessing import Preprocessing


def normalize(pixels_BCHW: Tensor, preprocessing: Preprocessing) -> Tensor:  # noqa: N803
    """Scale pixels (B, C, H, W) to 0..1, subtract the mean and divide by the deviation.

    uint8 pixels are divided by 255; floats are from 0 to 1 already.

    Returns:
        float32 (B, C, H, W) on the device of the pixels. `images.preprocess.normalize` is the same
        in NumPy.
    """
    mean = _per_channel(preprocessing.mean, pixels_BCHW.device)
    std = _per_channel(preprocessing.std, pixels_BCHW.device)
    if pixels_BCHW.dtype == torch.uint8:
        pixels_BCHW = pixels_BCHW.float() / 255  # noqa: N806
    return (pixels_BCHW - mean) / std


@cache  # copying new tensors for every batch would stall a GPU
@torch.inference_mode(False)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, -1, 1, 1)
