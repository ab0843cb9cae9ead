"""Detectors as files for other engines. A file appears only if it finds what the detector finds."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.dense.annotated import AnnotatedImages, read_image
from splitattn.dense.detector import TrainedDetector
from splitattn.dense.evaluating import find_all, with_classes
from splitattn.dense.exportable import calibration_pixels, check_exportable, first_readable
from splitattn.dense.finding import IOU, LEAST_SCORE, EngineFinder, Finder, find
from splitattn.dense.found import FoundObjects
from splitattn.dense.open import open_annotated
from splitattn.dense.resizing import Sides, read_sides
from splitattn.dense.scoring import score
from splitattn.engines.engine import FileSettings
from splitattn.exporting import ExportedFile, ExportError, appearing, check_arguments, reopened
from splitattn.graph.detection import MULTIPLE
from splitattn.images.decode import decode
from splitattn.images.preprocess import Pixels
from splitattn.images.samples import sample_photographs
from splitattn.libraries import require

# Of each image, so many of the best objects must be found again.
_BEST = 20
# How much of its box an object must share to be found again.
_SAME = 0.9
# What share of the objects must be found again, and how far scores may be off.
_LEAST_SAME = {"fp32": 99.0, "fp16": 95.0}
_TOLERANCES = {"fp32": 1e-3, "fp16": 0.05}
# How many points of AP eight bits may cost.
_MOST_LOST = 2.0
_MOST_IMAGES = 20
_WHY = "what it looks at in its second stage depends on what it finds in the first"


@dataclass(frozen=True, kw_only=True)
class BoxParity:
    """How many of the best 20 objects of each image a file finds again.

    Attributes:
        images: how many were tried.
        objects: that the detector found in them.
        same: percent of these that the file found: of the same class, with 90 % of the box in
            common.
        pixels: by how much a side of such a box differs at most, in pixels of the image.
        score: by how much a score of such an object differs at most.
    """

    images: int
    objects: int
    same: float
    pixels: float
    score: float

    def __str__(self) -> str:
        return (
            f"{self.same:.1f} % of {self.objects} boxes in {self.images} images are the same, "
            f"within {self.pixels:.2g} pixels and {self.score:.2g} of the score"
        )


@dataclass(frozen=True, kw_only=True)
class PrecisionLoss:
    """What eight bits cost.

    Attributes:
        images: validation images on which both were measured.
        ap, exact_ap: of the file, and of the detector, in percent.
    """

    images: int
    ap: float
    exact_ap: float

    def __str__(self) -> str:
        return f"AP {self.ap:.2f} % on {self.images} images, {self.exact_ap:.2f} % in fp32"


@dataclass(frozen=True, kw_only=True)
class DetectorExportReport(ExportedFile):
    """What was exported, and how equal it is to the detector.

    Attributes:
        parity: the boxes of the file compared with those of the detector in PyTorch.
        agreement: of int8, what it costs.
    """

    parity: BoxParity
    agreement: PrecisionLoss | None

    @property
    def passed(self) -> bool:
        """Whether the file may be used."""
        if self.agreement:
            return self.agreement.exact_ap - self.agreement.ap <= _MOST_LOST
        parity = self.parity
        # Written so that a score that is NaN does not pass.
        return (
            parity.objects > 0
            and parity.same >= _LEAST_SAME[self.precision]
            and parity.score <= _TOLERANCES[self.precision]
        )

    def as_dict(self) -> dict[str, Any]:
        """What is stored beside the file, ready for JSON."""
        return super().as_dict() | {
            "least_same": _LEAST_SAME.get(self.precision),
            "tolerance": _TOLERANCES.get(self.precision),
            "boxes": asdict(self.parity),
            "most_ap_lost": _MOST_LOST if self.agreement else None,
            "agreement": asdict(self.agreement) if self.agreement else None,
        }


def export_detector(
    path: Path,
    weights: str | Path,
    *,
    format: str | None = None,
    precision: str = "fp32",
    calibration: str | None = None,
    batch_size: int | None = None,
    opset: int | None = None,
    on_images: Callable[[int, int], None] = lambda _, __: None,
    on_step: Callable[[str], None] = lambda _: None,
) -> DetectorExportReport:
    """Write a detector for another engine, and compare the boxes of both on photographs.

    The file takes "images", normalized float32 (B, 3, H, W), whose sides are multiples of 32, and
    gives "boxes" (B, N, 4) and "scores" (B, N, classes), see `write_detector`. Overlapping boxes
    are still in it: `Detector` removes them, so `--score` and `--iou` work for files too.

    Args:
        path, format, precision, opset, on_images, on_step: see `splitattn.export`.
        weights: see `Detector`.
        calibration: annotated images (see `open_annotated`). For int8, ranges come from up to 100
            training images, and AP is measured on the validation images. Boxes are compared on up
            to 20 validation images, or on the photographs of the package.

    Raises:
        InputError: an argument is wrong, a library is missing, or the file cannot be written.
        WeightsError: the weights cannot be had, or are not a detector's.
        DataError: the calibration images cannot be used.
        ExportError: the file would find other objects; it is discarded.
    """
    row = check_arguments(
        path,
        format=format,
        precision=precision,
        calibration=calibration,
        batch_size=batch_size,
        opset=opset,
    )
    detector = TrainedDetector.read(weights)
    check_exportable(detector, row, batch_size, why=_WHY)
    require("exporting a detector", "torch", "torchvision")
    sides, classes = read_sides(detector.metadata.head), detector.metadata.classes
    whole = replace(sides, multiple=MULTIPLE)  # as an engine takes them
    val = None if calibration is None else open_annotated(calibration, "val")
    val = None if val is None else with_classes(val, classes)
    pixels: Sequence[Pixels] = ()
    if precision == "int8":
        require("comparing AP", "faster_coco_eval")
        on_step("reading calibration images")
        train = open_annotated(str(calibration), "train")
        pixels = calibration_pixels(
            len(train), lambda index: read_image(train, index), whole, on_images
        )
    settings = FileSettings(
        metadata=detector.metadata,
        precision=precision,
        dynamic_size=True,
        opset=opset,
        calibration=pixels,
    )
    with appearing(path) as made:
        on_step("quantizing, some minutes" if precision == "int8" else "writing")
        row.load_file_module().write(detector.fold(row.form), made, settings)
        candidate = reopened(row, made)
        finder = EngineFinder(candidate, detector.metadata.preprocessing)
        exact = detector.in_torch("cpu")
        agreement = None
        if precision == "int8" and val is not None:
            on_step("comparing AP")
            agreement = PrecisionLoss(
                images=len(val),
                ap=_ap(finder, val, sides, on_images),
                exact_ap=_ap(exact, val, sides, on_images),
            )
        on_step("comparing boxes")
        report = DetectorExportReport(
            path=path,
            model=detector.metadata.model,
            format=row.format or "",
            precision=precision,
            engine=candidate.name,
            size=sum(file.stat().st_size for file in made.parent.iterdir()),
            parity=_parity(exact, finder, _pictures(val), sides),
            agreement=agreement,
        )
        if not report.passed:
            raise _failure(report)
        report.store(made)
    return report


def _ap(
    finder: Finder,
    data: AnnotatedImages,
    sides: Sides,
    on_images: Callable[[int, int], None],
) -> float:
    def detect(image: Image.Image) -> FoundObjects:
        return find(finder, image, sides, score=LEAST_SCORE, iou=IOU)

    return score(data, find_all(data, detect, on_images)[0]).figures.get("ap", 0.0)


def _pictures(data: AnnotatedImages | None) -> list[Image.Image]:
    if data is None:
        return [decode(path) for path in sample_photographs()]
    return first_readable(len(data), _MOST_IMAGES, lambda index: read_image(data, index))


def _parity(
    exact: Finder, finder: Finder, images: Sequence[Image.Image], sides: Sides
) -> BoxParity:
    objects = same = 0
    pixels = scores = 0.0
    for image in images:
        # Without a limit, so that there are always objects to compare.
        expected = find(exact, image, sides, score=0, iou=IOU)
        found = find(finder, image, sides, score=0, iou=IOU)
        for i in range(min(len(expected), _BEST)):
            objects += 1
            overlap = _overlap(expected.boxes[i], found.boxes)
            overlap[found.labels != expected.labels[i]] = 0
            if not len(found) or overlap.max() < _SAME:
                continue
            same += 1
            best = int(overlap.argmax())
            pixels = max(pixels, float(np.abs(found.boxes[best] - expected.boxes[i]).max()))
            scores = max(scores, float(abs(found.scores[best] - expected.scores[i])))
    share = 100 * same / max(objects, 1)
    return BoxParity(images=len(images), objects=objects, same=share, pixels=pixels, score=scores)


def _overlap(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of a box with boxes (N, 4): (N,)."""
    near = np.maximum(box[:2], boxes[:, :2])
    far = np.minimum(box[2:], boxes[:, 2:])
    common = (far - near).clip(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    found: NDArray[np.float32] = common / np.maximum(areas - common, 1e-9)
    return found


def _failure(report: DetectorExportReport) -> ExportError:
    where = f"{report.path} was not written: in {report.engine}"
    if report.agreement:
        return ExportError(
            f"{where} AP may fall by {_MOST_LOST:g} points at most, got {report.agreement}: "
            "calibrate on images like those it will see, or use fp16"
        )
    return ExportError(
        f"{where} {_LEAST_SAME[report.precision]:g} % of the boxes must be the same, within "
        f"{_TOLERANCES[report.precision]:g} of the score, got {report.parity}: use fp32, or "
        "another format"
    )
