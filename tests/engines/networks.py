"""A small network with confident predictions, and photographs, for tests of all engines."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from splitattn.engines.engine import softmax
from splitattn.images.decode import decode
from splitattn.images.preprocess import normalize, preprocess
from splitattn.images.samples import sample_photographs
from splitattn.nn.resnest import ResNeSt
from splitattn.opening import TrainedNetwork
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


def trained(model: ResNeSt | None = None, metadata: ModelMetadata = METADATA) -> TrainedNetwork:
    """`model`, by default `network()`, in the form in which a weights file is opened."""
    model = network() if model is None else model
    return TrainedNetwork(
        architecture=model.architecture,
        tensors={key: value.numpy() for key, value in model.state_dict().items()},
        metadata=metadata,
        weights="none",
    )


@cache
def photographs() -> NDArray[np.uint8]:
    """The package's photographs, preprocessed: uint8 (5, 3, 40, 40)."""
    return np.stack([preprocess(decode(path), PREPROCESSING) for path in sample_photographs()])


def plain_logits(
    pixels: NDArray[np.uint8] | None = None, model: ResNeSt | None = None
) -> NDArray[np.float32]:
    """Logits of the torch network, which is not fused or folded."""
    pixels = photographs() if pixels is None else pixels
    images = torch.from_numpy(normalize(pixels, PREPROCESSING))
    with torch.inference_mode():
        return (network() if model is None else model).eval()(images).numpy()


def plain_probabilities() -> NDArray[np.float32]:
    """Probabilities of the torch network on the photographs."""
    return softmax(plain_logits())
