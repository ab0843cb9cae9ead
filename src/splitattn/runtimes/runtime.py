"""The interface that every engine has, and the choice of one."""

from typing import Protocol

from torch import Tensor, nn

from splitattn.errors import InputError
from splitattn.runtimes.pytorch import TorchRuntime
from splitattn.weights.catalogue import Preprocessing

ENGINES = ("auto", "torch")


class Runtime(Protocol):
    """A loaded network that turns pixels into probabilities.

    Attributes:
        name: the engine, its version and its device, for people and reports.
    """

    name: str

    def warm_up(self, batch_size: int) -> None:
        """Do what only the first batch of this size pays for."""

    def run(self, batch_BCHW: Tensor) -> Tensor:  # noqa: N803
        """uint8 pixels (B, 3, size, size) to float32 probabilities (B, classes) on the CPU.

        The probabilities of an image do not depend on the rest of its batch.
        """
        ...


def load_runtime(
    model: nn.Module,
    preprocessing: Preprocessing,
    *,
    device: str = "auto",
    engine: str = "auto",
) -> Runtime:
    """Load `model`, which gives logits, into an engine; "auto" is the fastest that is installed.

    Raises:
        InputError: there is no such engine or device.
    """
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    return TorchRuntime(model, preprocessing, device=device)
