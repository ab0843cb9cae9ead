"""Reading and writing files of tensors. No file, whatever it holds, can run code by being read."""

import errno
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from splitattn.architectures import architecture
from splitattn.errors import WeightsError
from splitattn.files import replacing
from splitattn.weights.arrays import load_arrays
from splitattn.weights.layouts import OFFICIAL, Spelling, recognize
from splitattn.weights.matching import Widths, check_layout, check_match
from splitattn.weights.metadata import (
    METADATA_KEY,
    ModelMetadata,
    damaged,
    is_safetensors,
    metadata_of,
    unreadable,
)

# Where training scripts put the state dict; where several are present, averaged weights come first.
_WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model")
_MOST_WRAPPERS = 32
# What DataParallel puts before every key, and torch.compile before those of what it compiled.
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
# The counter that torch's AveragedModel keeps beside the weights it averages.
_NOT_WEIGHTS = frozenset({"n_averaged"})

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
# The number that torch.save, before it wrote zip files, pickled before all else.
_TORCH_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file's tensors, and what it says about itself.

    Attributes:
        path: the file.
        state_dict: tensors by official key.
        metadata: what it says about itself, if it says anything.
        spelling: how the file writes its keys.
        strangers: keys, as in the file, that its layout does not have and whose tensors are left
            out. Every key of the official layout is taken as it is.
        surroundings: keys, as in the file, of the larger model that this network is the backbone
            of, such as a detector's neck and heads; their tensors are left out too.
    """

    path: Path
    state_dict: dict[str, Tensor]
    metadata: ModelMetadata | None
    spelling: Spelling
    strangers: tuple[str, ...]
    surroundings: tuple[str, ...]

    @property
    def surroundings_in_words(self) -> str:
        """How many tensors `surroundings` names, and the first of them; empty if there is none."""
        if not (count := len(self.surroundings)):
            return ""
        names = ", ".join(key[:80] for key in self.surroundings[:3])
        more = ", ..." if count > 3 else ""
        tensors = "tensor" if count == 1 else "tensors"
        return f"{count} {tensors} of the larger model around the backbone ({names}{more})"


def check_fits(checkpoint: Checkpoint, network: Mapping[str, Tensor], *, model: str) -> Widths:
    """Raise unless a checkpoint is one of the model, for however many classes and channels.

    Args:
        network: the state dict of such a network, for any number of classes and channels, on any
            device, `meta` too.
        model: its name.

    Returns:
        For how many classes and channels the checkpoint is.

    Raises:
        WeightsError: it is not, or has whole numbers where the network computes with fractions.
    """
    origin, spelling = str(checkpoint.path), checkpoint.spelling
    check_layout(spelling, architecture(model), model=model, origin=origin)
    widths = check_match(
        {key: tuple(value.shape) for key, value in checkpoint.state_dict.items()},
        {key: tuple(value.shape) for key, value in network.items()},
        model=model,
        origin=origin,
        spelling=spelling,
        strangers=checkpoint.strangers,
    )
    for key, value in checkpoint.state_dict.items():
        if network[key].is_floating_point() and not value.is_floating_point():
            raise WeightsError(
                f"{origin} must hold floating-point numbers, {spelling.own(key)} is of "
                f"{str(value.dtype).removeprefix('torch.')}: save the network before it is "
                "quantized"
            )
    return widths


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file onto the CPU, whatever it is called and however it names its tensors.

    It is a safetensors file, one of `torch.save`, or a pickle of NumPy arrays. Wrappers
    (`state_dict`, `model`, `ema`, ...) are opened and prefixes (`module.`, `_orig_mod.`) removed,
    so that the keys are those of the module that was trained; those of another project become
    official ones.

    Raises:
        WeightsError: the file cannot be read, is damaged, holds no weights, or holds anything
            besides tensors and plain containers (which torch refuses to unpickle).
    """
    path = Path(path)
    try:
        if is_safetensors(path):
            return _read_safetensors(path)
        return _checkpoint(path, _state_dict(_unpickle(path), path), None)
    except OSError as error:
        raise unreadable(path, error) from error


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = metadata_of(path, file.metadata())
    except SafetensorError as error:
        raise damaged(path) from error
    return _checkpoint(path, _state_dict(tensors, path), metadata)


def _checkpoint(
    path: Path, tensors: dict[str, Tensor], metadata: ModelMetadata | None
) -> Checkpoint:
    spelling = recognize(tensors)
    officials = {
        key: key if spelling.layout is OFFICIAL else spelling.official(key) for key in tensors
    }
    nameless = [key for key, name in officials.items() if name is None]
    return Checkpoint(
        path=path,
        state_dict={name: tensors[key] for key, name in officials.items() if name is not None},
        metadata=metadata,
        spelling=spelling,
        strangers=tuple(key for key in nameless if not spelling.is_outside(key)),
        surroundings=tuple(filter(spelling.is_outside, nameless)),
    )


def _unpickle(path: Path) -> Any:
    # Opened here, because torch.load would go by the name. Its warnings (of TorchScript archives,
    # of pickle protocols) precede errors that say the same.
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        start = file.read(64)
        _check_magic(start, path)
        if start.startswith(_ZIP_MAGIC):
            _check_archive(file, path)
        file.seek(0)
        return _load(file, start, path)


def _check_magic(start: bytes, path: Path) -> None:
    if not start:
        raise WeightsError(f"{path} is an empty file: get the weights again")
    if not start.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
        raise WeightsError(
            f"{path} is not a weights file: it must be safetensors or written by torch.save"
        )


def _check_archive(file: BinaryIO, path: Path) -> None:
    """Raise if the records of a zip archive are more than its bytes, as torch would unpack them."""
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
    except Exception as error:  # damaged bytes make zipfile fail in any way there is
        raise _damaged(path) from error
    if unpacked > path.stat().st_size:
        raise WeightsError(
            f"{path} is compressed, which torch.save does not do, and would unpack to "
            f"{unpacked:,} bytes: unpack it and save its state_dict again"
        )


def _load(file: BinaryIO, start: bytes, path: Path) -> Any:
    try:
        if start.startswith(_PICKLE_MAGIC) and _TORCH_MAGIC not in start:
            return load_arrays(file, os.fstat(file.fileno()).st_size)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged or holds objects besides tensors or arrays, which could run code: "
            "save its state_dict alone, or as safetensors"
        ) from error
    except OSError:
        raise
    except Exception as error:  # damaged bytes make torch fail in any way there is
        raise _damaged(path) from error


def _damaged(path: Path) -> WeightsError:
    return WeightsError(f"{path} is truncated, damaged or not a file of torch.save: get it again")


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    tensors = _unwrap(content, set())
    if not tensors:
        raise WeightsError(
            f"{path} holds no weights: it must be a state_dict, on its own or under one of "
            f"{', '.join(sorted(_WRAPPERS))}"
        )
    bare = {_PREFIXES.sub("", key): tensor for key, tensor in tensors.items()}
    if len(bare) < len(tensors):
        raise WeightsError(
            f"{path} holds some weights both with and without a prefix such as module.: "
            "save one model's state_dict"
        )
    return bare


def _unwrap(content: Any, seen: set[int]) -> dict[str, Tensor]:
    """The innermost state dict, or an empty one if there is none.

    A wrapper may hold something else, as the settings of an average do that was never kept.
    """
    # A hostile dictionary can hold itself, or others more often than there is time for.
    if not isinstance(content, Mapping) or id(content) in seen or len(seen) == _MOST_WRAPPERS:
        return {}
    seen.add(id(content))
    for wrapper in _WRAPPERS:
        if weights := _unwrap(content.get(wrapper), seen):
            return weights
    weights = {key: value for key, value in content.items() if key not in _NOT_WEIGHTS}
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or not _plain(value):
            return {}
    return weights


def _plain(tensor: Tensor) -> bool:
    """Whether the tensor holds numbers that a layer can take: dense, real, and all there."""
    dense = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    if not dense or tensor.is_complex():
        return False
    # One number in a file can be shown as a tensor of any size, which would be copied in full.
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def write_checkpoint(
    path: str | Path, state_dict: Mapping[str, Tensor], metadata: ModelMetadata | None = None
) -> None:
    """Write a safetensors file, whole or not at all.

    The file appears under its name once it is on the disk; an interrupted write leaves an older
    file of that name as it was.

    Raises:
        WeightsError: the file cannot be written.
    """
    with writing(Path(path)) as temporary:
        save_safetensors(temporary, state_dict, metadata)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """`files.replacing`, where what keeps weights from being written is an error in one line.

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
    path: Path, state_dict: Mapping[str, Tensor], metadata: ModelMetadata | None
) -> None:
    """Write a safetensors file in place.

    Raises:
        OSError, SafetensorError: the file cannot be written.
    """
    # safetensors takes neither views (channels_last weights are views to it) nor device memory.
    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    save_file(tensors, path, {METADATA_KEY: metadata.to_json()} if metadata else None)


def save_pickle(path: Path, state_dict: Mapping[str, Tensor], wrapper: str | None) -> None:
    """Write a file of `torch.save` in place: the state dict, or a dict with it under `wrapper`.

    Raises:
        OSError: the file cannot be written.
    """
    # Copies, for torch.save writes all of the memory that a tensor is a part of.
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in state_dict.items()
    }
    try:
        torch.save({wrapper: tensors} if wrapper else tensors, path)
    except RuntimeError as error:  # how torch's own writer says that the disk is full
        raise OSError(errno.EIO, " ".join(str(error).split())) from error
