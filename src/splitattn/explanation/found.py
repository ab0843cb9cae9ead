"""The result of every method."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitattn.explanation.shares import BlockShares

Map = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The map of a class, see `Explanation`; `logits` (classes,) are those of all classes.

    Attributes:
        least: lower limit of `Explanation.highest`.
    """

    method: str
    map: Map
    index: int
    logits: NDArray[np.float32]
    least: float = 1.0
    bias: float | None = None
    shares: tuple[BlockShares, ...] = ()
