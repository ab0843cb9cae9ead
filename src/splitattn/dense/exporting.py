"""Detectors as files for other engines. A file appears only if it finds what the detector finds."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from splitattn.dense.annotated import AnnotatedImages, read_image
from splitattn.dense.detector import TrainedDetector
from splitattn.dense.evaluating import find_all, with_classes
from splitattn.dense.exportable import (
    MOST_LOST,
    Loss,
    calibration_pixels,
    check_exportable,
    first_readable,
    loss,
)
from splitattn.dense.finding import IOU, LEAST_SCORE, EngineFinder, Finder, find
from splitattn.dense.found import FoundObjects
from splitattn.dense.open import open_annotated
from splitattn.dense.resizing import Sides, read_sides, resized
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
# By how many pixels of the network's image a side of a box that is found again may be off. A
# small FCOS at a side of 64 pixels was off by 0.00002 in single and 0.005 in half precision; large
# images have larger boxes.
_PIXELS = {"fp32": 0.05, "fp16": 1.0, "int8": 8.0}
# What share of the objects must be found again, and how far scores may be off.
_LEAST_SAME = {"fp32": 99.0, "fp16": 95.0}
_TOLERANCES = {"fp32": 1e-3, "fp16": 0.05}
_MOST_IMAGES = 20
_WHY = "what it looks at in its second stage depends on what it finds in the first"


@dataclass(frozen=True, kw_only=True)
class BoxParity:
    """How many of the best 20 objects of each image a file finds again.

    Attributes:
        images: how many were tried.
        objects: that the detector found in them.
        same: percent of these that the file found: of the same class, no side off by more than the
            report's `most_pixels`.
        pixels: by how much a side of such a box differs at most, in pixels of the image that the
            network sees.
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
class DetectorExportReport(ExportedFile):
    """What was exported, and how equal it is to the detector.

    Attributes:
        parity: the boxes of the file compared with those of the detector in PyTorch.
        agreement: of int8, what it costs.
    """

    parity: BoxParity
    agreement: Loss | None

    @property
    def passed(self) -> bool:
        """Whether the file may be used."""
        if self.agreement:
            return self.agreement.passed
        parity = self.parity
        # Written so that a score that is NaN does not pass.
        return (
            parity.objects > 0
            and parity.same >= _LEAST_SAME[self.precision]
            and parity.pixels <= _PIXELS[self.precision]
            and parity.score <= _TOLERANCES[self.precision]
        )

    def as_dict(self) -> dict[str, Any]:
        """What is stored beside the file, ready for JSON."""
        return super().as_dict() | {
            "least_same": _LEAST_SAME.get(self.precision),
            "most_pixels": _PIXELS[self.precision],
            "tolerance": _TOLERANCES.get(self.precision),
            "boxes": asdict(self.parity),
            "most_lost": MOST_LOST if self.agreement else None,
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
            agreement = loss(
                "AP",
                _ap(finder, val, sides, on_images),
                _ap(exact, val, sides, on_images),
                len(val),
            )
        on_step("comparing boxes")
        report = DetectorExportReport(
            path=path,
            model=detector.metadata.model,
            format=row.format or "",
            precision=precision,
            engine=candidate.name,
            size=sum(file.stat().st_size for file in made.parent.iterdir()),
            parity=_parity(exact, finder, _pictures(val), sides, _PIXELS[precision]),
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
) -> tuple[float, int]:
    """AP in percent, 0 where nothing is annotated, and how many images cannot be read."""

    def detect(image: Image.Image) -> FoundObjects:
        return find(finder, image, sides, score=LEAST_SCORE, iou=IOU)

    found, problems = find_all(data, detect, on_images)
    return score(data, found).figures.get("ap", 0.0), len(problems)


def _pictures(data: AnnotatedImages | None) -> list[Image.Image]:
    if data is None:
        return [decode(path) for path in sample_photographs()]
    return first_readable(len(data), _MOST_IMAGES, lambda index: read_image(data, index))


def _parity(
    exact: Finder,
    finder: Finder,
    images: Sequence[Image.Image],
    sides: Sides,
    most_pixels: float,
) -> BoxParity:
    objects = same = 0
    pixels = scores = 0.0
    for image in images:
        # Without a limit, so that there are always objects to compare.
        seen = np.asarray(resized(image, sides.size(*image.size)))
        expected, found = exact(seen, score=0, iou=IOU), finder(seen, score=0, iou=IOU)
        for i in range(min(len(expected), _BEST)):
            objects += 1
            off = np.abs(found.boxes - expected.boxes[i]).max(1)
            off[found.labels != expected.labels[i]] = np.inf
            if off.min(initial=np.inf) > most_pixels:
                continue
            same += 1
            best = int(off.argmin())
            pixels = max(pixels, float(off[best]))
            scores = max(scores, float(abs(found.scores[best] - expected.scores[i])))
    share = 100 * same / max(objects, 1)
    return BoxParity(images=len(images), objects=objects, same=share, pixels=pixels, score=scores)


def _failure(report: DetectorExportReport) -> ExportError:
    where = f"{report.path} was not written: in {report.engine}"
    if report.agreement:
        return ExportError(f"{where} {report.agreement.fault}")
    return ExportError(
        f"{where} {_LEAST_SAME[report.precision]:g} % of the boxes must be the same, within "
        f"{_PIXELS[report.precision]:g} pixels and {_TOLERANCES[report.precision]:g} of the score, "
        f"got {report.parity}: use fp32, or another format"
    )
