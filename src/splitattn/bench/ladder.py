"""The rungs of the ladder: each is a network, ours or a peer's, in an engine."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from splitattn.architectures import TIMM_NAMES, architecture, split_name
from splitattn.engines.engine import LIBRARIES
from splitattn.engines.pytorch import Exportable, TorchEngine
from splitattn.engines.quantization import FLOAT_PARTS, quantized_onnx, quantized_openvino
from splitattn.errors import InputError
from splitattn.libraries import installed, require
from splitattn.nn.fusion import Form, fuse
from splitattn.nn.resnest import Bottleneck, ResNeSt
from splitattn.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

# The paper's own answer to the cost of a network, measured beside it.
_CHEAPER = {"resnest50": "resnest50_fast_2s1x64d"}

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Normalized float32 images (B, 3, H, W), on the setting's device, to logits.
Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rungs have in common.

    Attributes:
        device: "cpu" or "cuda".
        pixels: photographs, uint8 (N, 3, size, size), for calibration.
        preprocessing: how they become the networks' input.
        folder: keeps converted networks, which take long to make.
    """

    device: torch.device
    pixels: Tensor
    preprocessing: Preprocessing
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network that is measured. Its weights are random: speed does not depend on them.

    Attributes:
        name: whose it is and what they call it.
        ours: whether it is this project's.
        form: "as trained", or how it is rewritten: "branches" or "grouped".
        trained: makes it as it is trained, in evaluation mode: what is right.
        build: makes it as it is run.
    """

    name: str
    ours: bool
    form: str
    trained: Callable[[], nn.Module]
    build: Callable[[], nn.Module]

    @property
    def rewritten(self) -> bool:
        """Whether it went through `fuse`."""
        return self.form != "as trained"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A way to run a network.

    Attributes:
        name: of the library or, for PyTorch, of the way.
        precision: of most of the arithmetic: "fp32", "bf16" or "int8".
        load: gets a subject, a setting, and a path without suffix for a converted network.
        libraries: that it needs besides PyTorch.
    """

    name: str
    precision: str
    load: Callable[[Subject, Setting, Path], Runner]
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One line of the ladder."""

    subject: Subject
    engine: Engine

    @property
    def label(self) -> str:
        """All of it in one line."""
        return (
            f"{self.subject.name}, {self.subject.form}, {self.engine.name} {self.engine.precision}"
        )

    def load(self, setting: Setting) -> Runner:
        """The network ready to run."""
        name = "".join(letter if letter.isalnum() else "-" for letter in self.label)
        return self.engine.load(self.subject, setting, setting.folder / name)


def rungs(model: str, device: str, *, peers: bool = True, only: str = "") -> list[Rung]:
    """The ladder of `model`, as far as its engines are installed; a warning names what is not.

    Args:
        model: name of our network.
        device: "cpu" or "cuda".
        peers: whether other projects' networks take part.
        only: text that a rung's label must hold.

    Raises:
        InputError: there is no such model or no such rung, or timm is missing for its peers.
    """
    model, _ = split_name(model)
    if peers:
        require("a comparison with peers", "timm")
    ladder = [
        Rung(subject=subject, engine=engine)
        for subject in (*_ours(model), *(_peers(model) if peers else ()))
        for engine in (_ON_CPU if device == "cpu" else _ON_CUDA)
        if _worth_measuring(subject, engine)
    ]
    chosen = [rung for rung in ladder if only in rung.label]
    if not chosen:
        raise InputError(
            f"a rung must hold the text to choose by, such as {ladder[0].label!r}; got {only!r}"
        )
    able = [rung for rung in chosen if installed(*rung.engine.libraries)]
    for engine in dict.fromkeys(rung.engine for rung in chosen if rung not in able):
        needed = " and ".join(engine.libraries)
        logger.warning("left out: %s %s, which needs %s", engine.name, engine.precision, needed)
    return able


def _ours(model: str) -> Iterator[Subject]:
    forms: tuple[Form, ...] = ("branches", "grouped")
    for name in filter(None, (model, _CHEAPER.get(model))):
        trained = partial(_random, name)
        yield _as_trained(f"splitattn {name}", trained, ours=True)
        for form in forms:
            yield Subject(
                name=f"splitattn {name}",
                ours=True,
                form=form,
                trained=trained,
                build=partial(_fused, name, form),
            )


def _peers(model: str) -> Iterator[Subject]:
    if model in TIMM_NAMES:
        yield _as_trained(f"timm {TIMM_NAMES[model]}", partial(_twin, model))
    yield _as_trained("timm resnet50d", partial(_timm, "resnet50d"))
    yield _as_trained("torchvision resnet50", _torchvision)


def _as_trained(name: str, build: Callable[[], nn.Module], *, ours: bool = False) -> Subject:
    return Subject(name=name, ours=ours, form="as trained", trained=build, build=build)


def _worth_measuring(subject: Subject, engine: Engine) -> bool:
    """Nobody would run ours un-rewritten but in PyTorch, nor rewritten in the slower format."""
    if not subject.ours:
        return True
    return engine.name != "torch NCHW" if subject.rewritten else engine.name == "torch"


def _random(name: str) -> ResNeSt:
    torch.manual_seed(0)
    model = ResNeSt(architecture(name)).eval()
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    for block in blocks:
        # Zero in a new network: maps of zeros would be too easy for eight bits.
        nn.init.constant_(block.bn3.weight, len(blocks) ** -0.5)
    return model


def _fused(name: str, form: Form) -> nn.Module:
    return fuse(_random(name), form=form)


def _twin(model: str) -> nn.Module:
    network = _timm(TIMM_NAMES[model])
    network.load_state_dict(_random(model).state_dict())
    return network


def _timm(name: str) -> nn.Module:
    import timm

    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name, pretrained=False, zero_init_last=False)
    return network.eval()


def _torchvision() -> nn.Module:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    network: nn.Module = resnet50()
    return network.eval()


def _eager(precision: str) -> Callable[[Subject, Setting, Path], Runner]:
    def load(subject: Subject, setting: Setting, _: Path) -> Runner:
        return _cast(TorchEngine(_network(subject, precision), setting.device), precision)

    return load


def _compiled(precision: str) -> Callable[[Subject, Setting, Path], Runner]:
    def load(subject: Subject, setting: Setting, _: Path) -> Runner:
        network = _network(subject, precision)
        network.compile(dynamic=False)
        return _cast(TorchEngine(network, setting.device), precision)

    return load


def _contiguous(precision: str) -> Callable[[Subject, Setting, Path], Runner]:
    def load(subject: Subject, setting: Setting, _: Path) -> Runner:
        return _cast(_network(subject, precision).to(setting.device), precision)

    return load


def _network(subject: Subject, precision: str) -> nn.Module:
    return subject.build().to(_DTYPES[precision])


def _cast(run: Runner, precision: str) -> Runner:
    if precision == "fp32":
        return run
    return lambda images: run(images.to(_DTYPES[precision]))


def _onnx(precision: str) -> Callable[[Subject, Setting, Path], Runner]:
    def load(subject: Subject, setting: Setting, path: Path) -> Runner:
        import onnx

        from splitattn.engines.onnx_runtime import OnnxEngine, convert

        path = path.with_suffix(".onnx")
        if not path.exists():
            quantize = quantized_onnx if precision == "int8" else None
            onnx.save(_graph(subject, setting, convert, quantize, "onnx"), path)
        return OnnxEngine(path, device="cpu")

    return load


def _openvino(precision: str) -> Callable[[Subject, Setting, Path], Runner]:
    def load(subject: Subject, setting: Setting, path: Path) -> Runner:
        from splitattn.engines.open_vino import OpenVinoEngine, convert, save

        path = path.with_suffix(".xml")
        if not path.exists():
            quantize = quantized_openvino if precision == "int8" else None
            save(_graph(subject, setting, convert, quantize, "openvino"), path)
        return OpenVinoEngine(path, device="cpu")

    return load


def _graph(
    subject: Subject,
    setting: Setting,
    convert: Callable[..., Any],
    quantize: Callable[..., Any] | None,
    form: str,
) -> Any:
    """The subject as a graph; peers are quantized as the libraries do it by themselves."""
    graph = convert(Exportable(subject.build()), size=setting.preprocessing.size)
    if quantize is None:
        return graph
    float_parts = FLOAT_PARTS[form] if subject.rewritten else ()
    return quantize(graph, list(setting.pixels), setting.preprocessing, float_parts=float_parts)


_ONNX, _OPENVINO = LIBRARIES["onnxruntime"], LIBRARIES["openvino"]
_ON_CPU = (
    Engine(name="torch", precision="fp32", load=_eager("fp32")),
    Engine(name="torch NCHW", precision="fp32", load=_contiguous("fp32")),
    Engine(name="compile", precision="fp32", load=_compiled("fp32")),
    Engine(name="onnxruntime", precision="fp32", load=_onnx("fp32"), libraries=_ONNX),
    Engine(name="onnxruntime", precision="int8", load=_onnx("int8"), libraries=_ONNX),
    Engine(name="openvino", precision="fp32", load=_openvino("fp32"), libraries=_OPENVINO),
    Engine(
        name="openvino", precision="int8", load=_openvino("int8"), libraries=(*_OPENVINO, "nncf")
    ),
)
_ON_CUDA = (
    Engine(name="torch", precision="bf16", load=_eager("bf16")),
    Engine(name="torch NCHW", precision="bf16", load=_contiguous("bf16")),
    Engine(name="compile", precision="bf16", load=_compiled("bf16")),
)
