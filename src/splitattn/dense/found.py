"""What a detector finds."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from splitattn.dense.outlines import RunLengths
from splitattn.dense.pasting import pasted


@dataclass(frozen=True, kw_only=True)
class FoundObjects:
    """What a detector finds in one image, best first.

    Attributes:
        boxes: (N, 4) left, top, right, bottom in pixels of the image.
        labels: (N,) index into the classes.
        scores: (N,) from 0 to 1.
        masks: (N, S, S), how likely each part of the box is the object's; None if the detector
            finds boxes only.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def none(cls) -> "FoundObjects":
        """No objects."""
        return cls(
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            scores=np.zeros(0, np.float32),
        )

    def above(self, score: float) -> "FoundObjects":
        """Those of `score` or more."""
        kept = self.scores >= score
        return FoundObjects(
            boxes=self.boxes[kept],
            labels=self.labels[kept],
            scores=self.scores[kept],
            masks=None if self.masks is None else self.masks[kept],
        )

    def scaled(self, across: float, down: float) -> "FoundObjects":
        """The same in an image that is wider and higher by these factors."""
        return replace(self, boxes=self.boxes * np.array([across, down] * 2, np.float32))

    def run_lengths(self, size: tuple[int, int]) -> list[RunLengths]:
        """The pixels of each object; none at all if the detector finds boxes only.

        Args:
            size: width and height of the image.
        """
        if self.masks is None:
            return []
        pairs = zip(self.masks, self.boxes, strict=True)
        return [pasted(mask, box, size) for mask, box in pairs]
