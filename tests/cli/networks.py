"""A small untrained network as a weights file, for tests in which predictions do not matter."""

from functools import cache
from pathlib import Path

import torch
from torch import nn

from splitattn.create import create_model
from splitattn.nn.resnest import ResNeSt
from splitattn.preprocessing import Preprocessing
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata

CLASSES = ("tabby", 'say "cheese", please', "café", "rocket", "mug", "sock")
PREPROCESSING = Preprocessing(size=32, crop_fraction=0.5)


@cache
def network() -> ResNeSt:
    """The same weights each time; the batch norms are not the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("resnest14", num_classes=len(CLASSES)).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.normal_(module.running_mean, std=0.1)
        # Small weights, so that every class gets some probability.
        nn.init.normal_(model.fc.weight, std=0.01)
    return model


def write_weights(path: Path) -> Path:
    metadata = ModelMetadata(model="resnest14", classes=CLASSES, preprocessing=PREPROCESSING)
    write_checkpoint(path, network().state_dict(), metadata)
    return path
