"""ONNX Runtime as an engine.

The library `onnx` is imported only where a model is written or a file is checked.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any

# No telemetry; without a home folder it would also print a warning.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from splitattn.engines.engine import (
    Array,
    Engine,
    FileSettings,
    Images,
    Logits,
    network_threads,
)
from splitattn.errors import InputError, is_full_disk, write_failure
from splitattn.files import is_utf8
from splitattn.weights.metadata import METADATA_KEY, ModelMetadata

if TYPE_CHECKING:
    from splitattn.graph.onnx_model import Network

# Parts of a network that stay float in int8; docs/log.md has the measurements of each.
FLOAT_PARTS = ("attention", "maps", "norms", "decode")

# A constant has a name, a type, a shape and bytes.
_CONSTANT_FIELDS = {"name", "data_type", "dims", "raw_data"}
_SILENT = 4  # log severity: errors are raised, so they need not be printed too


class OnnxEngine(Engine):
    """Runs an ONNX model.

    Args:
        model: a file, or its bytes; input "images", outputs as `to_onnx` writes them.
        device: "auto", "cpu" or "cuda".
        weights: the weights that are not in `model`, by name.
        quick_start: skip the slowest optimizations, see `table.EngineModule`.

    Raises:
        InputError: this build of ONNX Runtime does not run on the device.
        Exception: the file is damaged. ONNX Runtime raises many types of exceptions.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        device: str = "auto",
        weights: Mapping[str, NDArray[Any]] | None = None,
        quick_start: bool = False,
    ) -> None:
        providers = _providers(device)
        options = ort.SessionOptions()
        if quick_start:
            # All but the change to a blocked channel layout.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            # Spinning threads would slow down the thread that opens the network.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = network_threads()
        # The session reads these arrays without copying, so they must live as long as it does.
        self._weights = {
            name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in (weights or {}).items()
        }
        if self._weights:
            names, values = zip(*self._weights.items(), strict=True)
            options.add_external_initializers(list(names), list(values))
        self._session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
        used = self._session.get_providers()[0].removesuffix("ExecutionProvider").lower()
        if used == "cpu" and len(providers) > 1:
            # ONNX Runtime falls back to the next provider and only logs it.
            raise InputError(
                f"engine onnxruntime cannot use device {device!r}: it found no CUDA libraries of "
                "its version; install them, or use --engine torch"
            )
        self._outputs = [output.name for output in self._session.get_outputs()]
        shape = self._session.get_inputs()[0].shape
        batch, _, size, _ = (side if isinstance(side, int) else None for side in shape)
        super().__init__(f"ONNX Runtime {ort.__version__} on {used}", batch=batch, size=size)

    def outputs(self, images_BCHW: Images) -> tuple[Array, ...]:
        images = {"images": np.ascontiguousarray(images_BCHW)}
        return tuple(self._session.run(self._outputs, images))

    def _infer(self, images_BCHW: Images) -> Logits:
        logits: Logits = self.outputs(images_BCHW)[0]
        return logits


def load(
    network: "Network", *, size: int | None, device: str, quick_start: bool = False
) -> OnnxEngine:
    """See `table.EngineModule`."""
    from splitattn.graph.onnx_model import to_onnx

    _providers(device)  # refuse the device before anything is written
    weights: dict[str, NDArray[Any]] = {}
    model = to_onnx(network, size=size, external=weights)
    return OnnxEngine(
        model.SerializeToString(), device=device, weights=weights, quick_start=quick_start
    )


def check_network(network: "Network", settings: FileSettings) -> None:
    """See `table.FileEngineModule`."""
    from splitattn.engines.onnx_structure import check_size

    check_size(network, settings)


def write(network: "Network", path: Path, settings: FileSettings) -> None:
    """See `table.FileEngineModule`."""
    import onnx

    from splitattn.graph.onnx_model import OPSET, parts, to_onnx

    model = to_onnx(
        network,
        size=settings.size,
        batch=settings.batch,
        half=settings.precision == "fp16",
        eight_bit=settings.precision == "int8",
        opset=OPSET if settings.opset is None else settings.opset,
    )
    if settings.precision == "int8":
        names = parts(node.name for node in model.graph.node)
        floats = [name for part in FLOAT_PARTS for name in names[part]]
        model = quantize(model, settings.calibration_images(), floats=floats)
        _tidy(model.graph)
    onnx.helper.set_model_props(model, {METADATA_KEY: settings.metadata.to_json()})
    onnx.save(model, path)


def read_metadata(path: Path) -> ModelMetadata:
    """See `table.FileEngineModule`."""
    from splitattn.engines.onnx_structure import check_onnx

    return check_onnx(path)


def open_file(
    path: Path, *, device: str, trusted: bool = False
) -> tuple[OnnxEngine, ModelMetadata]:
    """See `table.FileEngineModule`."""
    del trusted
    metadata = read_metadata(path)
    model = path if is_utf8(path) else path.read_bytes()
    return OnnxEngine(model, device=device), metadata


def quantize(model: Any, images: Sequence[Images], *, floats: list[str]) -> Any:
    """Quantize `model` to int8, as pairs of QuantizeLinear and DequantizeLinear.

    Weights have a scale per output channel, activations one per tensor.

    Args:
        model: an `onnx.ModelProto`.
        images: normalized calibration images (1, C, H, W).
        floats: names of the nodes that stay float.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(images)

        def get_next(self) -> dict[str, Images] | None:
            image = next(self._left, None)
            return None if image is None else {"images": image}

    # The model needs no pre-processing; this mark silences the advice to run it.
    add_pre_process_metadata(model)
    logger = logging.getLogger()
    level = logger.level
    with TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        try:
            quantize_static(
                model,
                path,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                # Without VNNI, processors add products of these types in 16 bits, which overflow
                # unless weights have 7 bits.
                reduce_range=True,
                nodes_to_exclude=floats,
            )
        except OSError as error:
            if not is_full_disk(error):
                raise
            raise InputError(f"{write_failure(gettempdir(), error)} with TMPDIR") from error
        finally:
            logger.setLevel(level)
        return onnx.load(path)


def _tidy(graph: Any) -> None:
    """Make the nodes that the quantizer added look like those of our writer."""
    from onnx import numpy_helper

    del graph.value_info[:]  # shapes that can be inferred
    for tensor in graph.initializer:
        if {field.name for field, _ in tensor.ListFields()} - _CONSTANT_FIELDS:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    # For a bias of one channel, the quantizer writes a list of scales but a scalar zero point.
    scales = {node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"}
    per_channel = {
        node.input[1] for node in graph.node if any(a.name == "axis" for a in node.attribute)
    }
    for tensor in graph.initializer:
        if tensor.name in scales - per_channel and [*tensor.dims] == [1]:
            del tensor.dims[:]


def _providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    kind, _, index = device.partition(":")
    has_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
    if kind in ("auto", "cpu"):
        return ["CPUExecutionProvider"]
    if kind != "cuda" or not has_cuda:
        raise InputError(
            "engine onnxruntime runs on cpu, and on cuda where onnxruntime-gpu is installed, "
            f"got device {device!r}; use --engine torch"
        )
    # No TF32: with it, results would depend on the batch size.
    options = {"device_id": index or "0", "use_tf32": "0"}
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
