"""Reads files of `torch.save` and pickles of NumPy arrays. Needs no PyTorch and runs no code.

`torch.save` writes a zip file: a pickle, and a record of bytes for each storage that it refers to.
Before version 1.6, it wrote one pickle after the other, and the storages at the end of the file.
"""

import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from splitattn.errors import WeightsError
from splitattn.files import LFS_POINTER, is_file, open_file
from splitattn.weights.unpickler import ITEMSIZES, Storage, Unpickler, swapped

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
# The first bytes of a Git LFS pointer, which a clone may have in place of a large file.
# The first three pickles of a file of `torch.save` before zip files: a number, the version of the
# format, and sizes of the writer's types.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True, kw_only=True)
class Pickle:
    """The content of a file.

    Attributes:
        content: numbers, strings, lists, tuples and dictionaries, with `StoredTensor`, `Array` and
            `Unknown` in them. Its size is bounded by that of the file.
        unknown: names of the classes and functions that became `Unknown`.
    """

    content: Any
    unknown: list[str]


def is_archive(path: Path) -> bool:
    """Whether the file at `path` begins like a zip file.

    Raises:
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        return file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC


def check_begins_as_weights(path: Path) -> None:
    """Raise unless a file begins like one of `torch.save` or a pickle.

    Raises:
        OSError: the file cannot be read.
        WeightsError: it begins in another way.
    """
    with open_file(path) as file:
        start = file.read(len(LFS_POINTER))
    if not start:
        raise WeightsError(f"{path} is an empty file: get the weights again")
    if start == LFS_POINTER:
        raise WeightsError(f"{path} is a pointer of Git LFS: get the file with git lfs pull")
    if not start.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
        raise _no_weights(path)


def _no_weights(path: Path) -> WeightsError:
    graph = path.with_suffix(".xml")
    if path.suffix == ".bin" and is_file(graph):
        return WeightsError(f"{path} is the second file of {graph}, an exported network: name that")
    return WeightsError(
        f"{path} is not a weights file: it must be safetensors or written by torch.save; if "
        "it is an exported network, pass the weights it was exported from"
    )


def load_pickle(path: Path) -> Pickle:
    """Read a file of `torch.save` or a pickle of NumPy arrays. Tensors are read on first use.

    Raises:
        OSError: the file cannot be read.
        WeightsError: the file is damaged, or its pickle does something that weights do not need.
    """
    check_begins_as_weights(path)
    with open_file(path) as file:
        load = _load_zip if file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC else _load_pickles
        file.seek(0)
        try:
            return load(file, path)
        except (OSError, WeightsError):
            raise
        except Exception as error:  # damaged bytes raise anything
            raise damaged_pickle(path, error) from error


def damaged_pickle(path: Path, error: Exception) -> WeightsError:
    """The error for a pickle that cannot be read."""
    if isinstance(error, pickle.UnpicklingError):
        return WeightsError(
            f"{path} is damaged or not a file of weights ({error}): save the network's state_dict "
            "again, or as safetensors"
        )
    return WeightsError(f"{path} is truncated, damaged or not a file of torch.save: get it again")


def _load_zip(file: BinaryIO, path: Path) -> Pickle:
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        unpacked = sum(record.file_size for record in records.values())
        if any(record.endswith("/constants.pkl") for record in records):
            raise WeightsError(
                f"{path} is a TorchScript program, whose code is not run: write the state_dict() "
                "of torch.jit.load's module with torch.save"
            )
        if unpacked > path.stat().st_size:
            raise WeightsError(
                f"{path} is compressed, which torch.save does not do, and would unpack to "
                f"{unpacked:,} bytes: unpack it and save its state_dict again"
            )
        name = next((name for name in records if name.endswith("/data.pkl")), None)
        if name is None:  # such as an archive of torch.export
            raise _no_weights(path)
        folder = name.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        big_endian = order in records and archive.read(order) == b"big"
        pickled = archive.read(name)

    def storage(dtype: str, key: str, count: int, _: Any) -> Storage:
        record = records[f"{folder}data/{key}"]
        size = count * ITEMSIZES[dtype]
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != size:
            raise pickle.UnpicklingError("a storage has another size than stated")
        read = partial(_record, path, record.header_offset, size)
        return _storage(dtype, count, read, big_endian)

    unpickler = Unpickler(BytesIO(pickled), len(pickled), _shared(storage))
    return Pickle(content=unpickler.load(), unknown=unpickler.unknown)


def _record(path: Path, offset: int, size: int) -> bytearray:
    """The bytes of a record whose local header, which may be padded, begins at `offset`."""
    with open_file(path) as file:
        file.seek(offset + 26)
        lengths = file.read(4)  # of the name and of the rest of the header
        start = offset + 30 + sum(int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2))
    return _bytes(path, start, size)


def _bytes(path: Path, start: int, size: int) -> bytearray:
    with open_file(path) as file:
        file.seek(start)
        content = bytearray(size)
        if cast(BufferedReader, file).readinto(content) != size:
            raise pickle.UnpicklingError("it breaks off")
    return content


def _storage(dtype: str, count: int, read: Callable[[], bytearray], big_endian: bool) -> Storage:
    size = ITEMSIZES[dtype]
    if big_endian and size > 1:
        return Storage(dtype=dtype, count=count, read=lambda: swapped(read(), size))
    return Storage(dtype=dtype, count=count, read=read)


def _shared(
    storage: Callable[[str, str, int, Any], Storage],
) -> Callable[[str, str, int, Any], Storage]:
    """Wrap `storage` so that each storage is created once and its bytes are read once."""
    found: dict[tuple[str, str, int, Any], Storage] = {}

    def once(dtype: str, key: str, count: int, view: Any) -> Storage:
        name = (dtype, key, count, view if isinstance(view, str) else None)
        if name not in found:
            found[name] = storage(dtype, key, count, view)
        return found[name]

    return once


@dataclass
class _Bounded:
    """A file that never reads beyond its end, so that a wrong length allocates no memory."""

    file: BinaryIO
    size: int

    def read(self, size: int, /) -> bytes:
        return self.file.read(min(size, self.size))

    def readline(self) -> bytes:
        return self.file.readline()

    def tell(self) -> int:
        return self.file.tell()


@dataclass
class _Legacy:
    """The storages at the end of a file of `torch.save` before zip files.

    Attributes:
        wanted: type and count of each storage that the pickle refers to, by key.
        places: offset of each storage's bytes.
    """

    path: Path
    wanted: dict[str, tuple[str, int]] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    big_endian: bool = False

    def storage(self, dtype: str, key: str, count: int, view: Any) -> Storage:
        if view is not None:
            raise pickle.UnpicklingError("it is of a version of PyTorch before 0.4")
        if self.wanted.setdefault(key, (dtype, count)) != (dtype, count):
            raise pickle.UnpicklingError("a storage has two types")
        size = count * ITEMSIZES[dtype]
        return _storage(
            dtype, count, lambda: _bytes(self.path, self.places[key], size), self.big_endian
        )

    def find(self, file: BinaryIO, keys: Any, size: int) -> None:
        """Find the storages: each is its count, as eight bytes, followed by its numbers."""
        if not isinstance(keys, list) or set(keys) != set(self.wanted):
            raise pickle.UnpicklingError("it refers to other storages than it has")
        for key in keys:
            dtype, count = self.wanted[key]
            order = "big" if self.big_endian else "little"
            if int.from_bytes(file.read(8), order) != count:  # type: ignore[arg-type]
                raise pickle.UnpicklingError("a storage has another size than stated")
            self.places[key] = file.tell()
            if file.seek(count * ITEMSIZES[dtype], os.SEEK_CUR) > size:
                raise pickle.UnpicklingError("it breaks off")


def _load_pickles(file: BinaryIO, path: Path) -> Pickle:
    size = os.fstat(file.fileno()).st_size
    legacy = _Legacy(path)
    bounded = cast(IO[bytes], _Bounded(file, size))
    unpickler = Unpickler(bounded, size, _shared(legacy.storage))
    content = unpickler.load()
    if content != _LEGACY_MAGIC:
        return Pickle(content=content, unknown=unpickler.unknown)
    _, system = unpickler.load(), unpickler.load()
    legacy.big_endian = isinstance(system, dict) and system.get("little_endian") is False
    content = unpickler.load()
    legacy.find(file, unpickler.load(), size)
    return Pickle(content=content, unknown=unpickler.unknown)
