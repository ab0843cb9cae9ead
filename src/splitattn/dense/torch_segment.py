"""A segmentation network in PyTorch, for `segment`."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from splitattn.dense.segment import Logits
from splitattn.engines.pytorch import full_precision


def torch_logits(network: nn.Module, device: torch.device) -> Logits:
    """A function of NumPy arrays that runs `network`.

    Args:
        network: one of `create_segmenter`, in evaluation mode, on `device`.
        device: where it is.
    """

    @torch.inference_mode()
    def logits(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with full_precision(device):
            found = network(torch.from_numpy(images).to(device))
        out: NDArray[np.float32] = found.float().cpu().numpy()
        return out

    return logits
