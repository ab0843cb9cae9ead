"""PyTorch as an engine, eager and compiled."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from splitattn.errors import InputError
from splitattn.nn.fusion import fuse
from splitattn.nn.resnest import ResNeSt


class TorchEngine:
    """Runs a network as it is, channels last, on one device.

    Args:
        network: gives logits; in evaluation mode. It is moved to the device, in place.
        device: where.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.device = device
        self.name = f"torch {torch.__version__} on {device}"
        self._network = network.to(device).to(memory_format=torch.channels_last)

    def __call__(self, images_BCHW: Tensor) -> Tensor:  # noqa: N803
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)  # noqa: N806
        with _full_precision(self.device):
            logits: Tensor = self._network(images_BCHW)
        return logits


def eager_engine(model: ResNeSt, *, device: str = "auto") -> TorchEngine:
    """`model`, fused, in PyTorch; `model` stays as it is.

    Raises:
        InputError: there is no such device.
    """
    where = choose_device(device)
    return TorchEngine(fuse(model, target="cuda" if where.type == "cuda" else "torch"), where)


def compiled_engine(model: ResNeSt, *, device: str = "auto") -> TorchEngine:
    """`model`, fused and compiled by `torch.compile`; `model` stays as it is.

    The first batch of a size waits for the compiler. After a second size, any size will do.

    Raises:
        InputError: there is no such device, or no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    where = choose_device(device)
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise InputError(
            "engine compile needs a C++ compiler, found none: install g++, or take engine torch"
        ) from error
    network = fuse(model, target="cuda" if where.type == "cuda" else "compile")
    network.compile()
    engine = TorchEngine(network, where)
    engine.name = f"torch.compile {torch.__version__} on {where}"
    return engine


def plain_engine(model: ResNeSt) -> TorchEngine:
    """A copy of `model` on the CPU, neither fused nor compiled: what all others must equal."""
    return TorchEngine(copy.deepcopy(model).eval(), torch.device("cpu"))


class Exportable(nn.Module):
    """A network that takes "images", with float32 at both ends whatever it computes in."""

    def __init__(self, network: nn.Module, *, half: bool = False) -> None:
        super().__init__()
        # Not in channels_last: torch.export would write the strides down, as operations.
        self.network = network.to(memory_format=torch.contiguous_format)
        if half:
            self.network.half()
        self.half_precision = half

    def forward(self, images: Tensor) -> Tensor:
        if self.half_precision:
            half_logits: Tensor = self.network(images.half())
            return half_logits.float()
        logits: Tensor = self.network(images)
        return logits


def traced(network: Exportable, *, size: int, dynamic_size: bool = False) -> ExportedProgram:
    """The network as a program of `torch.export`, for batches of any size.

    Args:
        size: of its images, in pixels.
        dynamic_size: it takes images of other heights and widths too, of more than 32 pixels.
    """
    # A length of one counts as fixed: there must be more images, and in the last stage more pixels.
    side = max(size, 64) if dynamic_size else size
    images = torch.zeros(2, 3, side, side)
    free = (0, 2, 3) if dynamic_size else (0,)
    shapes = {"images": dict.fromkeys(free, Dim.DYNAMIC)}
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=shapes)


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


def _full_precision(device: torch.device) -> AbstractContextManager[None]:
    """No TF32, cuDNN's default: with it, results would depend on the size of the batch."""
    if device.type != "cuda":
        return nullcontext()
    cudnn = torch.backends.cudnn
    # All that is not named would be set to a default, against what a person chose.
    return cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        benchmark_limit=cudnn.benchmark_limit,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )
