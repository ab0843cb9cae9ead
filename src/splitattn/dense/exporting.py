"""Exports detectors. A file must find the same boxes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.dense.annotated import AnnotatedImages, read_image, with_classes
from splitattn.dense.detector import TrainedDetector
from splitattn.dense.evaluating import find_all
from splitattn.dense.exportable import DenseExport, DenseParity
from splitattn.dense.finding import EngineFinder, Finder, boxes_of_maps, find, padded, select
from splitattn.dense.found import FoundObjects
from splitattn.dense.open import open_annotated
from splitattn.dense.resizing import Sides, pixels_of, read_sides
from splitattn.dense.scoring import score
from splitattn.engines.engine import Engine
from splitattn.graph.detection import IOU, LEAST_SCORE, MOST_OBJECTS, FoldedDetector
from splitattn.graph.folding import Form
from splitattn.images.decode import as_reduced

# How many of the best objects of each image are compared.
_BEST = 20
# Percent of the selected boxes that both the file and `select` must keep.
_SELECTED = {"least_selected": 99.0}

Named = set[tuple[float, ...]]  # classes with left, top, right and bottom


@dataclass(frozen=True, kw_only=True)
class BoxParity(DenseParity):
    """How many of the best 20 objects of each image a file finds again.

    Attributes:
        images: how many were tried.
        objects: that the detector found in them.
        same: percent of these that the file found: of the same class, no side off by more than the
            report's `most_pixels`.
        pixels: by how much a side of such a box differs at most, in pixels of the image that the
            network sees.
        score: by how much a score of such an object differs at most.
        kept: how many boxes the file's "selected" or `select` keeps, of the same boxes and scores.
        selected: percent of these that both keep.
    """

    answers: ClassVar[str] = "boxes"
    # By how many pixels of the network's image a side of a box that is found again may be off. A
    # small FCOS at a side of 64 pixels was off by 0.00002 in single and 0.005 in half precision;
    # large images have larger boxes.
    limits: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "fp32": {"least_same": 99.0, "most_pixels": 0.05, "tolerance": 1e-3, **_SELECTED},
        "fp16": {"least_same": 95.0, "most_pixels": 1.0, "tolerance": 0.05, **_SELECTED},
        "int8": {"most_pixels": 8.0, **_SELECTED},
    }

    images: int
    objects: int
    same: float
    pixels: float
    score: float
    kept: int
    selected: float

    def passed(self, precision: str) -> bool:
        """See `DenseParity`."""
        limits = self.limits[precision]
        # Written so that a score that is NaN does not pass.
        same = precision == "int8" or (
            self.objects > 0
            and self.same >= limits["least_same"]
            and self.pixels <= limits["most_pixels"]
            and self.score <= limits["tolerance"]
        )
        return same and (self.kept == 0 or self.selected >= limits["least_selected"])

    def rule(self, precision: str) -> str:
        """See `DenseParity`."""
        limits = self.limits[precision]
        selected = f"the file must select {limits['least_selected']:g} % of the boxes that are kept"
        if precision == "int8":
            return selected
        return (
            f"{selected}, and {limits['least_same']:g} % of the boxes must be the same, within "
            f"{limits['most_pixels']:g} pixels and {limits['tolerance']:g} of the score"
        )

    def __str__(self) -> str:
        return (
            f"{self.same:.1f} % of {self.objects} boxes in {self.images} images are the same, "
            f"within {self.pixels:.2g} pixels and {self.score:.2g} of the score; "
            f"the file selects {self.selected:.1f} % of {self.kept} that are kept"
        )


class DetectorExport(DenseExport[TrainedDetector, AnnotatedImages, BoxParity]):
    """The export of a detector, which is compared with the one in PyTorch.

    The file takes "images", normalized float32 (B, 3, H, W), whose sides are multiples of 32, and
    gives "boxes" (B, N, 4) and "scores" (B, N, classes) of all places, and in "selected" (M, 3)
    those that are kept, see `write_detector`. `Detector` selects by itself, so `--score` and
    `--iou` work for files too.
    """

    kind = TrainedDetector
    parity = BoxParity
    figure = "AP"
    most_images = 20
    why_not = "the input of its second stage depends on what the first stage finds"
    libraries = ("torch", "torchvision")
    figure_libraries = ("faster_coco_eval",)

    def network(self, form: Form) -> FoldedDetector:
        return replace(self.trained.fold(form), selects=True)

    def open(self, data: str, split: str) -> AnnotatedImages:
        return with_classes(open_annotated(data, split), self.trained.metadata.classes)

    def image(self, data: AnnotatedImages, index: int) -> Image.Image:
        return read_image(data, index)

    def measured(
        self, engine: Engine, data: AnnotatedImages, on_images: Callable[[int, int], None]
    ) -> tuple[float, int]:
        def detect(image: Image.Image) -> FoundObjects:
            return find(self._finder(engine), image, self._sides, score=LEAST_SCORE, iou=IOU)

        found, problems = find_all(data, detect, on_images)
        return score(data, found).figures.get("ap", 0.0), len(problems)

    def compared(self, engine: Engine, images: Sequence[Image.Image], precision: str) -> BoxParity:
        exact: Finder = self.trained.in_torch("cpu")
        finder, sides = self._finder(engine), self._sides
        most_pixels = BoxParity.limits[precision]["most_pixels"]
        objects = same = both = either = 0
        pixels = scores = 0.0
        for image in images:
            # Without a limit, so that there are always objects to compare.
            seen = pixels_of(as_reduced(image), sides)
            expected, found = exact(seen, score=0, iou=IOU), finder(seen, score=0, iou=IOU)
            for i in range(min(len(expected), _BEST)):
                objects += 1
                off = np.abs(found.boxes - expected.boxes[i]).max(1)
                off[found.labels != expected.labels[i]] = np.inf
                if off.min(initial=np.inf) > most_pixels:
                    continue
                same += 1
                best = int(off.argmin())
                # Unlike `max`, NumPy's keeps a NaN.
                pixels = float(np.maximum(pixels, off[best]))
                scores = float(np.maximum(scores, abs(found.scores[best] - expected.scores[i])))
            ours, files = self.kept(engine, seen)
            both, either = both + len(ours & files), either + len(ours | files)
        return BoxParity(
            images=len(images),
            objects=objects,
            same=100 * same / max(objects, 1),
            pixels=pixels,
            score=scores,
            kept=either,
            selected=100 * both / max(either, 1),
        )

    def kept(self, engine: Engine, pixels: NDArray[np.uint8]) -> tuple[Named, Named]:
        """Classes with boxes that `select` keeps of a file's boxes, and that the file keeps."""
        images = padded(pixels, self.trained.metadata.preprocessing)
        (boxes, *_), (scores, *_), rows = engine.outputs(images)
        counts = boxes_of_maps(boxes, images)
        ours = select(boxes, scores, counts, images.shape[2:], score=LEAST_SCORE, iou=IOU)
        _, labels, places = rows.T
        best = np.argsort(-scores[places, labels], kind="stable")[:MOST_OBJECTS]
        height, width = images.shape[2:]
        cut = boxes[places[best]].clip(0, np.array([width, height, width, height], np.float32))
        return _named(ours.labels, ours.boxes), _named(labels[best], cut)

    def _finder(self, engine: Engine) -> EngineFinder:
        return EngineFinder(engine, self.trained.metadata.preprocessing)

    @property
    def _sides(self) -> Sides:
        return read_sides(self.trained.metadata.head)


def _named(labels: NDArray[Any], boxes: NDArray[Any]) -> Named:
    return {(label, *box) for label, box in zip(labels.tolist(), boxes.tolist(), strict=True)}
