"""OpenVINO as an engine."""

import contextlib
import errno
import io
import logging
import math
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

import numpy as np

from splitattn.engines.engine import (
    Array,
    Engine,
    FileSettings,
    Images,
    Logits,
    network_threads,
)
from splitattn.engines.onnx_structure import check_size
from splitattn.engines.open_vino_structure import check_open_vino
from splitattn.errors import InputError, one_line
from splitattn.graph.onnx_model import Network, parts, to_onnx
from splitattn.libraries import home_folder, telemetry_off
from splitattn.preprocessing import Preprocessing
from splitattn.processes import usable_cores
from splitattn.weights.metadata import METADATA_KEY, ModelMetadata

with telemetry_off():
    import openvino as ov
    from openvino.passes import ConstantFolding, Manager
    from openvino.properties import hint, inference_num_threads, num_streams

# Parts of a network that stay float in int8; docs/log.md has the measurements of each.
FLOAT_PARTS = ("attention", "blend", "maps", "norms", "decode")
# Bytes of an IR without its weights, at most.
_GRAPH = 1 << 20


class OpenVinoEngine(Engine):
    """Runs an OpenVINO model on the CPU.

    OpenVINO compiles a faster network if the shape of the batch is fixed. So a shape that comes
    twice in a row gets a compiled network of its own. All other shapes share one dynamic network.
    The next shape must come four times in a row, the one after it eight times, and so on, so images
    of mixed shapes soon compile nothing more. `fix_batches` turns this off.

    A network with a fixed shape divides its batch evenly among the cores, since cores that share an
    image wait for each other in every layer. Two batches at once then take less time than two in
    turn.

    Args:
        model: an IR file, or a model in memory; its only input takes the images.
        device: "auto" or "cpu".

    Raises:
        InputError: OpenVINO does not run on the device.
        Exception: the file is damaged. OpenVINO raises many types of exceptions.
    """

    def __init__(self, model: "ov.Model | Path", *, device: str = "auto") -> None:
        _check_device(device)
        self._model = core().read_model(model) if isinstance(model, Path) else model
        shape = self._model.input(0).get_partial_shape()
        batch, _, size, _ = (None if side.is_dynamic else side.get_length() for side in shape)
        super().__init__(
            f"OpenVINO {ov.__version__.partition('-')[0]} on cpu", batch=batch, size=size
        )
        self._shape = shape
        # A model whose shape is fixed needs no second network.
        self._has_one_shape = shape.is_static
        self._own_network: _Compiled | None = None
        self._owner: tuple[int, ...] = ()
        self._times_needed = 2
        self._last: tuple[int, ...] = ()
        self._times = 0
        self._fixed: dict[tuple[int, ...], _Compiled] | None = None
        self._choosing = Lock()
        self._cores = network_threads() or usable_cores()
        self.batches_at_once = 1 if self._has_one_shape or self._cores == 1 else 2
        if isinstance(model, Path):
            _ = self._for_any_shape  # raise for damaged files now and not at the first image

    def fix_batches(self, batch_sizes: Sequence[int], preprocessing: Preprocessing) -> None:
        image = (preprocessing.channels, preprocessing.size, preprocessing.size)
        own = [(batch, *image) for batch in batch_sizes if self.batch is None]
        with ThreadPoolExecutor() as pool:  # each compilation uses one core
            others = pool.submit(lambda: self._for_any_shape)
            self._fixed = dict(zip(own, pool.map(self._compiled, own), strict=True))
            others.result()
        for batch in batch_sizes:
            self.run(np.zeros((batch, *image), np.uint8), preprocessing)

    def outputs(self, images_BCHW: Images) -> tuple[Array, ...]:
        images = np.ascontiguousarray(images_BCHW)
        # OpenVINO may accept another shape without an error.
        if not self._shape.compatible(ov.PartialShape(images.shape)):
            raise RuntimeError(f"the network takes images {self._shape}, got {images.shape}")
        with self._choosing:
            network = self._network(images.shape)
            self._times = self._times + 1 if images.shape == self._last else 1
            self._last = images.shape
        return network(images)

    def _infer(self, images_BCHW: Images) -> Logits:
        logits: Logits = self.outputs(images_BCHW)[0]
        return logits

    def _network(self, shape: tuple[int, ...]) -> "_Compiled":
        if self._fixed is not None:
            return self._fixed.get(shape) or self._for_any_shape
        comes_often = shape == self._last and self._times + 1 >= self._times_needed
        if comes_often and shape != self._owner and not self._has_one_shape:
            self._own_network, self._owner = self._compiled(shape), shape
            self._times_needed *= 2
        if self._own_network and shape == self._owner:
            return self._own_network
        return self._for_any_shape

    @cached_property
    def _for_any_shape(self) -> "_Compiled":
        return _Compiled(self._model)

    def _compiled(self, shape: tuple[int, ...]) -> "_Compiled":
        parts = math.gcd(shape[0], self._cores)  # equal numbers of images and cores for each part
        model = self._reshaped((shape[0] // parts, *shape[1:]))
        if parts > 1 and not _gives_rows(model):
            return _Compiled(self._reshaped(shape))
        return _Compiled(model, parts)

    def _reshaped(self, shape: tuple[int, ...]) -> "ov.Model":
        model = self._model.clone()
        model.reshape(shape)
        return model


class _Compiled:
    """A compiled network. Threads that call it take turns.

    Args:
        model: its batch is one part; its shape may be dynamic.
        parts: how many parts each batch is divided into; they run at the same time.
    """

    def __init__(self, model: "ov.Model", parts: int = 1) -> None:
        self.network = _compile(model, streams=parts)
        # Two batches at once: a core that finishes the first one continues with the second.
        turns = 1 if parts == 1 else 2
        self._turns: SimpleQueue[list[ov.InferRequest]] = SimpleQueue()
        for _ in range(turns):
            self._turns.put([self.network.create_infer_request() for _ in range(parts)])

    def __call__(self, images_BCHW: Images) -> tuple[Array, ...]:
        requests = self._turns.get()
        try:
            return _computed(requests, images_BCHW)
        except BaseException:  # some requests may still run and would refuse the next batch
            requests = [self.network.create_infer_request() for _ in requests]
            raise
        finally:
            self._turns.put(requests)


def _computed(requests: "list[ov.InferRequest]", images_BCHW: Images) -> tuple[Array, ...]:
    """Compute the outputs for a batch; each request gets an equal part of it."""
    if len(requests) == 1:
        (request,) = requests
        request.infer(images_BCHW)
        return tuple(tensor.data.copy() for tensor in request.output_tensors)
    parts = np.split(images_BCHW, len(requests))
    for request, part in zip(requests, parts, strict=True):
        request.start_async(part)
    for request in requests:
        request.wait()
    rows = [[tensor.data for tensor in request.output_tensors] for request in requests]
    return tuple(np.concatenate(output) for output in zip(*rows, strict=True))


def _gives_rows(model: "ov.Model") -> bool:
    """Whether each output has a row for every image; selected boxes do not."""
    rows = model.input(0).get_partial_shape()[0]
    shapes = [output.get_partial_shape() for output in model.outputs]
    return all(len(shape) > 0 and shape[0] == rows for shape in shapes)


@cache
def core() -> "ov.Core":
    """The only OpenVINO core of this process.

    The CPU plug-in of a core installs a signal stack and restores the previous one when the core is
    destroyed. If two cores are destroyed in the order of their creation, the restored stack no
    longer exists, and the next signal kills the process (seen in OpenVINO 2026.4).
    """
    shared = ov.Core()
    shared.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plug-in
    return shared


def load(
    network: Network, *, size: int | None, device: str, quick_start: bool = False
) -> OpenVinoEngine:
    """See `table.EngineModule`."""
    del quick_start
    _check_device(device)
    return OpenVinoEngine(_model(network, size=size), device=device)


def check_network(network: Network, settings: FileSettings) -> None:
    """See `table.FileEngineModule`."""
    check_size(network, settings)


def write(network: Network, path: Path, settings: FileSettings) -> None:
    """See `table.FileEngineModule`. A `.bin` file with the weights appears beside `path`."""
    model = _model(network, size=settings.size, batch=settings.batch)
    if settings.precision == "int8":
        computing = (operation for operation in model.get_ops() if operation.get_input_size())
        names = parts(operation.get_friendly_name() for operation in computing)
        floats = [name for part in FLOAT_PARTS for name in names[part]]
        model = quantize(model, settings.calibration_images(), floats=floats)
        _share_rounded_inputs(model, set(names["pools"]))
    model.set_rt_info(settings.metadata.to_json(), [METADATA_KEY])
    save(model, path, half=settings.precision == "fp16")


def read_metadata(path: Path) -> ModelMetadata:
    """See `table.FileEngineModule`."""
    return check_open_vino(path)


def open_file(
    path: Path, *, device: str, trusted: bool = False
) -> tuple[OpenVinoEngine, ModelMetadata]:
    """See `table.FileEngineModule`."""
    del trusted
    metadata = read_metadata(path)
    return OpenVinoEngine(path, device=device), metadata


def save(model: "ov.Model", path: Path, *, half: bool = False) -> None:
    """Write `model` to `path` and its weights to a `.bin` file, as float16 if `half`.

    Raises:
        OSError: a file cannot be written.
    """
    try:
        ov.save_model(model, path, compress_to_fp16=half)
    except RuntimeError as error:  # the same for a full disk as for other failures
        written = sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*"))
        weights = sum(
            operation.get_byte_size()
            for operation in model.get_ops()
            if isinstance(operation, ov.op.Constant)
        )
        needed = weights // (2 if half else 1) + _GRAPH
        if shutil.disk_usage(path.parent).free + written < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise OSError(errno.EIO, f"OpenVINO could not write it: {one_line(str(error))}") from error


def quantize(model: "ov.Model", images: Sequence[Images], *, floats: list[str]) -> "ov.Model":
    """Quantize `model` to int8 with NNCF.

    Args:
        images: normalized calibration images (1, C, H, W).
        floats: friendly names of the operations that stay float.
    """
    core()  # create ours before NNCF creates and destroys cores, see `core`
    with telemetry_off(), home_folder():
        import nncf

    # NNCF's own function would also silence all log handlers attached to its logger.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars would mix with results
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=sorted(floats), validate=False),
        )


def _share_rounded_inputs(model: "ov.Model", readers: set[str]) -> None:
    """If one consumer of a tensor reads it quantized, make all of them do so.

    The blend still computes in float, but reads the splits as int8 from the convolution before it.
    docs/log.md has the measurements.

    Args:
        readers: friendly names of the operations whose inputs are shared.
    """
    for operation in model.get_ops():
        if operation.get_friendly_name() not in readers:
            continue
        rounded = operation.input_value(0)
        if rounded.get_node().get_type_name() != "FakeQuantize":
            continue
        exact = rounded.get_node().input_value(0)
        for other in exact.get_target_inputs():
            if other.get_node().get_type_name() != "FakeQuantize":
                other.replace_source_output(rounded)
    model.validate_nodes_and_infer_types()


def _model(network: Network, *, size: int | None, batch: int | None = None) -> "ov.Model":
    # Keep average pooling as such: as convolutions it would be quantized.
    onnx_model = to_onnx(network, size=size, batch=batch, average_pools=True)
    model = core().read_model(onnx_model.SerializeToString())
    # OpenVINO's ONNX reader adds nodes that compute constant shapes and axes; fold them.
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    return model


def _compile(model: "ov.Model", *, streams: int = 1) -> "ov.CompiledModel":
    settings = {
        # By default OpenVINO would use bfloat16 where the processor has it.
        hint.inference_precision: ov.Type.f32,
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        inference_num_threads: network_threads(),
    }
    if streams > 1:  # streams run at the same time and share the cores equally
        settings[num_streams] = streams
    return core().compile_model(model, "CPU", settings)


def _check_device(device: str) -> None:
    if device not in ("auto", "cpu"):
        raise InputError(f"engine openvino runs on cpu, got device {device!r}; use --engine torch")
