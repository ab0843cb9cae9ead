"""Reads and writes files of tensors: as NumPy arrays, or as PyTorch's tensors."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from splitattn.architectures import architecture
from splitattn.errors import WeightsError, counted, write_failure
from splitattn.files import is_utf8, replacing, writing_native
from splitattn.weights.layouts import KeyMapping
from splitattn.weights.matching import STAGES, Fit, check_layout, check_match
from splitattn.weights.metadata import (
    METADATA_KEY,
    ModelMetadata,
    damaged,
    is_safetensors,
    metadata_of,
    training_metadata_of,
    unreadable,
)
from splitattn.weights.pickles import damaged_pickle, load_pickle
from splitattn.weights.state_dicts import bare_state_dict, find_network, find_state_dict
from splitattn.weights.unpickler import Array as PickledArray
from splitattn.weights.unpickler import StoredTensor, Unknown, stored_tensor

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
T = TypeVar("T", bound="Array | Tensor")

_INFINITY = 0x7C00  # float16
# Most dimensions of a tensor in a safetensors file; weights have four.
_MOST_DIMENSIONS = 16


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Generic[T]):
    """The tensors and the metadata of a file.

    Attributes:
        path: the file.
        tensors: by official key; NumPy arrays, or PyTorch's tensors on the CPU.
        metadata: the file's metadata, if it has any.
        key_mapping: maps the file's keys to official ones.
        unexpected: keys of the file that its layout does not have; their tensors are left out. The
            official layout accepts every key.
        ignored: keys of the file that belong to a larger model around the backbone, such as a
            detector's neck and heads; their tensors are left out.
    """

    path: Path
    tensors: dict[str, T]
    metadata: ModelMetadata | None
    key_mapping: KeyMapping
    unexpected: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of `tensors`."""
        return {key: tuple(value.shape) for key, value in self.tensors.items()}

    @property
    def ignored_in_words(self) -> str:
        """The number of ignored keys and the first of them, as text; empty if there is none."""
        if not (count := len(self.ignored)):
            return ""
        names = ", ".join(key[:80] for key in self.ignored[:3])
        more = ", ..." if count > 3 else ""
        return f"{counted(count, 'tensor')} of the larger model around the backbone ({names}{more})"


def check_fits(checkpoint: Checkpoint[Any], model: str, *, stages: int = STAGES) -> Fit:
    """Raise unless a checkpoint fits the model, with any number of classes and channels.

    Its numbers must be valid too, see `check_numbers`.

    Args:
        checkpoint: as it was read.
        model: the name of the model.
        stages: how many of the model's stages are needed, see `check_match`.

    Returns:
        The number of classes and channels in the checkpoint.

    Raises:
        WeightsError: keys or shapes differ, or a tensor holds integers instead of floats, NaN,
            infinity, or a negative variance.
    """
    origin, key_mapping = str(checkpoint.path), checkpoint.key_mapping
    check_layout(key_mapping, architecture(model), model=model, origin=origin)
    fit = check_match(
        checkpoint.shapes,
        architecture(model),
        model=model,
        origin=origin,
        key_mapping=key_mapping,
        unexpected=checkpoint.unexpected,
        stages=stages,
    )
    for key, value in checkpoint.tensors.items():
        dtype = _dtype(value)
        if "float" not in dtype and not key.endswith("num_batches_tracked"):
            raise WeightsError(
                f"{origin} must hold floating-point numbers, {key_mapping.own(key)} is of "
                f"{dtype}: save the network before it is quantized"
            )
    tensors = {key_mapping.own(key) or key: value for key, value in checkpoint.tensors.items()}
    check_numbers(tensors, checkpoint.path)
    return fit


def check_numbers(tensors: "Mapping[str, Array] | Mapping[str, Tensor]", path: Path) -> None:
    """Raise if weights have NaN, infinite numbers or negative variances.

    Engines may hide these: the ReLU of ONNX Runtime turns NaN into 0.

    Args:
        tensors: by the file's own keys.
        path: of the file, for the message.

    Raises:
        WeightsError: a number is not finite, or a variance is negative.
    """
    for key, value in tensors.items():
        if not _finite(value) or (key.endswith("running_var") and (value < 0).any()):
            raise WeightsError(
                f"{path} has invalid numbers in {key} (NaN, infinite, or a negative variance): use "
                "an earlier checkpoint, or download it again"
            )


def _finite(value: "Array | Tensor") -> bool:
    if not isinstance(value, np.ndarray):
        if value.itemsize == 1:  # isfinite is missing for some 8-bit types of PyTorch
            value = value.float()
        return bool(value.isfinite().all())
    if value.dtype == np.float16 and value.size:
        # Compare bits, ten times as fast: NaN and infinity are those from infinity's bits on.
        return bool((value.view(np.uint16) & 0x7FFF).max() < _INFINITY)
    return bool(np.isfinite(value).all())


def read_checkpoint(path: str | Path) -> Checkpoint[Array]:
    """Read a file into NumPy arrays. Safetensors need no PyTorch.

    The file is safetensors, a file of `torch.save`, or a pickle of NumPy arrays, under any name.
    Wrappers (`state_dict`, `model`, `ema`, ...) are opened, prefixes (`module.`, `_orig_mod.`) are
    removed, and other projects' keys become official ones. Other objects in the file are skipped,
    and nothing in it is run. NumPy has no bfloat16: such tensors become float32. All other tensors
    keep their type.

    Raises:
        WeightsError: the file cannot be read, is damaged, holds no weights or those of several
            networks, or has numbers of a type that NumPy does not have.
    """
    return _read(Path(path), "numpy", _as_array)


def read_tensors(path: str | Path, *, part: str | None = None) -> "Checkpoint[Tensor]":
    """Read a file into PyTorch tensors of the file's own types, on the CPU.

    Everything else is as in `read_checkpoint`.

    Args:
        part: which of several networks to read: the name of its state dict in the file, or the
            prefix of its keys.

    Raises:
        WeightsError: as in `read_checkpoint`, but every type is allowed; or there is no such part.
    """
    return _read(Path(path), "pt", _as_tensor, part)


def read_by_own_keys(path: str | Path) -> "dict[str, Tensor]":
    """Read a file of any network into PyTorch tensors, by the file's own keys.

    Raises:
        WeightsError: as in `read_tensors`.
    """
    return _read_content(Path(path), "pt", _as_tensor)[0]


def read_arrays_by_own_keys(path: str | Path) -> dict[str, Array]:
    """As `read_by_own_keys`, but into NumPy arrays; needs no PyTorch.

    Raises:
        WeightsError: as in `read_tensors`.
    """
    return _read_content(Path(path), "numpy", _as_array)[0]


def _read_content(
    path: Path,
    framework: Literal["numpy", "pt"],
    convert: Callable[[Any], T],
    part: str | None = None,
) -> tuple[dict[str, T], ModelMetadata | None]:
    """The tensors by the file's own keys, without wrappers and prefixes, and the metadata."""
    try:
        if is_safetensors(path):
            stored, metadata = _read_safetensors(path, framework)
            tensors = bare_state_dict(stored, path, part)
        else:
            pickled = load_pickle(path)
            metadata = training_metadata_of(path, pickled.content)
            tensors = find_state_dict(pickled, path, part)
        converted = {key: _converted(value, convert, key, path) for key, value in tensors.items()}
    except OSError as error:
        raise unreadable(path, error) from error
    return converted, metadata


def _read(
    path: Path,
    framework: Literal["numpy", "pt"],
    convert: Callable[[Any], T],
    part: str | None = None,
) -> Checkpoint[T]:
    converted, metadata = _read_content(path, framework, convert, part)
    key_mapping = find_network(converted, path)
    officials = {key: key_mapping.official(key) for key in converted}
    nameless = [key for key, name in officials.items() if name is None]
    return Checkpoint(
        path=path,
        tensors={name: converted[key] for key, name in officials.items() if name is not None},
        metadata=metadata,
        key_mapping=key_mapping,
        unexpected=tuple(key for key in nameless if not key_mapping.is_outside(key)),
        ignored=tuple(filter(key_mapping.is_outside, nameless)),
    )


def _read_safetensors(
    path: Path, framework: Literal["numpy", "pt"]
) -> tuple[dict[str, Any], ModelMetadata | None]:
    by_name = framework == "numpy" or is_utf8(path)  # for PyTorch, only UTF-8 names can be opened
    try:
        with safe_open(path, framework=framework if by_name else "numpy") as file:
            metadata = metadata_of(path, file.metadata())
            keys = list(file.keys())
            if any(len(file.get_slice(key).get_shape()) > _MOST_DIMENSIONS for key in keys):
                raise damaged(path)  # NumPy and PyTorch would raise their own errors
            if framework == "numpy":
                return _read_arrays(path, file, keys), metadata
            if by_name:
                return {key: file.get_tensor(key) for key in keys}, metadata
            from safetensors.torch import load

            return load(path.read_bytes()), metadata
    except SafetensorError as error:
        raise damaged(path) from error


def _read_arrays(path: Path, file: Any, keys: list[str]) -> dict[str, Array]:
    """The tensors of the safetensors file at `path`, open as `file`, as NumPy arrays."""
    arrays = {}
    offsets = None
    for key in keys:
        part = file.get_slice(key)
        dtype = part.get_dtype()
        if dtype == "BF16":
            offsets = _data_offsets(path) if offsets is None else offsets
            arrays[key] = _read_bfloat16(path, offsets[key], part.get_shape())
            continue
        try:
            arrays[key] = file.get_tensor(key)
        except (AttributeError, TypeError) as error:  # safetensors found no such type in NumPy
            raise _not_numpys(path, key, dtype) from error
    return arrays


def _data_offsets(path: Path) -> dict[str, int]:
    """The offset in bytes of each tensor of a safetensors file with a valid header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        key: 8 + length + entry["data_offsets"][0]
        for key, entry in header.items()
        if key != "__metadata__"
    }


def _read_bfloat16(path: Path, offset: int, shape: list[int]) -> Array:
    """Read a bfloat16 tensor as float32; bfloat16 is the upper half of a float32."""
    upper = np.fromfile(path, "<u2", prod(shape), offset=offset)
    return (upper.astype(np.uint32) << 16).view(np.float32).reshape(shape)


def _not_numpys(path: Path, key: str, dtype: str) -> WeightsError:
    return WeightsError(
        f"{path} must have numbers of a type that NumPy has, {key[:80]} is of {dtype}: save it as "
        "float32"
    )


def _converted(value: Any, convert: Callable[[Any], T], key: str, path: Path) -> T:
    tensor = stored_tensor(value) or value
    try:
        return convert(tensor)
    except OSError:
        raise
    except Exception as error:  # damaged bytes raise anything
        if isinstance(error, TypeError) and "float8" in _dtype(tensor):
            raise _not_numpys(path, key, _dtype(tensor)) from error
        raise damaged_pickle(path, error) from error


def _dtype(value: Any) -> str:
    """The name of the type, the same for arrays and tensors."""
    return str(value.dtype).removeprefix("torch.")


def _as_array(value: Any) -> Array:
    array: Array = value.array() if isinstance(value, StoredTensor) else value
    return array


def _as_tensor(value: Any) -> "Tensor":
    tensor: Tensor = value.tensor() if isinstance(value, StoredTensor) else value
    return tensor


def as_tensors(content: Any) -> Any:
    """The content of a pickle, with stored tensors replaced by PyTorch tensors.

    Raises:
        TypeError: it has objects besides tensors and plain values.
    """
    if isinstance(content, dict):
        return {key: as_tensors(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map(as_tensors, content))
    if stored := stored_tensor(content):
        return stored.tensor()
    if isinstance(content, Unknown | PickledArray):
        raise TypeError("it has objects besides tensors and plain values")
    return content


def write_checkpoint(
    path: str | Path,
    tensors: "Mapping[str, Array] | Mapping[str, Tensor]",
    metadata: ModelMetadata | None = None,
) -> None:
    """Write a safetensors file from arrays or tensors, atomically.

    The file gets its name once it is on the disk. If the write is interrupted, an older file of
    that name remains.

    Raises:
        WeightsError: the file cannot be written.
    """
    with writing(Path(path)) as temporary:
        save_safetensors(temporary, tensors, metadata)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Like `files.replacing`, but a file that cannot be written raises `WeightsError`.

    Raises:
        WeightsError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        raise WeightsError(write_failure(path, error, "cannot write weights to")) from error


def save_safetensors(
    path: Path,
    tensors: "Mapping[str, Array] | Mapping[str, Tensor]",
    metadata: ModelMetadata | None,
) -> None:
    """Write a safetensors file in place.

    Raises:
        OSError, SafetensorError: the file cannot be written.
    """
    header = {METADATA_KEY: metadata.to_json()} if metadata else None
    # safetensors takes neither views (channels_last weights are views) nor memory of a device.
    contiguous: dict[str, Any] = {key: _contiguous(value) for key, value in tensors.items()}
    if all(isinstance(value, np.ndarray) for value in contiguous.values()):
        save_file(contiguous, path, header)
    else:
        from safetensors.torch import save_file as save_tensors

        save_tensors(contiguous, path, header)


def _contiguous(value: "Array | Tensor") -> "Array | Tensor":
    if isinstance(value, np.ndarray):
        return np.asarray(value, order="C")
    return value.detach().cpu().contiguous()


def save_pickle(path: Path, state_dict: "Mapping[str, Tensor]", wrapper: str | None) -> None:
    """Write a file of `torch.save` in place: the state dict, or a dict with it under `wrapper`.

    Raises:
        OSError: the file cannot be written.
    """
    import torch

    # torch.save writes all of the memory that a tensor is a view of, so copy each.
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in state_dict.items()
    }
    with writing_native(path) as file:
        torch.save({wrapper: tensors} if wrapper else tensors, file)
