"""PyTorch as an engine."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from splitattn.data.normalization import normalize
from splitattn.engines.engine import Array, Engine, FileSettings, Images, Logits
from splitattn.engines.table import check_device
from splitattn.errors import InputError, WeightsError
from splitattn.files import writing_native
from splitattn.images.preprocess import Pixels
from splitattn.nn.fusion import FusedResNeSt
from splitattn.preprocessing import Preprocessing
from splitattn.weights.metadata import METADATA_KEY, ModelMetadata

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from splitattn.graph.folding import FoldedNetwork

# Stride of the last stage, in pixels of the image.
_REDUCTION = 32


class TorchEngine(Engine):
    """Runs a PyTorch module in channels_last on one device.

    Args:
        network: outputs logits; in evaluation mode. It is moved to the device in place.
        device: the device to run on.
        name: the engine's name in reports, without version and device.
        batch, size: the only ones that the module takes, see `Engine`; None for any.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        *,
        name: str = "torch",
        batch: int | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__(f"{name} {torch.__version__} on {device}", batch=batch, size=size)
        self.device = device
        self._network = network.to(device).to(memory_format=torch.channels_last)

    def run(self, pixels_BCHW: Pixels, preprocessing: Preprocessing) -> Logits:
        def infer(pixels: Pixels) -> Logits:
            # Copy uint8 to the device: a quarter of the size of float32.
            on_device = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)
            return self._logits(normalize(on_device, preprocessing))

        return self._in_batches(infer, pixels_BCHW)

    def _infer(self, images_BCHW: Images) -> Logits:
        images = torch.from_numpy(np.ascontiguousarray(images_BCHW))
        return self._logits(images.to(self.device))

    def outputs(self, images_BCHW: Images) -> tuple[Array, ...]:
        if not isinstance(self._network, FusedResNeSt) or not self._network.output_names:
            return super().outputs(images_BCHW)
        images = torch.from_numpy(np.ascontiguousarray(images_BCHW)).to(self.device)
        with torch.inference_mode(), full_precision(self.device):
            found = self._network.outputs(images.contiguous(memory_format=torch.channels_last))
        return tuple(output.float().cpu().numpy() for output in found)

    @torch.inference_mode()
    def _logits(self, images: Tensor) -> Logits:
        images = images.contiguous(memory_format=torch.channels_last)
        with full_precision(self.device):
            logits: Tensor = self._network(images)
        out: Logits = logits.float().cpu().numpy()
        return out


def load(
    network: "FoldedNetwork", *, size: int | None, device: str, quick_start: bool = False
) -> TorchEngine:
    """See `table.EngineModule`. Images may have any size."""
    del size, quick_start
    return TorchEngine(FusedResNeSt(network), choose_device(device))


def check_network(_: "FoldedNetwork", settings: FileSettings) -> None:
    """See `table.FileEngineModule`."""
    size = settings.metadata.preprocessing.size
    if settings.dynamic_size and size <= _REDUCTION:
        raise InputError(
            f"--dynamic-size with torch_export needs images of more than {_REDUCTION} pixels, got "
            f"{size}; leave it out, or export to ONNX"
        )


def write(network: "FoldedNetwork", path: Path, settings: FileSettings) -> None:
    """See `table.FileEngineModule`. The file is an archive of `torch.export`."""
    module = _Exportable(FusedResNeSt(network), half=settings.precision == "fp16")
    program = traced(
        module,
        settings.metadata.preprocessing.size,
        channels=network.in_chans,
        batch=settings.batch,
        dynamic_size=settings.dynamic_size,
    )
    extra = {f"{METADATA_KEY}.json": settings.metadata.to_json()}
    with writing_native(path) as file:
        torch.export.save(program, file, extra_files=extra)


def read_metadata(path: Path) -> ModelMetadata:
    """See `table.FileEngineModule`; always raises, as `open_file` does for untrusted files."""
    return open_file(path, device="cpu")[1]


def open_file(
    path: Path, *, device: str, trusted: bool = False
) -> tuple[TorchEngine, ModelMetadata]:
    """See `table.FileEngineModule`.

    Raises:
        WeightsError: the file is not trusted. `torch.export.load` unpickles, so a hostile file
            could run code.
    """
    if not trusted:
        raise WeightsError(
            f"{path} could run code when it is loaded, as every torch.export archive can: load it "
            "yourself with torch.export.load if you trust it, or export to ONNX"
        )
    extra = {f"{METADATA_KEY}.json": ""}
    with path.open("rb") as file:  # as a name, only UTF-8 would work
        program = torch.export.load(file, extra_files=extra)
    (images,) = (node for node in program.graph.nodes if node.target == "images")
    shape = images.meta["val"].shape
    batch, _, size, _ = (side if isinstance(side, int) else None for side in shape)
    engine = TorchEngine(program.module(), choose_device(device), batch=batch, size=size)
    return engine, ModelMetadata.from_json(extra[f"{METADATA_KEY}.json"])


def traced(
    module: nn.Module,
    size: int,
    *,
    channels: int = 3,
    batch: int | None = None,
    dynamic_size: bool = False,
) -> "ExportedProgram":
    """Export `module` with `torch.export`; the program's input is "images".

    Args:
        size: height and width of the images, in pixels.
        channels: of the images.
        batch: the only batch size; None for any.
        dynamic_size: accept images of any height and width above 32 pixels.
    """
    from torch.export import Dim, export

    # torch.export takes a length of one as fixed, so a dynamic batch is traced with two images and
    # a dynamic size with last maps of two places.
    side = max(size, 2 * _REDUCTION) if dynamic_size else size
    images = torch.zeros(batch or 2, channels, side, side)
    free = [*((0,) if batch is None else ()), *((2, 3) if dynamic_size else ())]
    shapes = {"images": dict.fromkeys(free, Dim.DYNAMIC)}
    with torch.no_grad():
        return export(module, (images,), dynamic_shapes=shapes)


def choose_device(name: str) -> torch.device:
    """The device of a name: "auto" is CUDA if available, otherwise the CPU; or PyTorch's names.

    Raises:
        InputError: the device does not exist or cannot be used.
    """
    check_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    try:
        torch.empty(0, device=device)
    except NotImplementedError as error:  # its message is only about missing operators
        raise _unusable(name, "this PyTorch is built without it") from error
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise _unusable(name, reason) from error
    return device


def _unusable(name: str, reason: str) -> InputError:
    devices = ["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    usable = ", ".join(devices)
    return InputError(f"device {name!r} cannot be used: {reason}; here there are {usable}")


class _Exportable(nn.Module):
    """Gives a network an input named "images" and float32 input and output in any precision."""

    def __init__(self, network: nn.Module, *, half: bool) -> None:
        super().__init__()
        # Contiguous: with channels_last, torch.export would record the strides as operations.
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


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """A context without TF32 in cuDNN: with it, results would depend on the batch size."""
    if device.type != "cuda":
        return nullcontext()
    cudnn = torch.backends.cudnn
    # `flags` would reset settings that are not passed to their defaults.
    return cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        benchmark_limit=cudnn.benchmark_limit,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )
