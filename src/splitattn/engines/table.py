"""The table of engines, one row each. Everything that lists engines reads it.

To add an engine, write a module with the functions of `EngineModule`, or of `FileEngineModule` if
it has files of its own, and add a row here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

from splitattn.errors import InputError, check_path, nearest
from splitattn.libraries import installed, require

if TYPE_CHECKING:
    from splitattn.engines.engine import Engine, FileSettings
    from splitattn.graph.folding import Form
    from splitattn.graph.onnx_model import Network
    from splitattn.weights.metadata import ModelMetadata

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


class EngineModule(Protocol):
    """Functions that the module of every engine has."""

    def load(
        self, network: "Network", *, size: int | None, device: str, quick_start: bool = False
    ) -> "Engine":
        """Load `network` into this engine.

        Args:
            size: height and width of the images, in pixels; None for any.
            device: "auto" or a device by name.
            quick_start: prefer a short load time to speed, for a few images. Engines without such a
                choice ignore it.

        Raises:
            InputError: the engine does not run on the device.
        """
        ...


class FileEngineModule(EngineModule, Protocol):
    """Functions that the module of an engine with a file format also has."""

    def check_network(self, network: "Network", settings: "FileSettings") -> None:
        """Raise `InputError` if a written file could not be opened. Takes little time."""
        ...

    def write(self, network: "Network", path: Path, settings: "FileSettings") -> None:
        """Write `network` to `path` in the engine's format."""
        ...

    def read_metadata(self, path: Path) -> "ModelMetadata":
        """The metadata inside a file; raises the errors of `open_file`."""
        ...

    def open_file(
        self, path: Path, *, device: str, trusted: bool = False
    ) -> "tuple[Engine, ModelMetadata]":
        """Open a file that `write` wrote; return the engine and the file's metadata.

        Args:
            trusted: this process itself wrote the file.

        Raises:
            InputError: the engine does not run on the device.
            WeightsError: the file has something that `write` does not write, or the format could
                run code and the file is not trusted.
            Exception: the file is damaged.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EngineRow:
    """One engine.

    Attributes:
        name: its name on the command line.
        module: the module that implements it; imported on first use.
        libraries: libraries that it needs.
        form: the form of the 3x3 convolution that is fastest on a CPU, by the measurements in
            benchmarks/.
        cuda_form: the same on CUDA; expected, not measured.
        best_on: kinds of device on which "auto" takes it; earlier rows are preferred.
        format: the name of its files in `export --format`; None if it has no files.
        suffix: the extension of these files.
        beside: the extension of a second file that belongs to each of them; None if there is none.
        precisions: of these files, each with the additional libraries that writing it needs.
        opsets: versions of the ONNX operators that these files may have.
        any_output: whether it runs detectors and segmenters, and its files may output class maps.
    """

    name: str
    module: str
    libraries: tuple[str, ...]
    form: "Form" = "branches"
    cuda_form: "Form" = "grouped"
    best_on: tuple[str, ...] = ()
    format: str | None = None
    suffix: str | None = None
    beside: str | None = None
    precisions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    opsets: Sequence[int] = ()
    any_output: bool = False

    @property
    def is_installed(self) -> bool:
        """Whether all its libraries are installed."""
        return installed(*self.libraries)

    def form_on(self, device: str) -> "Form":
        """The form that the engine runs fastest on "auto" or a device by name."""
        on_cuda = "cuda" in self.best_on and device_kind(device) == "cuda"
        return self.cuda_form if on_cuda or device.startswith("cuda") else self.form

    def load_module(self) -> EngineModule:
        """The engine's module.

        Raises:
            InputError: a library is missing.
        """
        require(f"engine {self.name}", *self.libraries)
        return cast("EngineModule", import_module(self.module))

    def load_file_module(self) -> FileEngineModule:
        """The module of an engine that has a file format.

        Raises:
            InputError: a library is missing.
        """
        return cast("FileEngineModule", self.load_module())


ENGINES: tuple[EngineRow, ...] = (
    EngineRow(
        name="openvino",
        module="splitattn.engines.open_vino",
        libraries=("openvino",),
        best_on=("cpu",),
        format="openvino",
        suffix=".xml",
        beside=".bin",
        precisions={"fp32": (), "fp16": (), "int8": ("nncf",)},
        any_output=True,
    ),
    EngineRow(
        name="onnxruntime",
        module="splitattn.engines.onnx_runtime",
        libraries=("onnxruntime", "onnx"),
        best_on=("cpu",),
        format="onnx",
        suffix=".onnx",
        precisions={"fp32": (), "fp16": (), "int8": ()},
        opsets=range(11, 21),
        any_output=True,
    ),
    EngineRow(
        name="torch",
        module="splitattn.engines.pytorch",
        libraries=("torch",),
        best_on=("cuda", "cpu"),
        format="torch_export",
        suffix=".pt2",
        precisions={"fp32": (), "fp16": ()},
    ),
    EngineRow(name="compile", module="splitattn.engines.torch_compile", libraries=("torch",)),
)


def engine_names() -> list[str]:
    """The values of `--engine`."""
    return ["auto", *(row.name for row in ENGINES)]


def find_engine(name: str) -> EngineRow:
    """The engine called `name`.

    Raises:
        InputError: there is none.
    """
    for row in ENGINES:
        if row.name == name:
            return row
    names = engine_names()
    raise InputError(
        f"engine must be one of {', '.join(names)}, got {name!r:.60}{nearest(str(name), names)}"
    )


_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
_DEVICE = re.compile(rf"auto|({'|'.join(_DEVICES[1:])})(:[0-9]{{1,3}})?")


def check_device(device: str) -> None:
    """Raise unless `device` has the form of a device's name; it need not exist.

    Raises:
        InputError: it has another form.
    """
    if not isinstance(device, str):  # PyTorch also takes torch.device and numbers of GPUs
        meant = f"cuda:{device}" if isinstance(device, int) else str(device)
        raise InputError(f"device must be a name, got {device!r:.60}; did you mean {meant!r}?")
    if _DEVICE.fullmatch(device):
        return
    if device.isdecimal():
        hint = f"; did you mean 'cuda:{device}'?"
    elif _DEVICE.fullmatch(device.lower()):
        hint = f"; did you mean {device.lower()!r}?"
    else:
        kind = device.partition(":")[0].lower()
        hint = "; did you mean 'cuda'?" if kind in ("gpu", "nvidia") else ""
    raise InputError(
        f"device {device!r:.60} cannot be used: it must be {', '.join(_DEVICES)} or cuda:NUMBER"
        f"{hint}"
    )


def device_kind(device: str) -> str:
    """The kind of a device; "auto" is "cuda" if PyTorch has CUDA, otherwise "cpu"."""
    if device != "auto":
        return device.partition(":")[0]
    return "cuda" if installed("torch") and _cuda_devices() and _torch_sees_cuda() else "cpu"


def fastest_engine(device: str) -> EngineRow:
    """The fastest engine that is installed for "auto" or a device by name."""
    kind = device_kind(device)
    for row in ENGINES:
        if kind in row.best_on and row.is_installed:
            return row
    return find_engine("torch")  # runs on devices that are not in this table


def file_engine(path: str | Path) -> EngineRow | None:
    """The engine whose files have the extension of `path`, or None.

    Raises:
        InputError: `path` is neither a name nor a path.
    """
    check_path("weights", path)
    suffix = Path(path).suffix
    return next((row for row in ENGINES if row.suffix and row.suffix == suffix), None)


def formats() -> dict[str, EngineRow]:
    """The engines with a file format, by the values of `export --format`."""
    return {row.format: row for row in ENGINES if row.format}


def check_any_output(what: str, row: EngineRow) -> None:
    """Raise unless an engine's files can hold `what`, whose outputs are more than logits.

    Raises:
        InputError: they cannot.
    """
    if not row.any_output:
        able = " or ".join(name for name, other in formats().items() if other.any_output)
        raise InputError(f"{what} can be exported to {able}, got {row.format}")


@cache
def _cuda_devices() -> int:
    """The number of GPUs that the CUDA driver reports; much faster than importing torch."""
    from ctypes import CDLL, byref, c_int

    count = c_int(0)
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = CDLL(library)
            if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(byref(count)) == 0:
                return count.value
        except (OSError, AttributeError):
            continue
    return 0


def _torch_sees_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
