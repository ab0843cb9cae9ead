"""Exported files: opened with suspicion, and run by the engine that they were exported for."""

from dataclasses import dataclass
from pathlib import Path

import torch

from splitattn.engines.engine import Engine, EngineRuntime
from splitattn.errors import InputError, WeightsError
from splitattn.libraries import require
from splitattn.weights.metadata import ModelMetadata, unreadable
from splitattn.weights.resolve import EXPORTED_SUFFIXES

# By the end of a file's name, since neither format has a mark of its own.
_ENGINES = {".onnx": "onnxruntime", ".xml": "openvino"}
_PROGRAM = ".pt2"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A network from a file that `export` wrote, ready to run, and what the file says about it."""

    runtime: EngineRuntime
    metadata: ModelMetadata


def is_exported(weights: str | Path) -> bool:
    """Whether `weights` is called like an exported file, rather than a tag or a checkpoint."""
    return Path(weights).suffix in EXPORTED_SUFFIXES


def load_exported(path: str | Path, *, device: str = "auto", engine: str = "auto") -> Exported:
    """Open an exported file and try it on two blank images.

    Args:
        path: a `.onnx` file, or an `.xml` file with its `.bin` beside it. `.pt2` files are refused:
            `torch.export.load` unpickles and evaluates what it finds in them, so that a hostile one
            could run code.
        device: "auto" or one that the file's engine runs on.
        engine: "auto" or the file's own.

    Raises:
        InputError: the engine is another one, is not installed, or does not run on the device.
        WeightsError: the file cannot be read, is damaged, or was not written by `export`.
    """
    path = Path(path)
    if path.suffix == _PROGRAM:
        raise WeightsError(
            f"{path} could run code when it is loaded, as torch.export archives can: load it "
            "yourself with torch.export.load if you trust it, or export to ONNX"
        )
    own = _ENGINES[path.suffix]
    if engine not in ("auto", own):
        raise InputError(
            f"{path} runs in engine {own}, got {engine!r}: leave it at auto, or name the weights "
            "that it was exported from"
        )
    require(f"{path}", own)
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        raise unreadable(path, error) from error
    # OpenVINO would take anything else for a network of some other library, and try them in turn.
    if path.suffix == ".xml" and not (start.startswith(b"<?xml") and b"<net " in start):
        raise WeightsError(f"{path} is damaged or no OpenVINO network: export it again")
    opened, text = _open(path, device)
    metadata = _metadata(path, text)
    runtime = EngineRuntime(opened, metadata.preprocessing)
    _try(path, runtime, metadata)
    return Exported(runtime=runtime, metadata=metadata)


def _open(path: Path, device: str) -> tuple[Engine, str | None]:
    """The file's engine and what the file says about itself."""
    opened: Engine
    try:
        if path.suffix == ".onnx":
            from splitattn.engines.onnx_runtime import OnnxEngine

            opened = OnnxEngine(path, device=device)
            return opened, opened.metadata
        from splitattn.engines.open_vino import OpenVinoEngine

        opened = OpenVinoEngine(path, device=device)
        return opened, opened.metadata
    except InputError:
        raise
    except Exception as error:  # damaged bytes make the libraries fail in any way there is
        missing = path.suffix == ".xml" and not path.with_suffix(".bin").exists()
        fault = f"needs {path.stem}.bin beside it" if missing else "is damaged"
        raise WeightsError(f"{path} {fault}: export it again") from error


def _metadata(path: Path, text: str | None) -> ModelMetadata:
    if text is None:
        raise WeightsError(
            f"{path} does not say what its outputs mean: it must be written by splitattn export"
        )
    try:
        return ModelMetadata.from_json(text)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}; export it again") from error


def _try(path: Path, runtime: EngineRuntime, metadata: ModelMetadata) -> None:
    """Raise unless the network takes two images and knows each class by name."""
    size = metadata.preprocessing.size
    try:
        probabilities = runtime.run(torch.zeros(2, 3, size, size, dtype=torch.uint8))
    except Exception as error:  # as above
        raise WeightsError(
            f"{path} does not take images of {size} pixels, as it says: export it again"
        ) from error
    if probabilities.shape != (2, len(metadata.classes)):
        raise WeightsError(
            f"{path} must name each of its outputs, it names {len(metadata.classes)} and gives "
            f"{tuple(probabilities.shape)} for two images: export it again"
        )
