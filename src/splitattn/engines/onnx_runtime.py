"""ONNX Runtime as an engine, and networks as ONNX graphs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from splitattn.engines.pytorch import Exportable, traced
from splitattn.errors import InputError
from splitattn.nn.fusion import fuse
from splitattn.nn.resnest import ResNeSt
from splitattn.weights.metadata import METADATA_KEY

# The newest that PyTorch writes without converting between versions afterwards.
OPSET = 20

_SILENT = 4  # of severities: what goes wrong is raised, and need not be printed too


class OnnxEngine:
    """Runs an ONNX graph.

    Args:
        graph: a file, or its bytes; input "images", output "logits".
        device: "auto", "cpu" or "cuda".

    Attributes:
        metadata: what the graph says about itself, or None.

    Raises:
        InputError: this build of ONNX Runtime does not run on the device.
        Exception: the graph is damaged; ONNX Runtime has many errors, without a common base.
    """

    def __init__(self, graph: Path | bytes, *, device: str = "auto") -> None:
        self.device = torch.device("cpu")  # CUDA's provider copies by itself
        providers = _providers(device)
        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        self._session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
        used = self._session.get_providers()[0].removesuffix("ExecutionProvider").lower()
        if used == "cpu" and len(providers) > 1:
            # It then takes the next provider, and says so in a log at most.
            raise InputError(
                f"engine onnxruntime cannot use device {device!r}, it found no CUDA libraries that "
                "fit: install those of its version, or take engine torch"
            )
        self.name = f"ONNX Runtime {ort.__version__} on {used}"
        self.metadata: str | None = self._session.get_modelmeta().custom_metadata_map.get(
            METADATA_KEY
        )

    def __call__(self, images_BCHW: Tensor) -> Tensor:  # noqa: N803
        (logits,) = self._session.run(
            ["logits"], {"images": np.ascontiguousarray(images_BCHW.numpy())}
        )
        return torch.from_numpy(logits)


def network_engine(model: ResNeSt, *, size: int, device: str = "auto") -> OnnxEngine:
    """`model`, fused, in ONNX Runtime; `model` stays as it is.

    Args:
        size: of its images, in pixels.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: this build of ONNX Runtime does not run on the device.
    """
    _providers(device)  # before the minute that a conversion may take
    graph = convert(Exportable(fuse(model, target="onnxruntime")), size=size)
    return OnnxEngine(graph.SerializeToString(), device=device)


def convert(network: Exportable, *, size: int, dynamic_size: bool = False) -> Any:
    """The network as an `onnx.ModelProto`: "images" (B, 3, H, W) to "logits" (B, classes).

    Args:
        size: of its images, in pixels.
        dynamic_size: it takes images of other heights and widths too.
    """
    program = torch.onnx.export(
        traced(network, size=size, dynamic_size=dynamic_size),
        input_names=["images"],
        output_names=["logits"],
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    graph = program.model_proto
    _forget_origin(graph)
    _name_axes(graph)
    return graph


def _forget_origin(graph: Any) -> None:
    """Remove the notes on where each part came from: they hold paths of this machine."""
    values = (*graph.graph.input, *graph.graph.output, *graph.graph.value_info)
    for part in (graph.graph, *graph.graph.node, *graph.graph.initializer, *values):
        del part.metadata_props[:]


def _name_axes(graph: Any) -> None:
    """Call the free axes by what they are; PyTorch numbers them."""
    (images,) = graph.graph.input
    names = {
        axis.dim_param: name
        for axis, name in zip(
            images.type.tensor_type.shape.dim, ("batch", "", "height", "width"), strict=True
        )
        if axis.dim_param
    }
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]


def _providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    kind, _, index = device.partition(":")
    able = "CUDAExecutionProvider" in ort.get_available_providers()
    if kind == "auto":
        kind = "cuda" if able and torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if kind != "cuda" or not able:
        raise InputError(
            f"engine onnxruntime runs on cpu, or on cuda where onnxruntime-gpu is installed, "
            f"got device {device!r}; take engine torch"
        )
    # As everywhere here, no TF32: results would depend on the size of the batch.
    options = {"device_id": index or "0", "use_tf32": "0"}
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
