"""A small network that is sure of itself, and photographs, for tests of all engines."""

from functools import cache

import torch
from torch import Tensor, nn

from splitattn.images.decode import decode
from splitattn.images.preprocess import preprocess
from splitattn.images.samples import sample_photographs
from splitattn.nn.resnest import ResNeSt
from splitattn.preprocessing import Preprocessing
from splitattn.weights.metadata import ModelMetadata
from tests.nn.networks import randomize_norms, small

CLASSES = ("tabby", 'say "cheese"', "café", "a <b> & c\n", "mug", "sock")
PREPROCESSING = Preprocessing(
    size=40, crop_fraction=0.9, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)
)
METADATA = ModelMetadata(
    model="resnest14",
    classes=CLASSES,
    preprocessing=PREPROCESSING,
    recipe={"epochs": 3},
    metrics={"top1": 12.5},
)


@cache
def network(
    radix: int = 2,
    cardinality: int = 1,
    seed: int = 0,
    layers: tuple[int, int, int, int] = (1, 1, 1, 1),
) -> ResNeSt:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNeSt(small(radix, cardinality, layers=layers), num_classes=len(CLASSES)).eval()
        randomize_norms(model)
        nn.init.normal_(model.fc.weight, std=0.5)
    return model


@cache
def photographs() -> Tensor:
    """uint8 (5, 3, 40, 40)."""
    return torch.stack([preprocess(decode(path), PREPROCESSING) for path in sample_photographs()])
