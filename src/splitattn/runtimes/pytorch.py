"""PyTorch as a runtime: the reference for every other one."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from splitattn.errors import InputError
from splitattn.images.preprocess import normalise
from splitattn.weights.catalogue import Preprocessing


class TorchRuntime:
    """Runs a network in float32, channels last, on one device.

    Args:
        model: gives logits; it is moved to the device and put into evaluation mode, in place.
        preprocessing: the input size and normalisation that the model expects.
        device: see `choose_device`.

    Raises:
        InputError: there is no such device.
    """

    def __init__(
        self, model: nn.Module, preprocessing: Preprocessing, *, device: str = "auto"
    ) -> None:
        self._device = choose_device(device)
        self._model = model.eval().to(self._device).to(memory_format=torch.channels_last)
        self._preprocessing = preprocessing
        self.name = f"torch {torch.__version__} on {self._device}"

    def warm_up(self, batch_size: int) -> None:
        """Do what only the first batch of this size pays for."""
        size = self._preprocessing.size
        self.run(torch.zeros(batch_size, 3, size, size, dtype=torch.uint8))

    @torch.inference_mode()
    def run(self, batch_BCHW: Tensor) -> Tensor:  # noqa: N803
        """uint8 pixels (B, 3, size, size) to float32 probabilities (B, classes) on the CPU."""
        batch_BCHW = batch_BCHW.to(self._device, memory_format=torch.channels_last)  # noqa: N806
        with full_precision(self._device):
            logits: Tensor = self._model(normalise(batch_BCHW, self._preprocessing))
        return logits.float().softmax(1).cpu()


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is any, and the CPU elsewhere; else the name as PyTorch knows it.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device {name!r} cannot be used: {reason}; try cpu") from error
    return device


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """No TF32, cuDNN's default: with it, results would depend on the size of the batch."""
    if device.type == "cuda":
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return nullcontext()
