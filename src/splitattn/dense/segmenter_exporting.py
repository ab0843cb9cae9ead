"""Segmenters as files for other engines. A file appears only if it answers as they do."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.dense.class_maps import class_map
from splitattn.dense.exportable import (
    MOST_LOST,
    Loss,
    calibration_pixels,
    check_exportable,
    first_readable,
    loss,
)
from splitattn.dense.mask_scoring import SegmentationScores, score_masks
from splitattn.dense.masks import Mask, MaskedImages, check_classes, open_masked, read_masked
from splitattn.dense.resizing import Sides, read_sides
from splitattn.dense.segment import Logits, logits_of, segment
from splitattn.dense.segmenter import TrainedSegmenter
from splitattn.engines.engine import ACTIVATIONS, FileSettings
from splitattn.exporting import ExportedFile, ExportError, appearing, check_arguments, reopened
from splitattn.graph.segmentation import MULTIPLE
from splitattn.images.decode import decode
from splitattn.images.preprocess import Pixels
from splitattn.images.samples import sample_photographs
from splitattn.preprocessing import Preprocessing

# What share of the pixels must keep their class, in percent.
_LEAST_SAME = {"fp32": 99.9, "fp16": 99.0}
# By how much a probability may be off, before logits are enlarged to the image.
_TOLERANCES = {"fp32": 1e-3, "fp16": 0.05}
_MOST_IMAGES = 5
_WHY = "its dilated backbone has no folded form"
# The plain network is slow: it sees images of at most so many pixels on the shorter side.
_REFERENCE_SIDE = 128


@dataclass(frozen=True, kw_only=True)
class PixelParity:
    """How many pixels a file gives the class that the segmenter gives them.

    Attributes:
        images: how many were tried.
        pixels: of these images.
        same: percent of the pixels that have the same class.
        probability: by how much the probability of a class differs at most, before logits are
            enlarged to the image.
    """

    images: int
    pixels: int
    same: float
    probability: float

    def __str__(self) -> str:
        return (
            f"{self.same:.3f} % of {self.pixels:,} pixels in {self.images} images are the same, "
            f"within {self.probability:.2g} of the probability"
        )


@dataclass(frozen=True, kw_only=True)
class SegmenterExportReport(ExportedFile):
    """What was exported, and how equal it is to the segmenter.

    Attributes:
        parity: the pixels of the file compared with those of the plain network.
        agreement: of int8, what it costs.
    """

    parity: PixelParity
    agreement: Loss | None

    @property
    def passed(self) -> bool:
        """Whether the file may be used."""
        if self.agreement:
            return self.agreement.passed
        # Written so that a probability that is NaN does not pass.
        return (
            self.parity.same >= _LEAST_SAME[self.precision]
            and self.parity.probability <= _TOLERANCES[self.precision]
        )

    def as_dict(self) -> dict[str, Any]:
        """What is stored beside the file, ready for JSON."""
        return super().as_dict() | {
            "least_same": _LEAST_SAME.get(self.precision),
            "tolerance": _TOLERANCES.get(self.precision),
            "pixels": asdict(self.parity),
            "most_lost": MOST_LOST if self.agreement else None,
            "agreement": asdict(self.agreement) if self.agreement else None,
        }


def export_segmenter(
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
) -> SegmenterExportReport:
    """Write a segmenter for another engine, and compare the classes of both on photographs.

    The file takes "images", normalized float32 (B, 3, H, W), whose sides are multiples of 32, and
    gives "logits" (B, classes, H / 4, W / 4). `Segmenter` enlarges them to the image.

    Args:
        path, format, precision, opset, on_images, on_step: see `splitattn.export`.
        weights: see `Segmenter`.
        calibration: images with masks (see `open_masked`). For int8, ranges come from up to 100
            training images, and mIoU is measured on the validation images. Pixels are compared on
            up to five validation images, or on the photographs of the package.

    Raises:
        InputError: an argument is wrong, a library is missing, or the file cannot be written.
        WeightsError: the weights cannot be had, or are not a segmenter's.
        DataError: the calibration images cannot be used.
        ExportError: the file would answer otherwise; it is discarded.
    """
    row = check_arguments(
        path,
        format=format,
        precision=precision,
        calibration=calibration,
        batch_size=batch_size,
        opset=opset,
    )
    segmenter = TrainedSegmenter.read(weights)
    check_exportable(segmenter, row, batch_size, why=_WHY)
    metadata = segmenter.metadata
    sides = read_sides(metadata.head, MULTIPLE)
    val = None if calibration is None else open_masked(calibration, "val")
    if val is not None:
        check_classes(val, metadata.classes)
    pixels: Sequence[Pixels] = ()
    if precision == "int8":
        on_step("reading calibration images")
        train = open_masked(str(calibration), "train")
        pixels = calibration_pixels(
            len(train), lambda index: read_masked(train, index)[0], sides, on_images
        )
    settings = FileSettings(
        metadata=metadata,
        precision=precision,
        dynamic_size=True,
        opset=opset,
        calibration=pixels,
    )
    with appearing(path) as made:
        on_step("quantizing, some minutes" if precision == "int8" else "writing")
        network = segmenter.fold(row.form)
        row.load_file_module().write(network, made, settings)
        candidate = reopened(row, made)
        agreement = None
        if precision == "int8" and val is not None:
            on_step("comparing mIoU")
            exact = row.load_module().load(network, size=None, device="cpu")
            agreement = loss(
                "mIoU",
                _miou(candidate.logits, val, sides, metadata.preprocessing, on_images),
                _miou(exact.logits, val, sides, metadata.preprocessing, on_images),
                len(val),
            )
        on_step("comparing pixels")
        small = Sides(
            short=min(sides.short, _REFERENCE_SIDE), long=sides.long, multiple=sides.multiple
        )
        report = SegmenterExportReport(
            path=path,
            model=metadata.model,
            format=row.format or "",
            precision=precision,
            engine=candidate.name,
            size=sum(file.stat().st_size for file in made.parent.iterdir()),
            parity=_parity(
                segmenter.reference(),
                candidate.logits,
                _pictures(val),
                small,
                metadata.preprocessing,
            ),
            agreement=agreement,
        )
        if not report.passed:
            raise _failure(report)
        report.store(made)
    return report


def _miou(
    logits: Logits,
    data: MaskedImages,
    sides: Sides,
    preprocessing: Preprocessing,
    on_images: Callable[[int, int], None],
) -> tuple[float, int]:
    """mIoU in percent, 0 where no pixel has a class, and how many images cannot be read."""

    def answer(image: Image.Image) -> Mask:
        return segment(logits, image, sides, preprocessing)

    scored = score_masks(data, answer, range(len(data)), on_images)
    scores = SegmentationScores(classes=data.classes, confusion=scored.confusion, images=len(data))
    return scores.figures["miou"], len(scored.problems)


def _pictures(data: MaskedImages | None) -> list[Image.Image]:
    if data is None:
        return [decode(path) for path in sample_photographs()]
    return first_readable(len(data), _MOST_IMAGES, lambda index: read_masked(data, index)[0])


def _parity(
    exact: Logits,
    found: Logits,
    images: Sequence[Image.Image],
    sides: Sides,
    preprocessing: Preprocessing,
) -> PixelParity:
    same = pixels = 0
    probability = 0.0
    for image in images:
        first, second = (
            logits_of(logits, image, sides, preprocessing) for logits in (exact, found)
        )
        equal = class_map(first, image.size) == class_map(second, image.size)
        same, pixels = same + int(equal.sum()), pixels + equal.size
        off = np.abs(_probabilities(first) - _probabilities(second)).max()
        probability = max(probability, float(off))
    return PixelParity(
        images=len(images),
        pixels=pixels,
        same=100 * same / max(pixels, 1),
        probability=probability,
    )


def _probabilities(logits_CHW: NDArray[np.float32]) -> NDArray[np.float32]:  # noqa: N803
    return ACTIVATIONS["softmax"](logits_CHW.reshape(len(logits_CHW), -1).T)


def _failure(report: SegmenterExportReport) -> ExportError:
    where = f"{report.path} was not written: in {report.engine}"
    if report.agreement:
        return ExportError(f"{where} {report.agreement.fault}")
    return ExportError(
        f"{where} {_LEAST_SAME[report.precision]:g} % of the pixels must be the same, within "
        f"{_TOLERANCES[report.precision]:g} of the probability, got "
        f"{report.parity}: use fp32, or another format"
    )
