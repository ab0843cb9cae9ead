"""Exports segmenters. A file must give pixels the same classes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.dense.class_maps import class_map
from splitattn.dense.exportable import DenseExport, DenseParity
from splitattn.dense.mask_scoring import SegmentationScores, score_masks
from splitattn.dense.masks import Mask, MaskedImages, check_classes, open_masked, read_masked
from splitattn.dense.resizing import Sides, read_sides
from splitattn.dense.segment import logits_of, segment
from splitattn.dense.segmenter import TrainedSegmenter
from splitattn.engines.engine import ACTIVATIONS, Engine
from splitattn.graph.segmentation import MULTIPLE

# The plain network is slow, so it sees images with at most this shorter side, in pixels.
_REFERENCE_SIDE = 128


@dataclass(frozen=True, kw_only=True)
class PixelParity(DenseParity):
    """How many pixels get the same class from a file as from the segmenter.

    Attributes:
        images: how many were tried.
        pixels: of these images.
        same: percent of the pixels that have the same class.
        probability: by how much the probability of a class differs at most, before logits are
            enlarged to the image.
    """

    answers: ClassVar[str] = "pixels"
    limits: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "fp32": {"least_same": 99.9, "tolerance": 1e-3},
        "fp16": {"least_same": 99.0, "tolerance": 0.05},
        "int8": {},
    }

    images: int
    pixels: int
    same: float
    probability: float

    def passed(self, precision: str) -> bool:
        """See `DenseParity`."""
        if precision == "int8":
            return True
        limits = self.limits[precision]
        # Written so that a probability that is NaN does not pass.
        return self.same >= limits["least_same"] and self.probability <= limits["tolerance"]

    def rule(self, precision: str) -> str:
        """See `DenseParity`."""
        limits = self.limits[precision]
        return (
            f"{limits['least_same']:g} % of the pixels must be the same, within "
            f"{limits['tolerance']:g} of the probability"
        )

    def __str__(self) -> str:
        return (
            f"{self.same:.3f} % of {self.pixels:,} pixels in {self.images} images are the same, "
            f"within {self.probability:.2g} of the probability"
        )


class SegmenterExport(DenseExport[TrainedSegmenter, MaskedImages, PixelParity]):
    """The export of a segmenter, which is compared with the plain network.

    The file takes "images", normalized float32 (B, 3, H, W), whose sides are multiples of 32, and
    gives "logits" (B, classes, H / 4, W / 4). `Segmenter` enlarges them to the image.
    """

    kind = TrainedSegmenter
    parity = PixelParity
    figure = "mIoU"
    most_images = 5
    why_not = "its dilated backbone has no folded form"

    def open(self, data: str, split: str) -> MaskedImages:
        found = open_masked(data, split)
        check_classes(found, self.trained.metadata.classes)
        return found

    def image(self, data: MaskedImages, index: int) -> Image.Image:
        return read_masked(data, index)[0]

    def measured(
        self, engine: Engine, data: MaskedImages, on_images: Callable[[int, int], None]
    ) -> tuple[float, int]:
        def answer(image: Image.Image) -> Mask:
            return segment(engine.logits, image, self._sides, self.trained.metadata.preprocessing)

        scored = score_masks(data, answer, range(len(data)), on_images)
        scores = SegmentationScores(
            classes=data.classes, confusion=scored.confusion, images=len(data)
        )
        return scores.figures["miou"], len(scored.problems)

    def compared(
        self, engine: Engine, images: Sequence[Image.Image], precision: str
    ) -> PixelParity:
        del precision
        networks = (self.trained.reference(), engine.logits)
        preprocessing = self.trained.metadata.preprocessing
        sides = replace(self._sides, short=min(self._sides.short, _REFERENCE_SIDE))
        same = pixels = 0
        probability = 0.0
        for image in images:
            first, second = (logits_of(each, image, sides, preprocessing) for each in networks)
            equal = class_map(first, image.size) == class_map(second, image.size)
            same, pixels = same + int(equal.sum()), pixels + equal.size
            off = np.abs(_probabilities(first) - _probabilities(second)).max()
            probability = float(np.maximum(probability, off))  # unlike `max`, keeps a NaN
        return PixelParity(
            images=len(images),
            pixels=pixels,
            same=100 * same / max(pixels, 1),
            probability=probability,
        )

    @property
    def _sides(self) -> Sides:
        return read_sides(self.trained.metadata.head, MULTIPLE)


def _probabilities(logits_CHW: NDArray[np.float32]) -> NDArray[np.float32]:  # noqa: N803
    return ACTIVATIONS["softmax"](logits_CHW.reshape(len(logits_CHW), -1).T)
