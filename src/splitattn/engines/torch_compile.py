"""`torch.compile` as an engine."""

from typing import TYPE_CHECKING

from splitattn.engines.pytorch import TorchEngine, choose_device
from splitattn.errors import InputError
from splitattn.nn.fusion import FusedResNeSt

if TYPE_CHECKING:
    from splitattn.graph.folding import FoldedNetwork


def load(
    network: "FoldedNetwork", *, size: int | None, device: str, quick_start: bool = False
) -> TorchEngine:
    """See `table.EngineModule`. The first batch of a size waits for the compiler.

    Raises:
        InputError: there is no such device, or no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    del size, quick_start
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise InputError(
            "engine compile needs a C++ compiler, found none: install g++, or use --engine torch"
        ) from error
    module = FusedResNeSt(network)
    module.compile()
    return TorchEngine(module, choose_device(device), name="torch.compile")
