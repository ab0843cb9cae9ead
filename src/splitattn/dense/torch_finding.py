"""A detector of torchvision as a `Finder`."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from splitattn.dense.found import FoundObjects


class TorchFinder:
    """A detector in PyTorch.

    Args:
        network: one of `create_detector`, in evaluation mode, on `device`.
        device: where it is.
        first_label: see `DetectionHead`.
    """

    def __init__(self, network: nn.Module, device: torch.device, first_label: int) -> None:
        self._network: Any = network
        self._device = device
        self._first_label = first_label

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8], *, score: float, iou: float) -> FoundObjects:
        # Detectors of two stages have them in their second one.
        last = getattr(self._network, "roi_heads", self._network)
        last.score_thresh, last.nms_thresh = score, iou
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).to(self._device).float() / 255
        (found,) = self._network([image])
        return FoundObjects(
            boxes=found["boxes"].float().cpu().numpy(),
            labels=found["labels"].cpu().numpy() - self._first_label,
            scores=found["scores"].float().cpu().numpy(),
            masks=found["masks"][:, 0].float().cpu().numpy() if "masks" in found else None,
        )
