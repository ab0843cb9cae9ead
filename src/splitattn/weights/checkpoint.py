"""Reads and writes files of tensors: as NumPy arrays, or as PyTorch's tensors."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from splitattn.errors import WeightsError
from splitattn.files import is_utf8, replacing, writing_native
from splitattn.weights.layouts import KeyMapping, count_known, is_average, networks
from splitattn.weights.matching import Fit, check_layout, check_match, fitting_models
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
from splitattn.weights.unpickler import Array as PickledArray
from splitattn.weights.unpickler import StoredTensor, Unknown

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
T = TypeVar("T", bound="Array | Tensor")

# Where training scripts, ours too, put the state dict, best first: EMA weights come before others.
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "params_ema")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "params")
# mmengine's name for the weights before averaging. Its files have "meta", those of others that give
# an EMA this name do not.
_BEFORE_AVERAGING, _MMENGINE = "ema_state_dict", "meta"
_DEEPEST_WRAPPER = 4
# DataParallel puts `module.` before every key; torch.compile puts `_orig_mod.` before the keys of
# what it compiled.
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
# Counters beside the weights: of torch's AveragedModel, and what thop leaves in each module.
_COUNTERS = frozenset({"n_averaged", "total_ops", "total_params"})
# What no layer can be loaded from.
_COMPLEX = frozenset({"complex64", "complex128"})

_INFINITY = 0x7C00  # float16
# Of a tensor in a safetensors file; weights have four.
_MOST_DIMENSIONS = 16


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Generic[T]):
    """The tensors and the metadata of a file.

    Attributes:
        path: the file.
        tensors: by official key; NumPy arrays, or PyTorch's tensors on the CPU.
        metadata: the file's metadata, if it has any.
        key_mapping: how the file names its keys.
        unexpected: the file's keys that its layout does not have. Their tensors are left out. The
            official layout takes every key.
        ignored: the file's keys that belong to a larger model around the backbone, such as a
            detector's neck and heads. Their tensors are left out too.
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
        """How many keys are ignored, and the first of them; empty if there is none."""
        if not (count := len(self.ignored)):
            return ""
        names = ", ".join(key[:80] for key in self.ignored[:3])
        more = ", ..." if count > 3 else ""
        tensors = "tensor" if count == 1 else "tensors"
        return f"{count} {tensors} of the larger model around the backbone ({names}{more})"


def check_fits(checkpoint: Checkpoint[Any], model: str) -> Fit:
    """Raise unless a checkpoint fits the model, with any number of classes and channels.

    Returns:
        The number of classes and channels in the checkpoint.

    Raises:
        WeightsError: keys or shapes differ, or a tensor holds integers instead of floats.
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
    )
    for key, value in checkpoint.tensors.items():
        dtype = _dtype(value)
        if "float" not in dtype and not key.endswith("num_batches_tracked"):
            raise WeightsError(
                f"{origin} must hold floating-point numbers, {key_mapping.own(key)} is of "
                f"{dtype}: save the network before it is quantized"
            )
    return fit


def check_numbers(checkpoint: Checkpoint[Any]) -> None:
    """Raise if a checkpoint has numbers that no network can use.

    Engines may hide these: ONNX Runtime's ReLU makes 0 of NaN.

    Raises:
        WeightsError: a number is not finite, or a variance is negative.
    """
    for key, value in checkpoint.tensors.items():
        if not _finite(value) or (key.endswith("running_var") and (value < 0).any()):
            raise WeightsError(
                f"{checkpoint.path} has numbers in {checkpoint.key_mapping.own(key)} that no "
                "training leaves (NaN, infinite, or a negative variance): take an earlier "
                "checkpoint, or get it again"
            )


def _finite(value: "Array | Tensor") -> bool:
    if not isinstance(value, np.ndarray):
        return bool(value.isfinite().all())
    if value.dtype == np.float16 and value.size:
        # By their bits, ten times as fast: without the sign, infinity is the least that is not.
        return bool((value.view(np.uint16) & 0x7FFF).max() < _INFINITY)
    return bool(np.isfinite(value).all())


def read_checkpoint(path: str | Path) -> Checkpoint[Array]:
    """Read a file into NumPy arrays. Safetensors need no PyTorch.

    The file is safetensors, a file of `torch.save`, or a pickle of NumPy arrays, under any name.
    Wrappers (`state_dict`, `model`, `ema`, ...) are opened, prefixes (`module.`, `_orig_mod.`) are
    removed, and other projects' keys become official ones. Objects beside the weights are passed
    over; nothing in the file is run. NumPy has no bfloat16: such tensors become float32. All other
    numbers keep their type.

    Raises:
        WeightsError: the file cannot be read, is damaged, holds no weights, holds those of several
            networks, or has numbers of a type that NumPy does not have.
    """
    return _read(Path(path), "numpy", _as_array)


def read_tensors(path: str | Path, *, part: str | None = None) -> "Checkpoint[Tensor]":
    """Read a file into PyTorch's tensors of the file's own types, on the CPU.

    Everything else is as in `read_checkpoint`.

    Args:
        part: which of several networks to read: the name that its state dict has in the file, or
            what its keys begin with.

    Raises:
        WeightsError: as in `read_checkpoint`, except that every type will do; or there is no such
            part.
    """
    return _read(Path(path), "pt", _as_tensor, part)


def read_by_own_keys(path: str | Path) -> "dict[str, Tensor]":
    """Read a file into PyTorch's tensors, by the file's own keys, whatever the network.

    Raises:
        WeightsError: as in `read_tensors`.
    """
    return _read_content(Path(path), "pt", _as_tensor)[0]


def read_arrays_by_own_keys(path: str | Path) -> dict[str, Array]:
    """As `read_by_own_keys`, into NumPy arrays, which needs no PyTorch.

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
            content, metadata = _read_safetensors(path, framework)
            unknown: list[str] = []
        else:
            pickled = load_pickle(path)
            metadata = training_metadata_of(path, pickled.content)
            named = part and _find(pickled.content, part, 0)
            part = None if named else part
            content, unknown = _unwrap(named or pickled.content, path, 0), pickled.unknown
        tensors = _bare(content, unknown, path)
        tensors = _below(tensors, part, path) if part else tensors
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
    key_mapping = _recognize(converted, path)
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
    by_name = framework == "numpy" or is_utf8(path)  # others are not opened for PyTorch
    try:
        with safe_open(path, framework=framework if by_name else "numpy") as file:
            metadata = metadata_of(path, file.metadata())
            keys = list(file.keys())
            if any(len(file.get_slice(key).get_shape()) > _MOST_DIMENSIONS for key in keys):
                raise damaged(path)  # NumPy and PyTorch raise errors of their own
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
        except (AttributeError, TypeError) as error:  # safetensors looks the type up in NumPy
            raise _not_numpys(path, key, dtype) from error
    return arrays


def _data_offsets(path: Path) -> dict[str, int]:
    """Where each tensor of a safetensors file, whose header has been checked, begins in bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        key: 8 + length + entry["data_offsets"][0]
        for key, entry in header.items()
        if key != "__metadata__"
    }


def _read_bfloat16(path: Path, offset: int, shape: list[int]) -> Array:
    """A tensor of bfloat16 as float32, of which bfloat16 is the upper half."""
    upper = np.fromfile(path, "<u2", prod(shape), offset=offset)
    return (upper.astype(np.uint32) << 16).view(np.float32).reshape(shape)


def _not_numpys(path: Path, key: str, dtype: str) -> WeightsError:
    return WeightsError(
        f"{path} must have numbers of a type that NumPy has, {key[:80]} is of {dtype}: save it as "
        "float32"
    )


def _bare(tensors: dict[str, Any], unknown: Sequence[str], path: Path) -> dict[str, Any]:
    """A state dict without the prefixes of `_PREFIXES`.

    Args:
        unknown: names of the classes of other objects in the file, for the message.
    """
    if not tensors:
        message = (
            f"{path} holds no weights: it must be a state_dict, on its own or under a name such as "
            "state_dict or model"
        )
        if unknown:
            names = ", ".join(name[:80] for name in unknown[:3])
            message += (
                f"; it has objects ({names}), which are not read: write model.state_dict() with "
                "torch.save"
            )
        raise WeightsError(message)
    tensors = {key: tensor for key, tensor in tensors.items() if not _is_count(key)}
    bare = {_PREFIXES.sub("", key): tensor for key, tensor in tensors.items()}
    if len(bare) < len(tensors):
        raise WeightsError(
            f"{path} holds some weights both with and without a prefix such as module.: "
            "save one model's state_dict"
        )
    return bare


def _find(content: Any, part: str, depth: int) -> Mapping[Any, Any] | None:
    """The dictionary called `part`, in `content` or in a dictionary there."""
    if not isinstance(content, Mapping) or depth > _DEEPEST_WRAPPER:
        return None
    if isinstance(found := content.get(part), Mapping):
        return found
    return next(filter(None, (_find(value, part, depth + 1) for value in content.values())), None)


def _below(tensors: dict[str, Any], part: str, path: Path) -> dict[str, Any]:
    """Those tensors whose keys begin with `part`, by the rest of their keys."""
    prefix = f"{part.removesuffix('.')}."
    found = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
    if not found:
        raise WeightsError(
            f"{path} has no network called {part!r:.80}: no dictionary has this name, and no key "
            "begins with it"
        )
    return found


def _unwrap(content: Any, path: Path, depth: int) -> dict[str, Any]:
    """The innermost state dict, or an empty one if there is none.

    A wrapper without weights is passed over: "ema" may hold the settings of an EMA. Under names
    that are not listed above, a state dict must have keys of a ResNeSt.
    """
    if not isinstance(content, Mapping) or depth > _DEEPEST_WRAPPER:
        return {}
    averages: list[Any] = []
    others: list[Any] = []
    for name in content:
        average = isinstance(name, str) and is_average(name)
        if not (name == _BEFORE_AVERAGING and _MMENGINE in content):
            (averages if average else others).append(name)
    if weights := _first(content, _AVERAGES, path, depth):
        return weights
    if averages and (weights := _named(content, averages, path, depth)):
        if len(beside := _networks(content, others, path, depth)) > 1:  # whose average is it?
            raise _several(path, [*beside, *averages])
        return weights
    if weights := _first(content, _WRAPPERS, path, depth):
        return weights
    weights = {key: value for key, value in content.items() if not _is_count(key)}
    if all(isinstance(key, str) and _is_plain(value) for key, value in weights.items()):
        return weights
    return _named(content, others, path, depth)


def _first(
    content: Mapping[Any, Any], names: Sequence[str], path: Path, depth: int
) -> dict[str, Any]:
    """The first state dict that `content` has under one of `names`, or an empty dictionary."""
    found = (_unwrap(content.get(name), path, depth + 1) for name in names)
    return next(filter(None, found), {})


def _named(content: Mapping[Any, Any], names: list[Any], path: Path, depth: int) -> dict[str, Any]:
    """The only network that `content` has under one of `names`, or an empty dictionary."""
    found = _networks(content, names, path, depth)
    if len(found) > 1:
        raise _several(path, list(found))
    return next(iter(found.values()), {})


def _networks(
    content: Mapping[Any, Any], names: list[Any], path: Path, depth: int
) -> dict[Any, dict[str, Any]]:
    """The networks that `content` has under `names`: those that fit here, if several are known."""
    found = {name: _unwrap(content[name], path, depth + 1) for name in names}
    found = {name: weights for name, weights in found.items() if count_known(weights)}
    if len(found) > 1:
        fitting = {name: weights for name, weights in found.items() if _fits(weights)}
        found = fitting or found
    return found


def _fits(weights: Mapping[str, Any]) -> bool:
    """Whether a state dict holds a network here, and not only one whose keys are alike."""
    return any(fitting_models(_shapes(weights, mapping)) for mapping in networks(weights))


def _shapes(weights: Mapping[str, Any], mapping: KeyMapping) -> dict[str, tuple[int, ...]]:
    return {
        official: tuple((_stored(value) or value).shape)
        for key, value in weights.items()
        if (official := mapping.official(key)) is not None
    }


def _recognize(weights: Mapping[str, Any], path: Path) -> KeyMapping:
    """How a file names the keys of the network in it.

    Of a network and its average it is the average's. Of a network here and one of another family,
    such as its teacher, it is the first one's.

    Raises:
        WeightsError: there are several networks.
    """
    found = networks(weights)
    if len(found) > 1:
        found = [each for each in found if fitting_models(_shapes(weights, each))] or found
    averages = [mapping for mapping in found if is_average(mapping.prefix)]
    if len(averages) == 1 and len(found) == 2:
        return averages[0]
    if len(found) > 1:
        raise _several(path, [mapping.prefix for mapping in found])
    return found[0]


def _several(path: Path, names: Sequence[Any]) -> WeightsError:
    shown = [str(name).removesuffix(".")[:80] for name in names]
    listed = ", ".join(name or "without a prefix" for name in shown[:3])
    part = next(filter(None, shown))
    return WeightsError(
        f"{path} holds several networks ({listed}): write one of them to a file of its own, as in "
        f"splitattn weights convert SRC one.safetensors --to official --part {part}"
    )


def _is_count(key: Any) -> bool:
    return isinstance(key, str) and key.rpartition(".")[2] in _COUNTERS


def _stored(value: object) -> StoredTensor | None:
    """The tensor behind a value of a pickle, if it is one."""
    stored = value.stored if isinstance(value, PickledArray) else value
    return stored if isinstance(stored, StoredTensor) else None


def _is_plain(value: object) -> bool:
    """Whether a value of a pickle is a tensor that a layer can take: real, dense and complete."""
    stored = _stored(value)
    # A file can show one number as a tensor of any size, which a copy would fill.
    return stored is not None and stored.dtype not in _COMPLEX and not stored.is_stretched


def _converted(value: Any, convert: Callable[[Any], T], key: str, path: Path) -> T:
    tensor = _stored(value) or value
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
    """The content of a pickle with PyTorch's tensors in it.

    Raises:
        TypeError: it has objects besides tensors and plain values.
    """
    if isinstance(content, dict):
        return {key: as_tensors(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map(as_tensors, content))
    if stored := _stored(content):
        return stored.tensor()
    if isinstance(content, Unknown | PickledArray):
        raise TypeError("it has objects besides tensors and plain values")
    return content


def write_checkpoint(
    path: str | Path,
    tensors: "Mapping[str, Array] | Mapping[str, Tensor]",
    metadata: ModelMetadata | None = None,
) -> None:
    """Write a safetensors file from arrays or tensors, whole or not at all.

    The file gets its name once it is on the disk. After an interrupted write, an older file of that
    name is still there.

    Raises:
        WeightsError: the file cannot be written.
    """
    with writing(Path(path)) as temporary:
        save_safetensors(temporary, tensors, metadata)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Wrap `files.replacing`: a file that cannot be written is an error of one line.

    Raises:
        WeightsError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WeightsError(f"cannot write weights to {path}: {reason}") from error


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
