"""Checks whether a file of which only a part of the hash is known can be what it is called.

Thirty-two bits of a hash can be forged in minutes. This check makes no forgery impossible, but it
finds files of another network, and networks that answer nothing or always the same.
"""

from pathlib import Path

import numpy as np

from splitattn.errors import WeightsError
from splitattn.weights.checkpoint import check_fits, read_checkpoint
from splitattn.weights.matching import HEAD

_PROBES = 64


def check_plausible(path: Path, model: str, num_classes: int) -> None:
    """Raise unless the file can hold trained weights of `model`.

    Raises:
        WeightsError: names or shapes differ, numbers are not finite, a variance is negative, or the
            classifier gives all of some random features the same label.
    """
    checkpoint = read_checkpoint(path)
    fit = check_fits(checkpoint, model)
    if fit.num_classes != num_classes:
        raise WeightsError(f"{path} must have {num_classes} classes, it has {fit.num_classes}")
    for key, value in checkpoint.tensors.items():
        if not np.isfinite(value).all() or (key.endswith("running_var") and (value < 0).any()):
            raise WeightsError(f"{path} has numbers in {key} that no training leaves: delete it")
    weight, bias = (checkpoint.tensors[key].astype(np.float64) for key in HEAD)
    # Pooled features are not negative, few are large, and their mean is about a half.
    features = np.random.default_rng(0).gamma(0.25, 2.0, (_PROBES, weight.shape[1]))
    labels = (features @ weight.T + bias).argmax(axis=1)
    if len(set(labels.tolist())) == 1:
        raise WeightsError(
            f"{path} gives everything the label {labels[0]}, as no trained network does: delete it"
        )
