"""The ladder: each rung is a network, ours or a peer's, in an engine."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from splitattn.architectures import TIMM_NAMES, architecture, split_name
from splitattn.engines.engine import Engine, FileSettings
from splitattn.engines.pytorch import traced
from splitattn.engines.table import ENGINES, EngineRow, find_engine
from splitattn.errors import InputError
from splitattn.graph.folding import FoldedNetwork, Form
from splitattn.libraries import installed, torchvision_imported
from splitattn.nn.fusion import FusedResNeSt
from splitattn.nn.resnest import Bottleneck, ResNeSt
from splitattn.opening import TrainedNetwork
from splitattn.preprocessing import Preprocessing
from splitattn.weights.metadata import ModelMetadata

logger = logging.getLogger(__name__)

# The paper's faster variant of a network, which is measured beside it.
_CHEAPER = {"resnest50": "resnest50_fast_2s1x64d"}

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_AS_TRAINED = "as trained"

# Normalized float32 images (B, 3, H, W), on the setting's device, to logits.
Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rungs have in common.

    Attributes:
        device: "cpu" or "cuda".
        pixels: photographs, uint8 (3, size, size) each, for calibration.
        preprocessing: how they become the networks' input.
        folder: keeps exported networks, which take long to make.
    """

    device: torch.device
    pixels: Sequence[NDArray[np.uint8]]
    preprocessing: Preprocessing
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network that is measured. Its weights are random: speed does not depend on them.

    Attributes:
        name: the project and its name of the network.
        form: "as trained", or the form of its rewrite: "branches" or "grouped".
        trained: makes the network as it is trained, in evaluation mode: the reference.
        folded: makes the rewritten network; None for a network that runs as trained.
    """

    name: str
    form: str
    trained: Callable[[], nn.Module]
    folded: Callable[[], FoldedNetwork] | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's."""
        return self.name.startswith("splitattn ")

    def module(self) -> nn.Module:
        """The network as PyTorch runs it."""
        return FusedResNeSt(self.folded()) if self.folded else self.trained()


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to run a network.

    Attributes:
        engine: name of the engine or, for PyTorch, of the way.
        precision: of most of the arithmetic: "fp32", "bf16" or "int8".
        load: takes a subject, a setting, and a path without suffix for an exported network.
        libraries: that it needs besides PyTorch.
        seconds_to_load: about how long a ResNeSt-50 takes to load, on two cores.
    """

    engine: str
    precision: str
    load: Callable[[Subject, Setting, Path], Runner]
    libraries: tuple[str, ...] = ()
    seconds_to_load: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One line of the ladder."""

    subject: Subject
    way: Way

    @property
    def label(self) -> str:
        """Network, form, engine and precision in one line."""
        return f"{self.subject.name}, {self.subject.form}, {self.way.engine} {self.way.precision}"

    def load(self, setting: Setting) -> Runner:
        """The network, ready to run."""
        name = "".join(letter if letter.isalnum() else "-" for letter in self.label)
        return self.way.load(self.subject, setting, setting.folder / name)


def rungs(model: str, device: str, *, ladder: bool = False, only: str = "") -> list[Rung]:
    """The rungs whose libraries are installed; `warn_of_left_out` names the others.

    Args:
        model: name of our network.
        device: "cpu" or "cuda".
        ladder: also every form, torch.compile, the cheaper variant, and the networks of timm and
            torchvision. Otherwise the network in each engine, in the form that it runs fastest.
        only: text that a rung's label must hold.

    Raises:
        InputError: there is no such model or no such rung.
    """
    chosen = _chosen(model, device, ladder=ladder, only=only)
    return [rung for rung in chosen if installed(*rung.way.libraries)]


def warn_of_left_out(model: str, device: str, *, ladder: bool = False, only: str = "") -> None:
    """Log a warning for each engine that cannot be measured because a library is missing.

    Args:
        model, device, ladder, only: see `rungs`.
    """
    chosen = _chosen(model, device, ladder=ladder, only=only)
    for way in dict.fromkeys(rung.way for rung in chosen if not installed(*rung.way.libraries)):
        needed = " and ".join(way.libraries)
        logger.warning("left out: %s %s, which needs %s", way.engine, way.precision, needed)
    if ladder and not installed("timm"):
        logger.warning("left out: timm's networks, which need timm")


def _chosen(model: str, device: str, *, ladder: bool, only: str) -> list[Rung]:
    model, _ = split_name(model)
    ways = _ways(device)
    if ladder:
        subjects = [*_ours(model), *_peers(model)]
        every = [
            Rung(subject=subject, way=way)
            for subject in subjects
            for way in ways
            if _worth_measuring(subject, way)
        ]
    else:
        every = [
            Rung(subject=_rewritten(model, _fastest_form(way, device)), way=way)
            for way in ways
            if way.engine not in ("compile", "torch NCHW")
        ]
    chosen = [rung for rung in every if only in rung.label]
    if not chosen:
        raise InputError(f"--only must be part of a label such as {every[0].label!r}, got {only!r}")
    return chosen


def _ours(model: str) -> Iterator[Subject]:
    forms: tuple[Form, ...] = ("branches", "grouped")
    for name in filter(None, (model, _CHEAPER.get(model))):
        yield Subject(name=f"splitattn {name}", form=_AS_TRAINED, trained=partial(_random, name))
        for form in forms:
            yield _rewritten(name, form)


def _rewritten(model: str, form: Form) -> Subject:
    return Subject(
        name=f"splitattn {model}",
        form=form,
        trained=partial(_random, model),
        folded=partial(_folded, model, form),
    )


def _peers(model: str) -> Iterator[Subject]:
    if installed("timm"):
        if model in TIMM_NAMES:
            twin = partial(_twin, model)
            yield Subject(name=f"timm {TIMM_NAMES[model]}", form=_AS_TRAINED, trained=twin)
        resnet50d = partial(_timm, "resnet50d")
        yield Subject(name="timm resnet50d", form=_AS_TRAINED, trained=resnet50d)
    yield Subject(name="torchvision resnet50", form=_AS_TRAINED, trained=_torchvision)


def _fastest_form(way: Way, device: str) -> Form:
    row = find_engine("torch" if way.engine.startswith("torch") else way.engine)
    return row.cuda_form if device == "cuda" else row.form


def _worth_measuring(subject: Subject, way: Way) -> bool:
    """Whether to measure a subject in this way.

    Our network as trained runs only in PyTorch with channels last; rewritten, in all ways but
    PyTorch's slower memory format; other projects' networks only in engines that take them.
    """
    if not subject.is_ours:
        return way.engine in _IN_TORCH or way.engine in _PEERS
    return way.engine == "torch" if subject.folded is None else way.engine != "torch NCHW"


def _random(name: str) -> ResNeSt:
    torch.manual_seed(0)
    model = ResNeSt(architecture(name)).eval()
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    for block in blocks:
        # It is zero in a new network, and int8 would lose nothing on maps of zeros.
        nn.init.constant_(block.bn3.weight, len(blocks) ** -0.5)
    return model


def _folded(model: str, form: Form) -> FoldedNetwork:
    network = _random(model)
    return TrainedNetwork(
        architecture=network.architecture,
        tensors={key: value.numpy() for key, value in network.state_dict().items()},
        metadata=_metadata(model, Preprocessing(size=224, crop_fraction=1.0)),
        weights="random",
    ).fold(form)


def _metadata(model: str, preprocessing: Preprocessing) -> ModelMetadata:
    return ModelMetadata(model=model, classes=(), preprocessing=preprocessing)


def _twin(model: str) -> nn.Module:
    network = _timm(TIMM_NAMES[model])
    network.load_state_dict(_random(model).state_dict())
    return network


def _timm(name: str) -> nn.Module:
    with torchvision_imported("a model of timm"):
        import timm

    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name, pretrained=False, zero_init_last=False)
    return network.eval()


def _torchvision() -> nn.Module:
    with torchvision_imported("a model of torchvision"):
        from torchvision.models import resnet50

    torch.manual_seed(0)
    network: nn.Module = resnet50()
    return network.eval()


def _eager(precision: str) -> Callable[[Subject, Setting, Path], Runner]:
    def load(subject: Subject, setting: Setting, _: Path) -> Runner:
        return _channels_last(subject.module(), setting.device, precision)

    return load


def _compiled(precision: str) -> Callable[[Subject, Setting, Path], Runner]:
    def load(subject: Subject, setting: Setting, _: Path) -> Runner:
        network = subject.module()
        network.compile(dynamic=False)
        return _channels_last(network, setting.device, precision)

    return load


def _contiguous(precision: str) -> Callable[[Subject, Setting, Path], Runner]:
    def load(subject: Subject, setting: Setting, _: Path) -> Runner:
        network = subject.module().to(setting.device, _DTYPES[precision])
        return lambda images: network(images.to(_DTYPES[precision]))

    return load


def _channels_last(network: nn.Module, device: torch.device, precision: str) -> Runner:
    network = network.to(device, _DTYPES[precision]).to(memory_format=torch.channels_last)

    def run(images: Tensor) -> Tensor:
        images = images.to(_DTYPES[precision], memory_format=torch.channels_last)
        logits: Tensor = network(images)
        return logits

    return run


def _in_engine(engine: Engine) -> Runner:
    return lambda images: torch.from_numpy(engine.logits(images.numpy()))


_IN_TORCH = {"torch": _eager, "torch NCHW": _contiguous, "compile": _compiled}


def _from_file(row: EngineRow, precision: str) -> Callable[[Subject, Setting, Path], Runner]:
    """In an engine that has a file format; the file is written only once."""

    def load(subject: Subject, setting: Setting, path: Path) -> Runner:
        assert row.suffix
        path = path.with_suffix(row.suffix)
        module = row.load_file_module()
        if not path.exists():
            settings = FileSettings(
                metadata=_metadata(subject.name, setting.preprocessing),
                precision=precision,
                calibration=setting.pixels,
            )
            if subject.folded:
                module.write(subject.folded(), path, settings)
            else:
                _PEERS[row.name].write(_exported(subject, setting), path, settings)
        # Not `open_file`, where there is another way: it refuses files of other projects' networks.
        if row.name in _PEERS:
            return _in_engine(_PEERS[row.name].open(path))
        return _in_engine(module.open_file(path, device="cpu", trusted=True)[0])

    return load


def _write_onnx(model: Any, path: Path, settings: FileSettings) -> None:
    import onnx

    from splitattn.engines import onnx_runtime

    if settings.precision == "int8":
        model = onnx_runtime.quantize(model, settings.calibration_images(), floats=[])
    onnx.save(model, path)


def _write_openvino(model: Any, path: Path, settings: FileSettings) -> None:
    from splitattn.engines import open_vino

    converted = open_vino.core().read_model(model.SerializeToString())
    if settings.precision == "int8":
        converted = open_vino.quantize(converted, settings.calibration_images(), floats=[])
    open_vino.save(converted, path)


def _open_onnx(path: Path) -> Engine:
    from splitattn.engines.onnx_runtime import OnnxEngine

    return OnnxEngine(path, device="cpu")


def _open_openvino(path: Path) -> Engine:
    from splitattn.engines.open_vino import OpenVinoEngine

    return OpenVinoEngine(path, device="cpu")


class _PeerFile(NamedTuple):
    write: Callable[[Any, Path, FileSettings], None]
    open: Callable[[Path], Engine]


# How the networks of other projects get into an engine. Other engines measure ours only.
_PEERS = {
    "onnxruntime": _PeerFile(_write_onnx, _open_onnx),
    "openvino": _PeerFile(_write_openvino, _open_openvino),
}


def _exported(subject: Subject, setting: Setting) -> Any:
    """A peer's network as PyTorch's own exporter writes it to ONNX."""
    program = torch.onnx.export(
        traced(_Peer(subject.trained()), setting.preprocessing.size),
        input_names=["images"],
        output_names=["logits"],
        opset_version=20,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


class _Peer(nn.Module):
    """Calls the input "images", whatever the network calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def _ways(device: str) -> list[Way]:
    """PyTorch's ways, then on a CPU the file format of each other engine of the table."""
    precision = "fp32" if device == "cpu" else "bf16"
    ways = [
        Way(
            engine=name,
            precision=precision,
            load=load(precision),
            seconds_to_load=30.0 if name == "compile" else 2.0,
        )
        for name, load in _IN_TORCH.items()
    ]
    if device == "cpu":
        ways += [
            Way(
                engine=row.name,
                precision=precision,
                load=_from_file(row, precision),
                libraries=(*row.libraries, *row.precisions[precision]),
                seconds_to_load=15.0 if precision == "int8" else 2.0,
            )
            for row in ENGINES
            if "torch" not in row.libraries
            for precision in ("fp32", "int8")
            if precision in row.precisions
        ]
    return ways
