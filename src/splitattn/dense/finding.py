"""Runs a detector on one image, with boxes in the image's own pixels. Needs no PyTorch."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.dense.found import FoundObjects
from splitattn.dense.resizing import Sides, pixels_of
from splitattn.engines.engine import NOT_FINITE, Engine
from splitattn.errors import ImageError
from splitattn.graph.detection import LEAST_SCORE, MOST_OBJECTS, MULTIPLE, places
from splitattn.images.decode import Reduced, as_reduced
from splitattn.images.preprocess import normalize
from splitattn.preprocessing import Preprocessing

# Boxes of each map before overlaps are removed, at most; as in torchvision's detectors.
_MOST_OF_A_MAP = 1000


class Finder(Protocol):
    """Finds objects in an image that has its final size."""

    def __call__(self, pixels: NDArray[np.uint8], *, score: float, iou: float) -> FoundObjects:
        """What is found in pixels (H, W, 3), with boxes in these pixels.

        Args:
            score: objects with this one or a lower one are left out.
            iou: of two boxes of a class that overlap by more, the one of lower score is left out.

        Raises:
            ImageError: the network gives no finite numbers.
        """
        ...


def find(
    finder: Finder,
    image: Image.Image | Reduced,
    sides: Sides,
    *,
    score: float = LEAST_SCORE,
    iou: float,
) -> FoundObjects:
    """What a detector finds in an image.

    Args:
        finder: the detector.
        image: RGB, upright.
        sides: of the detector's images.
        score, iou: see `Finder`.

    Returns:
        Boxes in pixels of the whole image.
    """
    reduced = as_reduced(image)
    pixels = pixels_of(reduced, sides)
    (width, height), (rows, columns, _) = reduced.whole, pixels.shape
    return finder(pixels, score=score, iou=iou).scaled(width / columns, height / rows)


class EngineFinder:
    """A detector of one stage in an engine.

    Args:
        engine: gives boxes and scores, see `write_detector`.
        preprocessing: mean and deviation of the images.
    """

    def __init__(self, engine: Engine, preprocessing: Preprocessing) -> None:
        self.engine = engine
        self._preprocessing = preprocessing

    def __call__(self, pixels: NDArray[np.uint8], *, score: float, iou: float) -> FoundObjects:
        images = padded(pixels, self._preprocessing)
        boxes, scores, *_ = self.engine.outputs(images)
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ImageError(NOT_FINITE)
        counts = boxes_of_maps(boxes[0], images)
        return select(boxes[0], scores[0], counts, pixels.shape[:2], score=score, iou=iou)


def padded(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Pixels (H, W, 3) as a detector's images (1, 3, H', W'), whose sides are multiples of 32."""
    normalized = normalize(pixels.transpose(2, 0, 1)[None], preprocessing)
    height, width = pixels.shape[:2]
    after = [(0, 0), (0, 0), (0, -height % MULTIPLE), (0, -width % MULTIPLE)]
    return np.pad(normalized, after)


def boxes_of_maps(boxes: NDArray[np.float32], images: NDArray[np.float32]) -> list[int]:
    """How many of `boxes` (N, 4) belong to each map, for `images` (B, 3, H, W)."""
    counts = places(*images.shape[2:])
    several = len(boxes) // sum(counts)  # boxes at each place
    return [several * count for count in counts]


def select(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    places: list[int],
    size: tuple[int, ...],
    *,
    score: float,
    iou: float,
) -> FoundObjects:
    """Select objects from all boxes of one image, as torchvision's FCOS and RetinaNet do.

    Args:
        boxes: (N, 4).
        scores: (N, classes).
        places: how many of the boxes belong to each map.
        size: height and width of the image, to which boxes are cut.
        score, iou: see `Finder`.
    """
    kept = []
    for first, count in zip(np.cumsum([0, *places[:-1]]), places, strict=True):
        own = scores[first : first + count]
        found = np.flatnonzero(own > score)
        best = np.argsort(-own.ravel()[found], kind="stable")[:_MOST_OF_A_MAP]
        kept.append(found[best] + first * scores.shape[1])
    candidates = np.concatenate(kept)
    values = scores.ravel()[candidates]
    place, label = np.divmod(candidates, scores.shape[1])
    height, width = size
    cut = boxes[place].clip(0, np.array([width, height, width, height], np.float32))
    order = np.argsort(-values, kind="stable")
    apart = order[_apart(cut[order], label[order], iou)][:MOST_OBJECTS]
    return FoundObjects(boxes=cut[apart], labels=label[apart], scores=values[apart])


def _apart(boxes: NDArray[np.float32], labels: NDArray[np.int64], iou: float) -> NDArray[np.bool_]:
    """Non-maximum suppression of boxes (N, 4), best first, within each class: which stay, (N,)."""
    near, far = boxes[:, :2], boxes[:, 2:]
    areas = (far - near).prod(1)
    kept = np.ones(len(boxes), dtype=bool)
    for label in np.unique(labels):
        (left,) = np.nonzero(labels == label)
        while len(left):
            best, left = left[0], left[1:]
            shared = np.minimum(far[best], far[left]) - np.maximum(near[best], near[left])
            common = shared.clip(0).prod(1)
            overlap = common > iou * (areas[best] + areas[left] - common)
            kept[left[overlap]] = False
            left = left[~overlap]
    return kept
