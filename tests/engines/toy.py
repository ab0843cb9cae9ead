"""An engine that a test adds: one module, and one row in the table."""

from pathlib import Path

import numpy as np

from splitattn.engines.engine import Engine, FileSettings, Images, Logits
from splitattn.engines.onnx_runtime import OnnxEngine
from splitattn.graph.folding import FoldedNetwork
from splitattn.graph.onnx_model import to_onnx
from splitattn.weights.metadata import ModelMetadata


class ToyEngine(Engine):
    """Runs the network in ONNX Runtime, image by image."""

    def __init__(self, model: bytes) -> None:
        super().__init__("toy 1.0 on cpu")
        self._engine = OnnxEngine(model, device="cpu")

    def _infer(self, images_BCHW: Images) -> Logits:
        return np.concatenate([self._engine.logits(image[None]) for image in images_BCHW])


def load(network: FoldedNetwork, *, size: int, device: str, quick_start: bool = False) -> ToyEngine:
    del device, quick_start
    return ToyEngine(to_onnx(network, size=size).SerializeToString())


def check_network(network: FoldedNetwork, settings: FileSettings) -> None:
    del network, settings


def write(network: FoldedNetwork, path: Path, settings: FileSettings) -> None:
    model = to_onnx(network, size=settings.size).SerializeToString()
    path.write_bytes(settings.metadata.to_json().encode() + b"\0" + model)


def open_file(path: Path, *, device: str, trusted: bool = False) -> tuple[ToyEngine, ModelMetadata]:
    del device, trusted
    metadata, _, model = path.read_bytes().partition(b"\0")
    return ToyEngine(model), ModelMetadata.from_json(metadata.decode())


def read_metadata(path: Path) -> ModelMetadata:
    return ModelMetadata.from_json(path.read_bytes().partition(b"\0")[0].decode())
