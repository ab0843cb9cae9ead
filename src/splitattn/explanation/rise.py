"""RISE (arXiv 1806.07421): a map from random masks, for any network that gives logits."""

from collections.abc import Callable, Iterator
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.engines.engine import Array, Engine, Images
from splitattn.explanation.found import Found

# As in section 4 of the paper, with fewer masks: cells a side, the chance that one is seen.
CELLS, _CHANCE, _MASKS, _MASKS_AT_ONCE = 7, 0.5, 512, 32
_ERRORS = 4  # standard errors that tell a place from chance
_LEAST_PROBABILITY = 1e-6  # that a map of differences of probabilities can show

MEANING = f"how much a place adds to the probability if it is seen, by {_MASKS} random masks"


def rise(
    engine: Engine, images: Images, index: int | None, activate: Callable[[Array], Array]
) -> Found:
    """The map of a class: how much more probable it is if a place is seen.

    Args:
        images: a single one (1, C, H, W).
        index: of the label's class; None is the most probable.
        activate: turns logits into probabilities.
    """
    logits = engine.logits(images)[0]
    index = int(logits.argmax()) if index is None else index
    total, seen = np.zeros(images.shape[2:]), np.zeros(images.shape[2:])
    found: list[float] = []
    for masks in _masks(images.shape[2]):
        # What is not seen has the mean color, which is zero after normalization.
        probabilities = activate(engine.logits(images * masks[:, None]))[:, index]
        total += np.tensordot(probabilities, masks, 1)
        seen += masks.sum(0)
        found.extend(probabilities.tolist())
    return Found(
        method="rise",
        map=(total / seen - np.mean(found)).astype(np.float32),
        index=index,
        logits=logits,
        least=max(_ERRORS * float(np.std(found)) / len(found) ** 0.5, _LEAST_PROBABILITY),
    )


def _masks(size: int) -> Iterator[NDArray[np.float32]]:
    """Random masks (B, size, size) of soft cells, each shifted by a part of a cell."""
    rng = np.random.default_rng(0)
    cell = ceil(size / CELLS)
    cells, side = CELLS + 1, (CELLS + 1) * cell
    for _ in range(0, _MASKS, _MASKS_AT_ONCE):
        masks = np.empty((_MASKS_AT_ONCE, size, size), np.float32)
        for mask in masks:
            hard = Image.fromarray((rng.random((cells, cells)) < _CHANCE).astype(np.float32))
            soft = np.asarray(hard.resize((side, side), Image.Resampling.BILINEAR))
            top, left = rng.integers(0, cell, 2)
            mask[:] = soft[top : top + size, left : left + size]
        yield masks
