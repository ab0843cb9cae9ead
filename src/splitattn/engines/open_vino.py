"""OpenVINO as an engine, and networks as its graphs."""

import warnings
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from splitattn.engines.pytorch import Exportable
from splitattn.errors import InputError
from splitattn.libraries import telemetry_off
from splitattn.nn.fusion import fuse
from splitattn.nn.resnest import ResNeSt
from splitattn.weights.metadata import METADATA_KEY, ModelMetadata

with telemetry_off():
    import openvino as ov
    from openvino import opset13 as opset
    from openvino.properties import hint


class OpenVinoEngine:
    """Runs an OpenVINO graph on the processor, one batch at a time.

    Knowing the shape, OpenVINO fuses more: a network compiled for one batch size is faster than one
    for any. So a size that comes a second time running gets a network of its own, instead of the
    one that had its own before; all others share the first.

    Args:
        graph: an IR file, or a graph in memory; its only input takes the images.
        device: "auto" or "cpu".

    Attributes:
        metadata: what the graph says about itself, or None.

    Raises:
        InputError: the device is another one.
        Exception: the graph is damaged; OpenVINO raises many kinds of errors.
    """

    def __init__(self, graph: "ov.Model | Path", *, device: str = "auto") -> None:
        check_device(device)
        self.device = torch.device("cpu")
        self.name = f"OpenVINO {ov.__version__.partition('-')[0]} on cpu"
        model = core().read_model(graph) if isinstance(graph, Path) else graph
        self.metadata: str | None = None
        if model.has_rt_info([METADATA_KEY]):
            self.metadata = model.get_rt_info([METADATA_KEY]).astype(str)
        self._model = model
        self._any_shape = self._compile(model)
        self._own_shape = self._any_shape
        self._owner: tuple[int, ...] = ()
        self._last: tuple[int, ...] = ()
        # A compiled network has one request, and all cores work on that: threads take turns.
        self._one_at_a_time = Lock()

    def __call__(self, images_BCHW: Tensor) -> Tensor:  # noqa: N803
        images = np.ascontiguousarray(images_BCHW.numpy())
        with self._one_at_a_time:
            logits = self._network(images.shape)(images)[0]
            self._last = images.shape  # that it takes
        return torch.from_numpy(logits)

    def _network(self, shape: tuple[int, ...]) -> "ov.CompiledModel":
        if shape == self._last != self._owner:
            model = self._model.clone()
            model.reshape(shape)
            self._own_shape, self._owner = self._compile(model), shape
        return self._own_shape if shape == self._owner else self._any_shape

    def _compile(self, model: "ov.Model") -> "ov.CompiledModel":
        settings = {
            # Else a processor with units for bfloat16 would use them.
            hint.inference_precision: ov.Type.f32,
            # All cores work on one batch, rather than each on its own.
            hint.performance_mode: hint.PerformanceMode.LATENCY,
        }
        return core().compile_model(model, "CPU", settings)


@cache
def core() -> "ov.Core":
    """The one that all networks share, and that stays for as long as the process.

    The plug-in of each core gives its thread a stack for signals, and puts back the one before when
    it goes. After two that go in the order in which they came, that one is gone, and the next
    signal, of an ended child or of Ctrl-C, ends the process (seen in OpenVINO 2026.4).
    """
    shared = ov.Core()
    shared.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plug-in
    return shared


def check_device(device: str) -> None:
    """Raise unless OpenVINO runs there.

    Raises:
        InputError: it does not.
    """
    if device not in ("auto", "cpu"):
        raise InputError(
            f"engine openvino runs on cpu, got device {device!r}; take engine torch for that"
        )


def network_engine(model: ResNeSt, *, size: int, device: str = "auto") -> OpenVinoEngine:
    """`model`, fused, in OpenVINO; `model` stays as it is.

    Args:
        size: of its images, in pixels.
        device: "auto" or "cpu".

    Raises:
        InputError: the device is another one.
    """
    check_device(device)
    graph = convert(Exportable(fuse(model, target="openvino")), size=size)
    return OpenVinoEngine(graph, device=device)


def convert(network: Exportable, *, size: int, dynamic_size: bool = False) -> "ov.Model":
    """The network as an OpenVINO graph: "images" (B, 3, H, W) to "logits" (B, classes).

    Args:
        size: of its images, in pixels.
        dynamic_size: it takes images of other heights and widths too.
    """
    side = -1 if dynamic_size else size
    with torch.no_grad(), warnings.catch_warnings():
        # By its way through torch.jit.trace, which takes seconds less than torch.export and is all
        # that a network without branches needs.
        warnings.filterwarnings("ignore", "`torch.jit.trace")
        graph = ov.convert_model(
            network,
            example_input=torch.zeros(1, 3, size, size),
            input=[("images", ov.PartialShape([-1, 3, side, side]))],
        )
    graph.input(0).get_tensor().set_names({"images"})
    graph.output(0).get_tensor().set_names({"logits"})
    return graph


def floor_averages(graph: "ov.Model") -> None:
    """Let averages round the size of their result down where up is the same, in `graph` itself.

    Up as PyTorch does it is an operation of its own in OpenVINO, and one that it has no eight bits
    for (seen in 2026.4): in a shortcut, bytes became floats for it and bytes again after it.
    """
    for average in graph.get_ordered_ops():
        if average.get_type_name() != "AvgPool":
            continue
        given = average.get_attributes()
        maps = average.input_value(0)
        before, after = given["pads_begin"], given["pads_end"]
        if given["rounding_type"] == "floor" or given["auto_pad"] != "explicit":
            continue
        if any(before + after):
            continue
        sides = zip(maps.get_partial_shape()[2:], given["kernel"], given["strides"], strict=True)
        if any(side.is_dynamic or (side.get_length() - k) % step for side, k, step in sides):
            continue
        down = opset.avg_pool(
            maps, given["strides"], before, after, given["kernel"], given["exclude-pad"], "floor"
        )
        down.set_friendly_name(average.get_friendly_name())
        average.output(0).replace(down.output(0))
    graph.validate_nodes_and_infer_types()


def save(
    graph: "ov.Model", path: Path, *, metadata: ModelMetadata | None = None, half: bool = False
) -> None:
    """Write the graph as `path`, an `.xml` file, and a `.bin` file beside it.

    Args:
        metadata: what the file is to say about itself.
        half: store weights in half the bits; they are computed with as before.
    """
    if metadata:
        graph.set_rt_info(metadata.to_json(), [METADATA_KEY])
    ov.save_model(graph, path, compress_to_fp16=half)


def product(side: int, *, eight_bits: bool) -> "ov.Model":
    """A graph that does nothing but multiply: `side` pixels in `side` channels, by a square matrix.

    Args:
        eight_bits: between roundings to 256 steps, which OpenVINO takes as leave for integers.
    """
    weights = np.random.default_rng(0).standard_normal((side, side, 1, 1), dtype=np.float32)
    images = opset.parameter([1, side, 1, side], np.float32)
    matrix = opset.constant(weights)
    if eight_bits:
        ends = [opset.constant(np.float32(end)) for end in (-1.28, 1.27)]
        factors = [opset.fake_quantize(x, *ends, *ends, 256) for x in (images, matrix)]
    else:
        factors = [images, matrix]
    output = opset.convolution(*factors, [1, 1], [0, 0], [0, 0], [1, 1])
    return ov.Model([opset.result(output)], [images])
