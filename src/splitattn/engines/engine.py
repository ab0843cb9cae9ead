"""The interface that every engine has, and the choice of one."""

from typing import Protocol

import torch
from torch import Tensor

from splitattn.engines.pytorch import choose_device, compiled_engine, eager_engine
from splitattn.errors import InputError
from splitattn.images.preprocess import normalize
from splitattn.libraries import installed, require
from splitattn.nn.resnest import ResNeSt
from splitattn.preprocessing import Preprocessing

# What each engine needs to run a network that is in memory, besides PyTorch.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "torch": (),
    "compile": (),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino",),
}
ENGINES = ("auto", *LIBRARIES)

# What "auto" takes on each kind of device: the first that is installed. ONNX Runtime is not among
# them: a network in memory would be converted for seconds at every start.
FASTEST: dict[str, tuple[str, ...]] = {"cpu": ("openvino", "torch")}


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


class Engine(Protocol):
    """A loaded network by itself: floats in, logits out.

    Attributes:
        name: the engine, its version and its device, for people and reports.
        device: where it takes the images.
    """

    name: str
    device: torch.device

    def __call__(self, images_BCHW: Tensor) -> Tensor:  # noqa: N803
        """Normalized float32 images (B, 3, H, W), on `device`, to logits (B, classes)."""
        ...


class EngineRuntime:
    """The runtime of any engine: what comes before and after the network is the same for all.

    Args:
        engine: runs the network; it stays at hand as an attribute.
        preprocessing: the input size and normalization that the network expects.
    """

    def __init__(self, engine: Engine, preprocessing: Preprocessing) -> None:
        self.name = engine.name
        self.engine = engine
        self._preprocessing = preprocessing

    def warm_up(self, batch_size: int) -> None:
        """Do what only the first batch of this size pays for."""
        size = self._preprocessing.size
        blank = torch.zeros(batch_size, 3, size, size, dtype=torch.uint8)
        for _ in range(2):  # an engine may prepare for a size only when it comes again
            self.run(blank)

    @torch.inference_mode()
    def run(self, batch_BCHW: Tensor) -> Tensor:  # noqa: N803
        """uint8 pixels (B, 3, size, size) to float32 probabilities (B, classes) on the CPU."""
        # Bytes travel to the device, a quarter of the floats.
        images = normalize(batch_BCHW.to(self.engine.device), self._preprocessing)
        return self.engine(images).float().softmax(1).cpu()


def load_runtime(
    model: ResNeSt,
    preprocessing: Preprocessing,
    *,
    device: str = "auto",
    engine: str = "auto",
) -> EngineRuntime:
    """Load `model`, which stays as it is, into an engine, fused.

    Args:
        model: gives logits.
        preprocessing: the input size and normalization that the model expects.
        device: "auto" is CUDA where there is any and the engine can use it, and the CPU elsewhere.
        engine: one of `ENGINES`; "auto" is the fastest that is installed for the device.

    Raises:
        InputError: there is no such engine or device, the engine does not run on it, or a library
            is missing.
    """
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "auto":
        engine = _fastest(choose_device(device))
    require(f"engine {engine}", *LIBRARIES[engine])
    return EngineRuntime(_load(model, preprocessing.size, device, engine), preprocessing)


def _fastest(device: torch.device) -> str:
    candidates = FASTEST.get(device.type, ("torch",))
    return next(engine for engine in candidates if installed(*LIBRARIES[engine]))


def _load(model: ResNeSt, size: int, device: str, engine: str) -> Engine:
    # Imported here: each loads a library that the others do not need.
    if engine == "openvino":
        from splitattn.engines import open_vino

        return open_vino.network_engine(model, size=size, device=device)
    if engine == "onnxruntime":
        from splitattn.engines import onnx_runtime

        return onnx_runtime.network_engine(model, size=size, device=device)
    if engine == "compile":
        return compiled_engine(model, device=device)
    return eager_engine(model, device=device)
