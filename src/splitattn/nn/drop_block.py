"""DropBlock as ResNeSt was trained with it.

torchvision's DropBlock draws a mask for every image and places blocks by another rule. The
published networks were trained with one mask per batch.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from splitattn.nn.freezing import Freezable


class DropBlock2d(Freezable):
    """Zeroes square blocks of a feature map while training (arXiv 1810.12890).

    One mask (1, C, H, W) serves the whole batch. A position becomes the center of a dropped block
    with probability `p * H*W / block**2 / ((H - block + 1) * (W - block + 1))`, and what is kept is
    scaled by `C*H*W / kept`, as in the official Gluon code (resnest/gluon/dropblock.py).

    Args:
        probability: share p of the map to drop. It is a buffer, so a schedule can change it
            without recompiling the network; it is not in the state dict.
        block_size: side of a block, an odd number of pixels; it is reduced to fit small maps.

    Input and output (B, C, H, W).
    """

    probability: Tensor

    def __init__(self, probability: float, block_size: int = 3) -> None:
        super().__init__()
        self.block_size = block_size
        self.register_buffer("probability", torch.tensor(float(probability)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        _, channels, height, width = x.shape
        smaller = min(height, width)
        block = min(self.block_size, smaller - (smaller + 1) % 2)
        valid = (height - block + 1) * (width - block + 1)
        gamma = self.probability * (height * width / block**2 / valid)
        centers = (torch.rand(1, channels, height, width, device=x.device) < gamma).float()
        kept = 1 - F.max_pool2d(centers, block, stride=1, padding=block // 2)
        scale = kept.numel() / kept.sum().clamp(min=1)
        return x * (kept * scale).to(x.dtype)
