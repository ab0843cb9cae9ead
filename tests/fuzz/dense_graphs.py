"""Exported detectors and segmenters, made without PyTorch."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from splitattn.architectures import Architecture
from splitattn.engines.engine import FileSettings
from splitattn.engines.table import find_engine
from splitattn.graph.detection import detector_shapes, fold_detector
from splitattn.graph.segmentation import fold_segmenter, segmenter_shapes
from splitattn.preprocessing import center_crop
from splitattn.weights.metadata import ModelMetadata

METADATA = ModelMetadata(
    model="resnest14", classes=("cat", "dog", "mug"), preprocessing=center_crop(32)
)
DENSE: dict[str, tuple[str, Any, Any]] = {
    "detection": ("fcos", detector_shapes, fold_detector),
    "segmentation": ("fpn", segmenter_shapes, fold_segmenter),
}


@cache
def dense_seed(engine: str, task: str) -> bytes:
    """The exported file or files of a small detector or segmenter, as one input."""
    row, (head, shapes, fold) = find_engine(engine), DENSE[task]
    shape = Architecture(layers=(1, 1, 1, 1), planes=4, stem_width=4)
    metadata = replace(
        METADATA,
        task=task,
        head={"name": head, "channels": 64, "short_side": 48, "long_side": 80},
    )
    random = np.random.default_rng(0)
    tensors = {
        key: random.uniform(0.05, 0.15, size).astype(np.float32)
        for key, size in shapes(shape, num_classes=3, channels=64).items()
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"net{row.suffix}"
        settings = FileSettings(metadata=metadata, dynamic_size=True)
        network = fold(shape, tensors, form=row.form)
        if task == "detection":
            network = replace(network, selects=True)
        row.load_file_module().write(network, path, settings)
        return b"".join(file.read_bytes() for file in (path, *beside(path)))


def beside(path: Path) -> list[Path]:
    """Paths of the other files of an exported network."""
    return [path.with_suffix(".bin")] if path.suffix == ".xml" else []
