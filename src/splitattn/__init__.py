"""ResNeSt (Split-Attention Networks) for people who ship vision models.

Importing this package costs next to nothing: a public name loads what it needs on first use.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitattn.architectures import Architecture, list_models
    from splitattn.bulk.bulk import label_bulk
    from splitattn.bulk.summary import BulkReport
    from splitattn.classifier import Classifier, Prediction
    from splitattn.create import create_backbone, create_model
    from splitattn.dense.detector import DetectedObject, Detector
    from splitattn.dense.detectors import create_detector
    from splitattn.dense.segmenter import ClassShare, SegmentedImage, Segmenter
    from splitattn.dense.segmenters import create_segmenter
    from splitattn.errors import DataError, ImageError, InputError, WeightsError
    from splitattn.explanation.explanation import Explanation
    from splitattn.explanation.shares import BlockShares
    from splitattn.exporting import ExportReport
    from splitattn.launch import TrainingResult, find_learning_rate, train
    from splitattn.nn.attention_maps import attention_shares
    from splitattn.nn.backbone import Backbone
    from splitattn.nn.batch_norm import synchronize
    from splitattn.nn.fusion import fuse
    from splitattn.nn.parity import parity
    from splitattn.nn.resnest import ResNeSt
    from splitattn.nn.split_attention import SplitAttention2d
    from splitattn.preprocessing import Preprocessing
    from splitattn.pretrained import from_pretrained, push_to_hub, save_pretrained
    from splitattn.transforms import transform
    from splitattn.weights.catalogue import list_weights
    from splitattn.weights.metadata import ModelMetadata, read_metadata
    from splitattn.workflows import NetworkEvaluation, evaluate, export

    __version__: str

_HOMES = {
    "Architecture": "architectures",
    "Backbone": "nn.backbone",
    "BlockShares": "explanation.shares",
    "BulkReport": "bulk.summary",
    "ClassShare": "dense.segmenter",
    "Classifier": "classifier",
    "DataError": "errors",
    "DetectedObject": "dense.detector",
    "Detector": "dense.detector",
    "Explanation": "explanation.explanation",
    "ExportReport": "exporting",
    "ImageError": "errors",
    "InputError": "errors",
    "ModelMetadata": "weights.metadata",
    "NetworkEvaluation": "workflows",
    "Prediction": "classifier",
    "Preprocessing": "preprocessing",
    "ResNeSt": "nn.resnest",
    "SegmentedImage": "dense.segmenter",
    "Segmenter": "dense.segmenter",
    "SplitAttention2d": "nn.split_attention",
    "TrainingResult": "launch",
    "WeightsError": "errors",
    "attention_shares": "nn.attention_maps",
    "create_backbone": "create",
    "create_detector": "dense.detectors",
    "create_model": "create",
    "create_segmenter": "dense.segmenters",
    "evaluate": "workflows",
    "export": "workflows",
    "find_learning_rate": "launch",
    "from_pretrained": "pretrained",
    "fuse": "nn.fusion",
    "label_bulk": "bulk.bulk",
    "list_models": "architectures",
    "list_weights": "weights.catalogue",
    "parity": "nn.parity",
    "push_to_hub": "pretrained",
    "read_metadata": "weights.metadata",
    "save_pretrained": "pretrained",
    "synchronize": "nn.batch_norm",
    "transform": "transforms",
    "train": "launch",
}

__all__ = [
    "Architecture",
    "Backbone",
    "BlockShares",
    "BulkReport",
    "ClassShare",
    "Classifier",
    "DataError",
    "DetectedObject",
    "Detector",
    "Explanation",
    "ExportReport",
    "ImageError",
    "InputError",
    "ModelMetadata",
    "NetworkEvaluation",
    "Prediction",
    "Preprocessing",
    "ResNeSt",
    "SegmentedImage",
    "Segmenter",
    "SplitAttention2d",
    "TrainingResult",
    "WeightsError",
    "attention_shares",
    "create_backbone",
    "create_detector",
    "create_model",
    "create_segmenter",
    "evaluate",
    "export",
    "find_learning_rate",
    "from_pretrained",
    "fuse",
    "label_bulk",
    "list_models",
    "list_weights",
    "parity",
    "push_to_hub",
    "read_metadata",
    "save_pretrained",
    "synchronize",
    "train",
    "transform",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("splitattn")
    elif name in _HOMES:
        if name in ("train", "find_learning_rate"):
            import_module("splitattn.processes").limit_openmp_spin()  # before PyTorch is imported
        try:
            value = getattr(import_module(f"splitattn.{_HOMES[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            import_module("splitattn.libraries").require(f"splitattn.{name}", "torch")
            raise
    else:
        raise AttributeError(f"module 'splitattn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _before_fork() -> None:
    if "torch" in sys.modules:
        import_module("splitattn.processes").end_openmp_threads()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before_fork)
