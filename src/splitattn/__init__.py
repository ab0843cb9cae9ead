"""ResNeSt (Split-Attention Networks) for people who ship vision models.

Importing this package costs next to nothing: a public name loads what it needs on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitattn.architectures import Architecture
    from splitattn.classifier import Classifier, Prediction
    from splitattn.create import create_model, list_models, list_weights
    from splitattn.errors import DataError, ImageError, InputError, WeightsError
    from splitattn.nn.attention import attention_shares
    from splitattn.nn.fusion import fuse
    from splitattn.nn.parity import parity
    from splitattn.nn.resnest import ResNeSt
    from splitattn.nn.split_attention import SplitAttention2d

    __version__: str

_HOMES = {
    "Architecture": "architectures",
    "Classifier": "classifier",
    "DataError": "errors",
    "ImageError": "errors",
    "InputError": "errors",
    "Prediction": "classifier",
    "ResNeSt": "nn.resnest",
    "SplitAttention2d": "nn.split_attention",
    "WeightsError": "errors",
    "attention_shares": "nn.attention",
    "create_model": "create",
    "fuse": "nn.fusion",
    "list_models": "create",
    "list_weights": "create",
    "parity": "nn.parity",
}

__all__ = [
    "Architecture",
    "Classifier",
    "DataError",
    "ImageError",
    "InputError",
    "Prediction",
    "ResNeSt",
    "SplitAttention2d",
    "WeightsError",
    "attention_shares",
    "create_model",
    "fuse",
    "list_models",
    "list_weights",
    "parity",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("splitattn")
    elif name in _HOMES:
        value = getattr(import_module(f"splitattn.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'splitattn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
