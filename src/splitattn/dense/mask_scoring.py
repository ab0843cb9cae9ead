"""How many pixels have the right class, and which images have the most wrong ones."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.dense.masks import IGNORED, Mask, MaskedImages, read_masked
from splitattn.errors import ImageError

# So many images are kept for people to look at.
_WORST = 8


def confusion(truth: Mask, answer: Mask, classes: int) -> NDArray[np.int64]:
    """(classes, classes): how many pixels of each class (rows) got which class (columns)."""
    counted = truth != IGNORED
    pairs = truth[counted].astype(np.int64) * classes + answer[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True, kw_only=True)
class ClassOverlap:
    """The figures of one class, in percent.

    Attributes:
        name: of the class.
        pixels: how many it has in the masks.
        iou: intersection over union of its pixels in masks and answers; None if it has none in
            either.
        accuracy: the share of its pixels that got this class; None if it has none in the masks.
    """

    name: str
    pixels: int
    iou: float | None
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class SegmentationScores:
    """Figures over all pixels of all images, those of no class left out.

    Attributes:
        classes: names.
        confusion: (classes, classes), see `confusion`.
        images: how many were measured.
    """

    classes: Sequence[str]
    confusion: NDArray[np.int64]
    images: int

    @property
    def figures(self) -> dict[str, float]:
        """In percent: "miou" is the mean over classes of intersection over union.

        "accuracy" is the share of pixels that are right, "mean_accuracy" its mean over classes.
        Both means leave out classes whose figure is None, see `ClassOverlap`.
        """
        each = self.by_class()
        overlaps = [one.iou for one in each if one.iou is not None]
        shares = [one.accuracy for one in each if one.accuracy is not None]
        right = float(np.trace(self.confusion)) / max(int(self.confusion.sum()), 1)
        return {
            "miou": sum(overlaps) / max(len(overlaps), 1),
            "accuracy": 100 * right,
            "mean_accuracy": sum(shares) / max(len(shares), 1),
        }

    def by_class(self) -> list[ClassOverlap]:
        """In the order of the classes."""
        right, truth = np.diag(self.confusion), self.confusion.sum(1)
        union = truth + self.confusion.sum(0) - right
        return [
            ClassOverlap(
                name=name,
                pixels=int(truth[i]),
                iou=100 * float(right[i] / union[i]) if union[i] else None,
                accuracy=100 * float(right[i] / truth[i]) if truth[i] else None,
            )
            for i, name in enumerate(self.classes)
        ]


@dataclass(frozen=True, kw_only=True)
class WorstImage:
    """An image with many mistakes.

    Attributes:
        index: of the image in its data set.
        wrong: share of its pixels that are wrong.
        answer: the class that each pixel was given, (H, W).
    """

    index: int
    wrong: float
    answer: Mask


@dataclass(frozen=True, kw_only=True)
class ScoredMasks:
    """Some images, scored.

    Attributes:
        confusion: see `SegmentationScores`.
        worst: the images with the largest share of mistakes, worst first.
        problems: a line for each image that could not be read; it was left out.
    """

    confusion: NDArray[np.int64]
    worst: tuple[WorstImage, ...]
    problems: tuple[str, ...]

    @classmethod
    def merged(cls, parts: "Iterable[ScoredMasks]") -> "ScoredMasks":
        """The same of all images together; their number and order change nothing."""
        parts = [*parts]
        images = (image for part in parts for image in part.worst)
        return cls(
            confusion=np.sum([part.confusion for part in parts], axis=0),
            worst=tuple(_worst(images)),
            problems=tuple(problem for part in parts for problem in part.problems),
        )


def score_masks(
    data: MaskedImages,
    answer: Callable[[Image.Image], Mask],
    indices: Iterable[int],
    on_images: Callable[[int, int], None],
) -> ScoredMasks:
    """Compare the answers for some images with their masks.

    Args:
        data: images and masks.
        answer: from an image to the class of every pixel.
        indices: of the images in `data`.
        on_images: called for each image with 1 and the number of images in `data`.
    """
    classes = len(data.classes)
    total = np.zeros((classes, classes), dtype=np.int64)
    problems: list[str] = []
    images: list[WorstImage] = []
    for index in indices:
        on_images(1, len(data))
        try:
            image, mask = read_masked(data, index)
        except ImageError as error:
            problems.append(str(error))
            continue
        found = answer(image)
        own = confusion(mask, found, classes)
        total += own
        wrong = 1 - float(np.trace(own)) / max(int(own.sum()), 1)
        images = _worst([*images, WorstImage(index=index, wrong=wrong, answer=found)])
    return ScoredMasks(confusion=total, worst=tuple(images), problems=tuple(problems))


def _worst(images: Iterable[WorstImage]) -> list[WorstImage]:
    return sorted(images, key=lambda image: (-image.wrong, image.index))[:_WORST]
