"""Exports networks for other engines. A file is written only if it computes the same outputs."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from splitattn.agreement import Agreement, compare
from splitattn.data.calibration import (
    calibration_images,
    comparison_images,
    package_photographs,
    sampled,
)
from splitattn.data.labeled import LabeledImages
from splitattn.differences import Difference, Parity, difference
from splitattn.engines.engine import ACTIVATIONS, Engine, FileSettings
from splitattn.engines.table import (
    PRECISIONS,
    EngineRow,
    check_any_output,
    file_engine,
    formats,
)
from splitattn.environment import describe
from splitattn.errors import InputError, WeightsError, check_choice, write_failure
from splitattn.files import check_can_write, is_folder, replacing
from splitattn.graph.folding import CLASS_MAPS
from splitattn.images.preprocess import Pixels, normalize
from splitattn.libraries import require
from splitattn.opening import TrainedNetwork, open_exported
from splitattn.preprocessing import Preprocessing

if TYPE_CHECKING:
    from splitattn.graph.onnx_model import Network

# How far a probability may be from the plain network's, at any batch size. A label can then differ
# only where the plain network's best two probabilities are within twice that.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
# int8 changes probabilities more, so labels are compared instead: percent that must stay the same.
LEAST_AGREEMENT = 90.0

QUANTIZING = "quantizing, a minute or more"
_CALIBRATION_IMAGES = 300
# The first opset whose QuantizeLinear has a scale for each channel.
_INT8_OPSET = 13
_BATCH_SIZES = (1, 4)
# With a dynamic size, a larger size is tried too: larger by 32, the stride of the last stage, and
# by 1, so that one of the two sizes is odd.
_LARGER_BY = 33


class ExportError(InputError):
    """An exported network does not compute what it should; its file was discarded."""


@dataclass(frozen=True, kw_only=True)
class ExportedFile(ABC):
    """A file that was exported, and how it was compared with its network.

    Attributes:
        path: the file.
        model: name of the network's architecture, or of its backbone.
        format, precision: of the file.
        engine: what ran the file for this report.
        size: bytes of all files that belong to it.
    """

    path: Path
    model: str
    format: str
    precision: str
    engine: str
    size: int

    @property
    @abstractmethod
    def passed(self) -> bool:
        """Whether the file may be used."""

    @property
    @abstractmethod
    def fault(self) -> str:
        """Why the file may not be used: the rule, what was measured, and what to do."""

    def as_dict(self) -> dict[str, Any]:
        """What is stored beside the file, ready for JSON."""
        return {
            "file": self.path.name,
            "model": self.model,
            "format": self.format,
            "precision": self.precision,
            "engine": self.engine,
            "bytes": self.size,
            "environment": describe(),
        }

    def store(self, made: Path) -> None:
        """Write the report beside the file, which is still at `made`."""
        stored = made.with_name(f"{self.path.name}.parity.json")
        stored.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")


Report = TypeVar("Report", bound=ExportedFile)


@dataclass(frozen=True, kw_only=True)
class ExportReport(ExportedFile):
    """The report of an exported network.

    Attributes:
        parity: differences of probabilities on photographs, by batch.
        agreement: labels of an int8 network compared with those of the fp32 network.
    """

    parity: Parity
    agreement: Agreement | None

    @property
    def passed(self) -> bool:
        """Whether the file may be used."""
        if self.agreement:
            return self.agreement.same_labels >= LEAST_AGREEMENT
        # Each of them, because a difference that is NaN must not pass.
        return all(row.absolute <= TOLERANCES[self.precision] for row in self.parity.differences)

    @property
    def fault(self) -> str:
        """See `ExportedFile`."""
        if self.agreement:
            return (
                f"{LEAST_AGREEMENT:g} % of the labels must stay, "
                f"got {self.agreement.same_labels:.2f} %: "
                "calibrate on images like those it will see, or use fp16"
            )
        return (
            f"probabilities must be within {TOLERANCES[self.precision]:g} of the network's, "
            f"got {self.parity.absolute:.2g}: use fp32, or another format"
        )

    def as_dict(self) -> dict[str, Any]:
        """What is stored beside the file, ready for JSON."""
        return super().as_dict() | {
            "tolerance": TOLERANCES.get(self.precision),
            "batches": [asdict(row) for row in self.parity.differences],
            "least_agreement": LEAST_AGREEMENT if self.agreement else None,
            "agreement": asdict(self.agreement) if self.agreement else None,
        }


def export_network(
    network: TrainedNetwork,
    path: Path,
    *,
    format: str | None = None,
    precision: str = "fp32",
    calibration: str | None = None,
    batch_size: int | None = None,
    dynamic_size: bool = False,
    opset: int | None = None,
    class_maps: bool = False,
    workers: int | None = None,
    on_images: Callable[[int, int], None] = lambda _, __: None,
    on_step: Callable[[str], None] = lambda _: None,
) -> ExportReport:
    """`splitattn.export` for a network that is open already."""
    row = check_arguments(
        path,
        format=format,
        precision=precision,
        calibration=calibration,
        batch_size=batch_size,
        opset=opset,
    )
    if class_maps:
        check_any_output("class maps", row)
    preprocessing = network.metadata.preprocessing
    images = (
        package_photographs(preprocessing.channels)
        if calibration is None
        else calibration_images(calibration)
    )
    folded = network.fold(row.form)
    if class_maps:
        folded = replace(folded, outputs=("logits", CLASS_MAPS))
    settings = FileSettings(
        metadata=network.metadata,
        precision=precision,
        batch=batch_size,
        dynamic_size=dynamic_size,
        opset=opset,
    )

    def calibration_pixels() -> Sequence[Pixels]:
        pixels = sampled(
            images, preprocessing, _CALIBRATION_IMAGES, workers=workers, on_images=on_images
        )
        return _Counted(pixels, on_step, on_images)

    def report(engine: Engine, facts: dict[str, Any]) -> ExportReport:
        agreement = None
        if calibration is not None and precision == "int8":
            on_step("comparing labels")
            data, labeled = comparison_images(calibration, network.metadata.classes)
            agreement = compare(
                network.load("onnxruntime", "cpu"),
                engine,
                data,
                preprocessing,
                labeled=labeled,
                activation=network.metadata.activation,
                workers=workers,
                on_images=on_images,
            )
        on_step("comparing probabilities")
        parity = _parity(network, engine, images, settings)
        return ExportReport(**facts, parity=parity, agreement=agreement)

    return write_compared(
        path, row, folded, settings, calibration=calibration_pixels, report=report, on_step=on_step
    )


def write_compared(
    path: Path,
    row: EngineRow,
    network: "Network",
    settings: FileSettings,
    *,
    calibration: Callable[[], Sequence[Pixels]],
    report: Callable[[Engine, dict[str, Any]], Report],
    on_step: Callable[[str], None],
) -> Report:
    """Write a network to a file, which appears only if its report passes.

    Args:
        row: the engine that the file is for.
        settings: without calibration images.
        calibration: gives the calibration images, for int8.
        report: compares the file, as its engine runs it; takes the fields of `ExportedFile`.
        on_step: called with what is done next.

    Raises:
        InputError: the network is too large for a file, or the file cannot be written.
        ExportError: the report does not pass; the file is discarded.
    """
    module = row.load_file_module()
    module.check_network(network, settings)
    with _appearing(path) as made:
        if settings.precision == "int8":
            on_step("reading calibration images")
            settings = replace(settings, calibration=calibration())
        on_step(QUANTIZING if settings.precision == "int8" else "writing")
        module.write(network, made, settings)
        engine = _reopened(row, made)
        found = report(
            engine,
            {
                "path": path,
                "model": settings.metadata.model,
                "format": row.format,
                "precision": settings.precision,
                "engine": engine.name,
                "size": sum(file.stat().st_size for file in made.parent.iterdir()),
            },
        )
        if not found.passed:
            raise ExportError(f"{path} was not written: in {found.engine} {found.fault}")
        found.store(made)
    return found


def check_arguments(
    path: Path,
    *,
    format: str | None,
    precision: str,
    calibration: str | None,
    batch_size: int | None,
    opset: int | None,
) -> EngineRow:
    """Check the arguments of `export`, and return the engine of the file.

    Raises:
        InputError: they do not go together, a library is missing, or `path` cannot be written.
    """
    known = formats()
    if format is not None:
        check_choice("format", format, known)
    row = file_engine(path) if format is None else known[format]
    if row is None:
        endings = ", ".join(str(row.suffix) for row in known.values())
        raise InputError(f"an exported file must end in one of {endings}, got {path}")
    if path.suffix != row.suffix:
        raise InputError(f"a file in format {row.format} must end in {row.suffix}, got {path}")
    check_choice("precision", precision, PRECISIONS)
    if precision not in row.precisions:
        able = " or ".join(name for name, other in known.items() if precision in other.precisions)
        raise InputError(
            f"format {row.format} must be {' or '.join(row.precisions)}, got {precision}; "
            f"use {able}"
        )
    if precision == "int8" and calibration is None:
        raise InputError("int8 needs images to calibrate on: pass --calibration DATA or a folder")
    if is_folder(path):
        raise InputError(f"an exported network is a file, got {path}, a folder")
    check_can_write(path)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch size must be at least 1, got {batch_size}")
    if opset is not None and not row.opsets:
        raise InputError(f"--opset belongs to ONNX files, got {opset} for {path.name}")
    lowest = _INT8_OPSET if precision == "int8" else 0
    if opset is not None and (opset not in row.opsets or opset < lowest):
        first = max(row.opsets[0], lowest)
        raise InputError(f"opset must be {first} to {row.opsets[-1]} for {precision}, got {opset}")
    beside = row.beside and path.with_suffix(row.beside)
    if beside and beside.exists() and not path.exists():
        raise InputError(
            f"the weights of {path.name} would replace {beside}, which belongs to something else: "
            "choose another name, or remove that file"
        )
    require(f"format {row.format}", *row.libraries, *row.precisions[precision])
    return row


def _reopened(row: EngineRow, path: Path) -> Engine:
    """The file just written, as its users will run it."""
    try:
        engine, _ = open_exported(row, path, device="cpu", trusted=True)
    except WeightsError as error:
        raise ExportError(f"{path.name} was not written: it could not be loaded again") from error
    return engine


def _parity(
    network: TrainedNetwork, candidate: Engine, images: LabeledImages, settings: FileSettings
) -> Parity:
    """Differences of probabilities on the same photographs, one alone and several at once."""
    preprocessing = network.metadata.preprocessing
    sizes = [preprocessing.size]
    if settings.dynamic_size:
        sizes.append(preprocessing.size + _LARGER_BY)
    return Parity(
        differences=tuple(
            row
            for size in sizes
            for row in _differences(network, candidate, images, replace(preprocessing, size=size))
        )
    )


def _differences(
    network: TrainedNetwork,
    candidate: Engine,
    images: LabeledImages,
    preprocessing: Preprocessing,
) -> list[Difference]:
    reference, activate = network.reference(), ACTIVATIONS[network.metadata.activation]
    most = max(_BATCH_SIZES)
    pictures = sampled(images, preprocessing, most)
    pixels = np.stack((pictures * most)[:most])
    expected = activate(reference(normalize(pixels, preprocessing)))
    try:
        found = [activate(candidate.run(pixels[:n], preprocessing)) for n in _BATCH_SIZES]
    except Exception as error:  # engines raise many kinds of errors
        raise ExportError(
            f"the network was not written: in {candidate.name} it does not take images of "
            f"{preprocessing.size} pixels; leave out --dynamic-size, or use another format"
        ) from error
    return [difference(expected[: len(one)], one, image_size=preprocessing.size) for one in found]


class _Counted(Sequence[Pixels]):
    """Calibration images that report each one that is read. Each pass counts from 0."""

    def __init__(
        self,
        pixels: Sequence[Pixels],
        on_step: Callable[[str], None],
        on_images: Callable[[int, int], None],
    ) -> None:
        self._pixels, self._on_step, self._on_images = pixels, on_step, on_images
        self._asked = 0

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: Any) -> Any:
        pixels = self._pixels[index]
        if self._asked and self._asked % len(self) == 0:
            self._on_step(QUANTIZING)
        self._asked += 1
        self._on_images(1, len(self))
        return pixels


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder. At the end its files move to where `path` is.

    The file that people open moves last. If it has a second file with its weights, an older file at
    `path` is removed first, so that it never lies beside the weights of another network.
    """
    try:
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            yield Path(folder) / path.name
            files = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)
            if len({file.stem for file in files}) < len(files):
                path.unlink(missing_ok=True)
            for file in files:
                with replacing(path.with_name(file.name)) as temporary:
                    file.replace(temporary)
    except OSError as error:
        raise InputError(write_failure(path, error)) from error
