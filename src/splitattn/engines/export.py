"""Networks as files for other engines. None appears that computes something else."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from splitattn.data.sources import LabelledImages
from splitattn.engines.engine import LIBRARIES, EngineRuntime
from splitattn.engines.exported import load_exported
from splitattn.engines.pytorch import Exportable, TorchEngine, plain_engine, traced
from splitattn.engines.quantization import (
    CALIBRATION_IMAGES,
    Agreement,
    calibration_images,
    compare,
    comparison_images,
    quantized_onnx,
    quantized_openvino,
    sampled,
)
from splitattn.environment import describe
from splitattn.errors import InputError, WeightsError
from splitattn.files import replacing
from splitattn.images.samples import sample_photographs
from splitattn.libraries import require
from splitattn.nn.fusion import fuse
from splitattn.nn.parity import Parity, difference
from splitattn.nn.resnest import ResNeSt
from splitattn.preprocessing import Preprocessing
from splitattn.weights.metadata import METADATA_KEY, ModelMetadata, read_metadata
from splitattn.weights.resolve import ResolvedWeights

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch_export": ".pt2"}
PRECISIONS = ("fp32", "fp16", "int8")

# How far a probability may be from that of the plain network, whatever the batch. A label can then
# differ only where the plain network's best two are within twice that.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
# Rounding to eight bits moves probabilities further, so labels decide: how many, in percent, must
# be those of the plain network.
LEAST_AGREEMENT = 90.0

_BATCH_SIZES = (1, 2, 5)
# Pixels of the image for one of the last stage. Where any size is taken, one that is larger by this
# and one more is tried too: odd if the first is even, as records may hold for such sizes alone.
_REDUCTION = 32
_LIBRARIES = {"onnx": LIBRARIES["onnxruntime"], "openvino": LIBRARIES["openvino"]}


class ExportError(InputError):
    """An exported network does not compute what it should; its file was discarded."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was exported, and how equal it is.

    Attributes:
        path: the file that is opened to use it.
        format, precision: of the file.
        engine: what ran it for this report.
        size: bytes of all its files.
        parity: differences of probabilities on photographs, by batch.
        agreement: the labels of an int8 network compared with those of the plain one.
    """

    path: Path
    format: str
    precision: str
    engine: str
    size: int
    parity: Parity
    agreement: Agreement | None

    @property
    def passed(self) -> bool:
        """Whether the file may be used."""
        if self.agreement:
            return self.agreement.same_labels >= LEAST_AGREEMENT
        # All of them: a difference that is not a number must not pass.
        return all(row.absolute <= TOLERANCES[self.precision] for row in self.parity.differences)

    def as_dict(self) -> dict[str, Any]:
        """What is stored beside the file: ready for JSON."""
        return {
            "file": self.path.name,
            "format": self.format,
            "precision": self.precision,
            "engine": self.engine,
            "bytes": self.size,
            "tolerance": TOLERANCES.get(self.precision),
            "batches": [asdict(row) for row in self.parity.differences],
            "least_agreement": LEAST_AGREEMENT if self.agreement else None,
            "agreement": asdict(self.agreement) if self.agreement else None,
            "environment": describe(),
        }


def metadata_of_weights(weights: ResolvedWeights, *, num_classes: int) -> ModelMetadata:
    """What a file exported from `weights` must say about itself.

    Args:
        num_classes: outputs of the network; they are called by number if the weights come without
            names.

    Raises:
        WeightsError: the file of the weights is damaged.
    """
    own = read_metadata(weights.path)
    return ModelMetadata(
        model=weights.model,
        classes=weights.classes or tuple(map(str, range(num_classes))),
        preprocessing=weights.preprocessing,
        recipe=own.recipe if own else {},
        metrics=own.metrics if own else {},
    )


def export(
    model: ResNeSt,
    path: str | Path,
    *,
    metadata: ModelMetadata,
    format: str | None = None,
    precision: str = "fp32",
    calibration: str | None = None,
    dynamic_size: bool = False,
    workers: int = 0,
    on_images: Callable[[int], None] = lambda _: None,
) -> ExportReport:
    """Write `model`, fused, for another engine, and prove it on photographs.

    The network takes "images", normalized float32 (B, 3, H, W), and gives "logits", float32
    (B, classes), for any B. Its classes and preprocessing travel inside the file, so that
    `predict --weights` needs nothing else. Beside it appears `NAME.parity.json`, the report.

    Args:
        model: takes three channels; it stays as it is.
        path: of the file; an OpenVINO network has a second one, `.bin`, beside it.
        metadata: classes and preprocessing of `model`.
        format: "onnx", "openvino" or "torch_export"; None goes by the ending of `path`.
        precision: "fp32"; "fp16", in which ONNX and torch.export compute too, while OpenVINO stores
            weights and computes in what the device is told; "int8", for ONNX and OpenVINO.
        calibration: DATA or any folder of images. int8 takes its ranges from up to 300 of the
            training images and is compared on all validation images. Parity is measured on its
            images, or on five that come with the package.
        dynamic_size: it takes images of other heights and widths too; with torch.export, those of
            more than 32 pixels.
        workers: processes that decode validation images.
        on_images: told how many more validation images are done.

    Raises:
        InputError: an argument is wrong, a library is missing, or the file cannot be written.
        DataError: the calibration images cannot be used.
        ExportError: the file would compute something else; there is none then.
    """
    path = Path(path)
    format = check_arguments(path, format=format, precision=precision, calibration=calibration)
    preprocessing = metadata.preprocessing
    images = _own_images() if calibration is None else calibration_images(calibration)
    network = _Network(model=model, metadata=metadata, images=images, dynamic_size=dynamic_size)
    reference = EngineRuntime(plain_engine(model), preprocessing)
    with _appearing(path) as made:
        _WRITERS[format](network, made, precision)
        candidate = _runtime(made, metadata)
        agreement = None
        if precision == "int8" and calibration is not None:
            data, labelled = comparison_images(calibration, metadata)
            agreement = compare(
                reference,
                candidate,
                data,
                preprocessing,
                labelled=labelled,
                workers=workers,
                on_images=on_images,
            )
        sizes = (network.size, network.size + _REDUCTION + 1) if dynamic_size else (network.size,)
        report = ExportReport(
            path=path,
            format=format,
            precision=precision,
            engine=candidate.name,
            size=sum(file.stat().st_size for file in made.parent.iterdir()),
            parity=_parity(reference, candidate, images, preprocessing, sizes),
            agreement=agreement,
        )
        if not report.passed:
            raise _failure(report)
        stored = made.with_name(f"{path.name}.parity.json")
        stored.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    return report


def check_arguments(
    path: Path, *, format: str | None, precision: str, calibration: str | None
) -> str:
    """The format, once these arguments of `export` proved to go together.

    Raises:
        InputError: they do not, or a library is missing.
    """
    if format is None:
        format = next((name for name, end in SUFFIXES.items() if end == path.suffix), None)
        if format is None:
            ends = ", ".join(SUFFIXES.values())
            raise InputError(f"an exported file must end in one of {ends}, got {path}")
    if format not in SUFFIXES:
        raise InputError(f"format must be one of {', '.join(SUFFIXES)}, got {format!r}")
    if path.suffix != SUFFIXES[format]:
        raise InputError(f"a file in format {format} must end in {SUFFIXES[format]}, got {path}")
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "int8" and format == "torch_export":
        raise InputError(
            "format torch_export must be fp32 or fp16, got int8: take onnx or openvino"
        )
    if precision == "int8" and calibration is None:
        raise InputError("int8 needs images to calibrate on, got none: name DATA or a folder")
    weights = path.with_suffix(".bin")
    if format == "openvino" and weights.exists() and not path.exists():
        raise InputError(
            f"the weights of {path.name} would replace {weights}, which is not theirs: "
            "choose another name, or remove that file"
        )
    require(f"format {format}", *_LIBRARIES.get(format, ()))
    if precision == "int8" and format == "openvino":
        require("int8", "nncf")
    return format


@dataclass(frozen=True, kw_only=True)
class _Network:
    """What is exported, and images to calibrate it on."""

    model: ResNeSt
    metadata: ModelMetadata
    images: LabelledImages
    dynamic_size: bool

    @property
    def size(self) -> int:
        return self.metadata.preprocessing.size

    def fused(self, target: str, *, half: bool = False) -> Exportable:
        return Exportable(fuse(self.model, target=target), half=half)

    def calibration(self) -> list[Tensor]:
        return sampled(self.images, self.metadata.preprocessing, CALIBRATION_IMAGES)


def _write_onnx(network: _Network, path: Path, precision: str) -> None:
    import onnx

    from splitattn.engines.onnx_runtime import convert

    fused = network.fused("onnxruntime", half=precision == "fp16")
    graph = convert(fused, size=network.size, dynamic_size=network.dynamic_size)
    if precision == "int8":
        graph = quantized_onnx(graph, network.calibration(), network.metadata.preprocessing)
    onnx.helper.set_model_props(graph, {METADATA_KEY: network.metadata.to_json()})
    onnx.save(graph, path)


def _write_openvino(network: _Network, path: Path, precision: str) -> None:
    from splitattn.engines.open_vino import convert, save

    fused = network.fused("openvino")
    graph = convert(fused, size=network.size, dynamic_size=network.dynamic_size)
    if precision == "int8":
        graph = quantized_openvino(graph, network.calibration(), network.metadata.preprocessing)
    save(graph, path, metadata=network.metadata, half=precision == "fp16")


def _write_program(network: _Network, path: Path, precision: str) -> None:
    if network.dynamic_size and network.size <= _REDUCTION:
        raise InputError(
            f"dynamic_size in torch_export needs images of more than {_REDUCTION} pixels, "
            f"got {network.size}: leave it out, or export to ONNX"
        )
    fused = network.fused("torch", half=precision == "fp16")
    program = traced(fused, size=network.size, dynamic_size=network.dynamic_size)
    extra = {f"{METADATA_KEY}.json": network.metadata.to_json()}
    torch.export.save(program, path, extra_files=extra)


_WRITERS: dict[str, Callable[[_Network, Path, str], None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torch_export": _write_program,
}


def _runtime(path: Path, metadata: ModelMetadata) -> EngineRuntime:
    """The file just written, as its users will run it."""
    if path.suffix == SUFFIXES["torch_export"]:
        # Safe to load: nobody else could have written it.
        program = torch.export.load(path).module()
        return EngineRuntime(TorchEngine(program, torch.device("cpu")), metadata.preprocessing)
    try:
        return load_exported(path, device="cpu").runtime
    except WeightsError as error:
        raise ExportError(f"{path.name} was not written: it could not be loaded again") from error


def _own_images() -> LabelledImages:
    paths = sample_photographs()
    names = [path.name for path in paths]
    return LabelledImages(
        origin="splitattn", classes=("",), images=paths, labels=[0] * len(paths), names=names
    )


def _parity(
    reference: EngineRuntime,
    candidate: EngineRuntime,
    images: LabelledImages,
    preprocessing: Preprocessing,
    sizes: tuple[int, ...],
) -> Parity:
    """Probabilities of the same photographs, one alone and several at once."""
    most = max(_BATCH_SIZES)
    rows = []
    for size in sizes:
        pictures = sampled(images, replace(preprocessing, size=size), most)
        photographs = torch.stack((pictures * most)[:most])
        expected = reference.run(photographs)
        try:
            found = [candidate.run(photographs[:n]) for n in _BATCH_SIZES]
        except Exception as error:  # engines raise many kinds, without a common base
            raise ExportError(
                f"the network was not written: in {candidate.name} it does not take images of "
                f"{size} pixels; leave out --dynamic-size, or take PyTorch 2.13 or another format"
            ) from error
        rows += [difference(expected[: len(one)], one, size) for one in found]
    return Parity(differences=tuple(rows))


def _failure(report: ExportReport) -> ExportError:
    if report.agreement:
        fault = (
            f"{LEAST_AGREEMENT:g} % of the labels must stay, "
            f"got {report.agreement.same_labels:.2f} %: "
            "calibrate on images like those it will see, or take fp16"
        )
    else:
        fault = (
            f"probabilities must be within {TOLERANCES[report.precision]:g} of the network's, "
            f"got {report.parity.absolute:.2g}: take fp32, or another format"
        )
    return ExportError(f"{report.path} was not written: in {report.engine} {fault}")


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A path of that name in a temporary folder, whose files appear beside `path` in the end.

    What is opened comes last, and an older one of two files goes first, so that it never stands
    beside another's weights.
    """
    try:
        if path.is_dir():
            raise InputError(f"an exported network is a file, got {path}, a folder")
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            yield Path(folder) / path.name
            files = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)
            if path.with_suffix(".bin") in [path.with_name(file.name) for file in files]:
                path.unlink(missing_ok=True)
            for file in files:
                with replacing(path.with_name(file.name)) as temporary:
                    file.replace(temporary)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
