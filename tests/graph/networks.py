"""Networks and images that the tests of graphs share."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from splitattn.architectures import ARCHITECTURES, Architecture
from splitattn.nn.resnest import ResNeSt
from tests.nn.networks import images, randomize_norms, small

Arrays = dict[str, NDArray[Any]]


def narrow(name: str) -> Architecture:
    """A small form of a variant: all its kinds of blocks, as narrow as its groups allow."""
    row = ARCHITECTURES[name]
    planes = 16 if row.bottleneck_width == 64 else 32
    return replace(row, layers=(1, 2, 1, 1), planes=planes, stem_width=8)


# Architectures and arguments of the network; the keys say what is special about them.
SETTINGS: dict[str, tuple[Architecture, dict[str, Any]]] = {
    "output stride 16": (small(), {"output_stride": 16}),
    "output stride 8": (small(), {"output_stride": 8}),
    "timm's dilation": (small(), {"output_stride": 8, "dilation": "timm"}),
    "timm's dilation, strided shortcut": (
        replace(small(), avg_down=False),
        {"output_stride": 16, "dilation": "timm"},
    ),
    "dilation, avd first": (replace(small(), avd_first=True), {"output_stride": 8}),
    "six channels, radix 4, two groups, dilation": (
        small(4, 2),
        {"in_chans": 6, "output_stride": 16},
    ),
    "one channel": (small(), {"in_chans": 1}),
    "pooled features": (small(), {"num_classes": 0}),
    "DropBlock": (small(), {"drop_block": 0.1}),
    "plain stem": (replace(small(), deep_stem=False), {}),
    "strided shortcut": (replace(small(), avg_down=False), {}),
    "no avd": (replace(small(), avd=False), {}),
    "radix 0, four groups, strided shortcut": (replace(small(0, 4), avg_down=False), {}),
    # The first stage keeps the number of channels, so its shortcut has no convolution.
    "identity shortcut": (replace(small(), stem_width=32), {}),
}


def trained(architecture: Architecture, **arguments: Any) -> ResNeSt:
    """A network in evaluation mode with random batch norms, as after training."""
    model = ResNeSt(architecture, **{"num_classes": 10, **arguments}).eval()
    randomize_norms(model)
    return model


def arrays_of(model: nn.Module) -> Arrays:
    return {key: value.numpy() for key, value in model.state_dict().items()}


def batch_for(model: nn.Module, batch: int, height: int, width: int) -> NDArray[np.float32]:
    channels = next(p for p in model.parameters() if p.ndim == 4).shape[1]
    return images(batch, height, width, channels).numpy()


@torch.inference_mode()
def outputs_of(model: nn.Module, batch: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """The outputs of the network in float64, as a list."""
    given = model.double()(torch.from_numpy(batch).double())
    model.float()
    return [x.numpy() for x in (given if isinstance(given, list) else [given])]


def relative_difference(got: NDArray[Any], expected: NDArray[Any]) -> float:
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())
