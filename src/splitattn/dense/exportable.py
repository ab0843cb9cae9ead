"""Exports detectors and segmenters. A file is written only if its answers equal the original's."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from PIL import Image

from splitattn.dense.resizing import pixels_of, read_sides
from splitattn.dense.trained import TrainedDense
from splitattn.engines.engine import Engine, FileSettings
from splitattn.engines.table import EngineRow, check_any_output
from splitattn.errors import DataError, ImageError, InputError
from splitattn.exporting import ExportedFile, check_arguments, write_compared
from splitattn.graph.detection import MULTIPLE
from splitattn.graph.folding import Form
from splitattn.images.decode import as_reduced, decode
from splitattn.images.preprocess import Pixels
from splitattn.images.samples import sample_photographs
from splitattn.libraries import require

_CALIBRATION_IMAGES = 100
# How many percentage points AP or mIoU may fall in int8.
MOST_LOST = 2.0


@dataclass(frozen=True, kw_only=True)
class Loss:
    """How much AP or mIoU falls in int8.

    Attributes:
        figure: what was measured: "AP" or "mIoU".
        value, exact: the figure of the int8 file and of the original in fp32, in percent.
        images, unreadable: validation images on which both were measured, and those left out.
    """

    figure: str
    value: float
    exact: float
    images: int
    unreadable: int

    @property
    def passed(self) -> bool:
        """Whether the figure falls by `MOST_LOST` at most. One that is 0 in fp32 proves nothing."""
        return self.exact > 0 and self.exact - self.value <= MOST_LOST

    @property
    def fault(self) -> str:
        """Why the file may not be used, and what to do."""
        if self.exact > 0:
            return (
                f"{self.figure} may fall by {MOST_LOST:g} points at most, got {self}: calibrate on "
                "images like those it will see, or use fp16"
            )
        return (
            f"{self.figure} must be more than 0 in fp32, got {self}: give --calibration validation "
            "images that it can be measured on, or use fp16"
        )

    def __str__(self) -> str:
        left_out = f" ({self.unreadable} more cannot be read)" if self.unreadable else ""
        return (
            f"{self.figure} {self.value:.2f} % on {self.images} images{left_out}, "
            f"{self.exact:.2f} % in fp32"
        )


class DenseParity(ABC):
    """How well the answers of a file agree with the original's. Subclasses are dataclasses.

    Attributes:
        answers: what is compared: "boxes" or "pixels".
        limits: by the file's precision, what its fields must keep to. For int8, see `Loss` too.
    """

    answers: ClassVar[str]
    limits: ClassVar[Mapping[str, Mapping[str, float]]]

    @abstractmethod
    def passed(self, precision: str) -> bool:
        """Whether a file of this precision may be used."""

    @abstractmethod
    def rule(self, precision: str) -> str:
        """What a file of this precision must keep to, for messages."""


Parity = TypeVar("Parity", bound=DenseParity)


@dataclass(frozen=True, kw_only=True)
class DenseExportReport(ExportedFile, Generic[Parity]):
    """The report of an exported detector or segmenter.

    Attributes:
        parity: how well the answers agree: `BoxParity` or `PixelParity`.
        agreement: how much an int8 file loses; None for other precisions.
    """

    parity: Parity
    agreement: Loss | None

    @property
    def passed(self) -> bool:
        """See `ExportedFile`."""
        may = self.agreement.passed if self.agreement else True
        return may and self.parity.passed(self.precision)

    @property
    def fault(self) -> str:
        """See `ExportedFile`."""
        if self.agreement and not self.agreement.passed:
            return self.agreement.fault
        rule = self.parity.rule(self.precision)
        return f"{rule}, got {self.parity}: use fp32, or another format"

    def as_dict(self) -> dict[str, Any]:
        """See `ExportedFile`."""
        return {
            **super().as_dict(),
            **self.parity.limits[self.precision],
            self.parity.answers: asdict(self.parity),  # type: ignore[call-overload]
            "most_lost": MOST_LOST if self.agreement else None,
            "agreement": asdict(self.agreement) if self.agreement else None,
        }


Trained = TypeVar("Trained", bound=TrainedDense[Any])
Data = TypeVar("Data", bound=Sized)


class DenseExport(ABC, Generic[Trained, Data, Parity]):
    """What differs between the exports of detectors and of segmenters.

    Attributes:
        kind: class of what is exported.
        parity: class of the comparison of answers.
        figure: what is measured of an int8 file: "AP" or "mIoU".
        most_images: the most images on which answers are compared.
        why_not: why other heads cannot be exported.
        libraries, figure_libraries: what exporting needs, and what measuring `figure` needs.
    """

    kind: ClassVar[type[TrainedDense[Any]]]
    parity: ClassVar[type[DenseParity]]
    figure: ClassVar[str]
    most_images: ClassVar[int]
    why_not: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ()
    figure_libraries: ClassVar[tuple[str, ...]] = ()

    def __init__(self, trained: Trained) -> None:
        self.trained = trained

    def network(self, form: Form) -> Any:
        """The inference network that is written."""
        return self.trained.fold(form)

    @abstractmethod
    def open(self, data: str, split: str) -> Data:
        """Open one split of a data set, which must have the classes of `trained`."""

    @abstractmethod
    def image(self, data: Data, index: int) -> Image.Image:
        """Decode an image of `data`; raises `ImageError` if it cannot be read."""

    @abstractmethod
    def measured(
        self, engine: Engine, data: Data, on_images: Callable[[int, int], None]
    ) -> tuple[float, int]:
        """`figure` in percent, 0 where nothing is annotated, and how many images are unreadable."""

    @abstractmethod
    def compared(self, engine: Engine, images: Sequence[Image.Image], precision: str) -> Parity:
        """The answers of a file's engine compared with those of `trained`."""

    def calibration_pixels(self, data: Data, on_images: Callable[[int, int], None]) -> list[Pixels]:
        """Up to 100 images (3, H, W) as the network sees them, spread evenly over a data set.

        Raises:
            DataError: none can be read.
        """
        sides = read_sides(self.trained.metadata.head, MULTIPLE)
        taken = min(len(data), _CALIBRATION_IMAGES)
        found: list[Pixels] = []
        for index in np.linspace(0, len(data) - 1, taken).round().astype(int).tolist():
            on_images(1, taken)
            with suppress(ImageError):
                image = self.image(data, index)
                found.append(pixels_of(as_reduced(image), sides).transpose(2, 0, 1))
        if not found:
            raise DataError(f"calibration needs readable images, got none of {taken}")
        return found

    def first_images(self, data: Data) -> list[Image.Image]:
        """The first `most_images` of a data set that can be read."""
        found: list[Image.Image] = []
        for index in range(len(data)):
            if len(found) == self.most_images:
                break
            with suppress(ImageError):
                found.append(self.image(data, index))
        return found


def export_dense(
    export: type[DenseExport[Any, Data, Parity]],
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
) -> DenseExportReport[Parity]:
    """Write a detector or segmenter for another engine, and compare the answers of both.

    Args:
        export: `DetectorExport` or `SegmenterExport`.
        path, format, precision, opset, on_images, on_step: see `splitattn.export`.
        weights: see `Detector` and `Segmenter`.
        calibration: annotated images or images with masks. For int8, ranges come from up to 100
            training images, and AP or mIoU is measured on the validation images. Answers are
            compared on some validation images, or on the photographs of the package.

    Raises:
        InputError: an argument is wrong, a library is missing, or the file cannot be written.
        WeightsError: the weights cannot be had, or are not those of a detector or segmenter.
        DataError: the calibration images cannot be used.
        ExportError: the answers of the file differ too much; it is discarded.
    """
    row = check_arguments(
        path,
        format=format,
        precision=precision,
        calibration=calibration,
        batch_size=batch_size,
        opset=opset,
    )
    trained = export.kind.read(weights)
    _check_exportable(trained, row, batch_size, export.why_not)
    require(f"exporting a {trained.what}", *export.libraries)
    if precision == "int8":
        require(f"comparing {export.figure}", *export.figure_libraries)
    own = export(trained)
    network = own.network(row.form)
    val = None if calibration is None else own.open(calibration, "val")

    def calibration_pixels() -> list[Pixels]:
        return own.calibration_pixels(own.open(str(calibration), "train"), on_images)

    def report(engine: Engine, facts: dict[str, Any]) -> DenseExportReport[Parity]:
        loss = None
        if precision == "int8" and val is not None:
            on_step(f"comparing {own.figure}")
            value, _ = own.measured(engine, val, on_images)
            in_floats = row.load_module().load(network, size=None, device="cpu")
            exact, unreadable = own.measured(in_floats, val, on_images)
            loss = Loss(
                figure=own.figure,
                value=value,
                exact=exact,
                images=len(val) - unreadable,
                unreadable=unreadable,
            )
        on_step(f"comparing {own.parity.answers}")
        images = [*map(decode, sample_photographs())] if val is None else own.first_images(val)
        parity = own.compared(engine, images, precision)
        return DenseExportReport(**facts, parity=parity, agreement=loss)

    settings = FileSettings(
        metadata=trained.metadata, precision=precision, dynamic_size=True, opset=opset
    )
    return write_compared(
        path,
        row,
        network,
        settings,
        calibration=calibration_pixels,
        report=report,
        on_step=on_step,
    )


def _check_exportable(
    trained: TrainedDense[Any], row: EngineRow, batch_size: int | None, why_not: str
) -> None:
    """Raise `InputError` unless a file of this kind can be made."""
    what, head, able = trained.what, trained.head, trained.folded_heads
    if head not in able:
        raise InputError(
            f"a {what} with head {head} cannot be exported: {why_not}. Train one with head "
            f"{able[0]}"
        )
    check_any_output(f"a {what}", row)
    if batch_size is not None:
        raise InputError(
            f"a {what}'s file takes any batch, got batch size {batch_size}: leave it out"
        )
