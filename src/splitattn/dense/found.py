"""What a detector finds."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class FoundObjects:
    """What a detector finds in one image, best first.

    Attributes:
        boxes: (N, 4) left, top, right, bottom in pixels of the image.
        labels: (N,) index into the classes.
        scores: (N,) from 0 to 1.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def none(cls) -> "FoundObjects":
        """Nothing."""
        return cls(
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            scores=np.zeros(0, np.float32),
        )

    def above(self, score: float) -> "FoundObjects":
        """Those of `score` or more."""
        kept = self.scores >= score
        return FoundObjects(
            boxes=self.boxes[kept], labels=self.labels[kept], scores=self.scores[kept]
        )

    def scaled(self, across: float, down: float) -> "FoundObjects":
        """The same in an image that is wider and higher by these factors."""
        return replace(self, boxes=self.boxes * np.array([across, down] * 2, np.float32))
