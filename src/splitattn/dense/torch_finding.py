"""A detector of torchvision as a `Finder`."""

from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from splitattn.dense.found import FoundObjects
from splitattn.engines.engine import NOT_FINITE
from splitattn.engines.pytorch import full_precision
from splitattn.errors import ImageError


class TorchFinder:
    """A detector in PyTorch.

    Args:
        network: one of `create_detector`, in evaluation mode, on `device`.
        device: where it is.
        first_label: see `DetectionHead`.
    """

    def __init__(self, network: nn.Module, device: torch.device, first_label: int) -> None:
        self._network: Any = network
        self._lock = Lock()
        # Detectors of two stages have scores and thresholds in their second one.
        self._last: Any = getattr(network, "roi_heads", network)
        self._scoring = getattr(self._last, "box_predictor", None) or self._last.head
        self._device = device
        self._first_label = first_label

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8], *, score: float, iou: float) -> FoundObjects:
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).to(self._device).float() / 255
        # Threads share the network, and with it the thresholds.
        with self._lock, full_precision(self._device):
            self._last.score_thresh, self._last.nms_thresh = score, iou
            watch = self._scoring.register_forward_hook(_check_finite)
            try:
                (found,) = self._network([image])
            finally:
                watch.remove()  # the network may go on training
        return FoundObjects(
            boxes=found["boxes"].float().cpu().numpy(),
            labels=found["labels"].cpu().numpy() - self._first_label,
            scores=found["scores"].float().cpu().numpy(),
            masks=found["masks"][:, 0].float().cpu().numpy() if "masks" in found else None,
        )


def _check_finite(_: nn.Module, __: Any, outputs: Any) -> None:
    """Raise if an output is not finite. torchvision would drop such boxes without a word."""
    tensors = outputs.values() if isinstance(outputs, dict) else outputs
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise ImageError(NOT_FINITE)
