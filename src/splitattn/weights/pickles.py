"""Reads files of `torch.save` and pickles of NumPy arrays. Reading a file never runs its code."""

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from splitattn.errors import InputError, WeightsError
from splitattn.files import open_file
from splitattn.libraries import require
from splitattn.weights.arrays import load_arrays

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
# The number that torch.save pickled first, before it wrote zip files.
_TORCH_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"


def load_pickle(path: Path) -> Any:
    """Read a file of `torch.save`, which needs PyTorch, or a pickle of NumPy arrays.

    Returns:
        Plain containers with tensors (on the CPU) or arrays in them.

    Raises:
        InputError: PyTorch is needed and not installed.
        OSError: the file cannot be read.
        WeightsError: the file is damaged, or holds anything besides numbers and plain containers.
    """
    # Opened here, because torch.load decides by the name. Its warnings (about TorchScript, about
    # pickle protocols) come before errors that say the same.
    with open_file(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        start = file.read(64)
        _check_magic(start, path)
        if start.startswith(_ZIP_MAGIC):
            _check_archive(file, path)
        file.seek(0)
        return _load(file, start, path)


def pickle_in_zip(path: Path) -> bytes:
    """The raw pickle inside a zip file of `torch.save`; empty for any other file.

    Raises:
        OSError: the file cannot be read.
        WeightsError: the archive is damaged, or larger than its file.
    """
    with open_file(path) as file:
        if not file.read(64).startswith(_ZIP_MAGIC):
            return b""
        _check_archive(file, path)
        try:
            with zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                return archive.read(names[0]) if names else b""
        except OSError:
            raise
        except Exception as error:  # zipfile raises anything for damaged bytes
            raise _damaged(path) from error


def require_torch(path: str | Path) -> None:
    """Raise unless PyTorch is installed, which reads the file at `path`.

    Raises:
        InputError: it is not installed; the message has the command that installs it.
    """
    require(f"{path} is a file of PyTorch, as .pth files are: reading it", "torch")


def _check_magic(start: bytes, path: Path) -> None:
    if not start:
        raise WeightsError(f"{path} is an empty file: get the weights again")
    if not start.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
        raise WeightsError(
            f"{path} is not a weights file: it must be safetensors or written by torch.save"
        )


def _check_archive(file: BinaryIO, path: Path) -> None:
    """Raise if the archive unpacks to more bytes than the file has: torch would unpack it."""
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
    except Exception as error:  # zipfile raises anything for damaged bytes
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
        require_torch(path)
        import torch

        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged or holds objects besides tensors or arrays, which could run code: "
            "save its state_dict alone, or as safetensors"
        ) from error
    except (OSError, InputError):
        raise
    except Exception as error:  # torch raises anything for damaged bytes
        raise _damaged(path) from error


def _damaged(path: Path) -> WeightsError:
    return WeightsError(f"{path} is truncated, damaged or not a file of torch.save: get it again")
