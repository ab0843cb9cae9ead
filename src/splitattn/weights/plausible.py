"""Checks a file of which only a part of the hash is known, by running its network.

A file that matches 32 bits of a hash can be made in minutes. This check does not prevent that, but
it finds files of another network, and networks whose outputs are not finite or always the same.
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

# Image size in pixels: enough to tell the photographs apart, and fast in NumPy.
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
    with np.errstate(all="ignore"):  # outputs that are not finite are refused below
        network = Reference(architecture(model), checkpoint.tensors)
        logits = network((np.stack(photographs) / 255 - mean) / std)
    if not np.isfinite(logits).all():
        raise WeightsError(f"{path} must give finite outputs, got NaN or infinity: delete it")
    labels = logits.argmax(axis=1).tolist()
    if len(set(labels)) == 1:
        raise WeightsError(
            f"{path} must tell photographs apart, it labels all of them {labels[0]}: delete it"
        )
