"""Entry points for `torch.hub`: every model, under its published name, with or without weights.

    torch.hub.load("OWNER/REPOSITORY", "resnest50", pretrained=True)
    torch.hub.load("path/to/a/clone", "resnest50", source="local", pretrained=True)

Weights are downloaded, verified, cached and mirrored as everywhere in splitattn (SPLITATTN_CACHE,
SPLITATTN_MIRROR, SPLITATTN_OFFLINE), and not by torch.hub.
"""

import sys as _sys
from collections.abc import Callable as _Callable
from importlib.util import find_spec as _find_spec
from pathlib import Path as _Path
from typing import Any as _Any
from typing import Literal as _Literal

dependencies = ["torch", "torchvision", "numpy", "safetensors", "filelock"]

# An installed splitattn is used as it is; a bare clone works too.
if _find_spec("splitattn") is None:
    _sys.path.append(str(_Path(__file__).resolve().parent / "src"))

from splitattn.architectures import ARCHITECTURES as _ARCHITECTURES  # noqa: E402


def _entry_point(name: str) -> _Callable[..., _Any]:
    def load(
        pretrained: bool = False,
        progress: bool = True,
        *,
        num_classes: int | None = None,
        new_classifier: bool = False,
        in_chans: int = 3,
        output_stride: int = 32,
        dilation: _Literal["official", "timm"] = "official",
        drop_path: float = 0.0,
        drop_block: float = 0.0,
        dropout: float | None = None,
    ) -> _Any:
        from splitattn.create import create_model
        from splitattn.weights.cache import fetch
        from splitattn.weights.catalogue import find_entry

        weights = None
        if pretrained:
            entry = find_entry(name)
            fetch(entry, progress=_bar() if progress else None)
            weights = entry.tag
        return create_model(
            name,
            weights=weights,
            num_classes=num_classes,
            new_classifier=new_classifier,
            in_chans=in_chans,
            output_stride=output_stride,
            dilation=dilation,
            drop_path=drop_path,
            drop_block=drop_block,
            dropout=dropout,
        )

    layers = ", ".join(map(str, _ARCHITECTURES[name].layers))
    load.__name__ = load.__qualname__ = name
    load.__doc__ = f"""{name}, a ResNeSt with {layers} blocks in its four stages, in training mode.

    Args:
        pretrained: load the model's default weights, `splitattn.list_weights({name!r})[0]`.
        progress: show a bar on a terminal while they are downloaded.
        num_classes: width of the classifier; None takes that of the weights, or else 1000. Another
            width than that of the weights gets a new classifier, initialized at random.
        new_classifier: initialize the classifier at random even if the weights have one of that
            size.
        in_chans: channels of the input; another number than 3 adapts the first convolution.
        output_stride: 32, or 16 or 8 for a network with dilated stages.
        dilation, drop_path, drop_block, dropout: see `splitattn.ResNeSt`.

    Images are prepared as the weights' `preprocessing` says; `splitattn.Classifier` does it.
    """
    return load


def _bar() -> _Callable[[int, int | None], None]:
    """A bar, where stderr is a terminal, from the first bytes on."""
    from torch.hub import tqdm

    bars: list[_Any] = []

    def follow(received: int, total: int | None) -> None:
        if not bars:
            bars.append(tqdm(total=total, disable=None, unit="B", unit_scale=True))
        bars[0].update(received - bars[0].n)
        if received == total:
            bars[0].close()

    return follow


globals().update({name: _entry_point(name) for name in _ARCHITECTURES})
