"""Checks whether a file of which only a part of the hash is known can be what it is called.

Thirty-two bits of a hash can be forged in minutes. This check makes no forgery impossible, but it
finds files of another network, and networks that answer nothing or always the same.
"""

from pathlib import Path

import numpy as np

from splitattn.architectures import architecture
from splitattn.errors import WeightsError
from splitattn.graph.reference import Reference
from splitattn.images.preprocess import load_pixels
from splitattn.images.samples import sample_photographs
from splitattn.preprocessing import center_crop
from splitattn.weights.checkpoint import check_fits, read_checkpoint

# Enough to tell a cat from a rocket, and quick in NumPy.
_SIZE = 96


def check_plausible(path: Path, model: str, num_classes: int) -> None:
    """Raise unless the file can hold trained weights of `model`.

    Raises:
        WeightsError: names or shapes differ, numbers are not finite, a variance is negative, or the
            network gives photographs of five different things the same label.
    """
    checkpoint = read_checkpoint(path)
    fit = check_fits(checkpoint, model)
    if fit.num_classes != num_classes:
        raise WeightsError(f"{path} must have {num_classes} classes, it has {fit.num_classes}")
    preparation = center_crop(_SIZE)
    mean, std = (np.array(part)[:, None, None] for part in (preparation.mean, preparation.std))
    photographs = [load_pixels(photo, preparation) for photo in sample_photographs()]
    with np.errstate(all="ignore"):  # what overflows is refused below
        network = Reference(architecture(model), checkpoint.tensors)
        logits = network((np.stack(photographs) / 255 - mean) / std)
    if not np.isfinite(logits).all():
        raise WeightsError(f"{path} gives no finite numbers for photographs: delete it")
    labels = logits.argmax(axis=1).tolist()
    if len(set(labels)) == 1:
        raise WeightsError(
            f"{path} gives everything the label {labels[0]}, as no trained network does: delete it"
        )
