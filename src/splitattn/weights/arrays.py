"""Reads plain pickles of NumPy arrays, as detectron2 writes them, without running their code.

A pickle is a program that calls functions by name. This reader knows only the few names that arrays
need, replaces each with a stand-in that records its arguments, and refuses every other name. An
array's type and shape are checked before NumPy sees its bytes.
"""

import math
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# Kind and size of the numbers that a layer can hold.
_TYPES = frozenset({"u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8"})


class _Type:
    """Records a dtype."""

    __slots__ = ("code", "order")

    def __init__(self, code: object) -> None:
        self.code = code
        self.order: object = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """Records an array."""

    __slots__ = ("content", "fortran", "shape", "type")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.type, self.fortran, self.content = state


class _Unpickler(pickle._Unpickler):
    """The standard library's unpickler in Python.

    The one in C allocates its memo by an index in the file: a few bytes could take all memory.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, encoding="latin1")  # bytes of Python 2
        self._copies_left = size
        self.arrays: list[_Array] = []
        # New for each file, so that a file that changes them affects no other.
        self._stand_ins: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: self._array(),
            ("numpy.core.numeric", "_frombuffer"): self._from_buffer,
            ("numpy", "ndarray"): lambda *_: None,
            ("numpy", "dtype"): lambda code, *_: _Type(code),
            ("collections", "OrderedDict"): self._dictionary,
            ("__builtin__", "bytes"): lambda *_: b"",  # in old protocols; others are encoded
            ("_codecs", "encode"): lambda text, *_: text,  # by `_numbers`, once
        }

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")  # renamed by NumPy 2
        if (module, name) not in self._stand_ins:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return self._stand_ins[module, name]

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"extension {code} is not allowed")

    def _array(self) -> _Array:
        array = _Array()
        self.arrays.append(array)
        return array

    def _dictionary(self, *items: Any) -> dict[Any, Any]:
        # A call takes a few bytes and may copy everything else in the file: limit the copies.
        self._copies_left -= sum(map(len, items))
        if self._copies_left < 0:
            raise pickle.UnpicklingError("dictionaries larger than their file")
        return dict(*items)

    def _from_buffer(self, content: object, kind: object, shape: object, order: object) -> _Array:
        array = self._array()
        array.__setstate__((None, shape, kind, order == "F", content))
        return array


def load_arrays(file: BinaryIO, size: int) -> Any:
    """Unpickle `file`, of `size` bytes: arrays, in dictionaries that may be nested.

    Raises:
        pickle.UnpicklingError: it has objects other than arrays, or arrays of non-numbers.
        Exception: it is damaged; the type depends on the damage.
    """
    unpickler = _Unpickler(file, size)
    content = unpickler.load()
    # Many arrays could share the same bytes; complete ones are never larger than their file.
    if sum(len(array.content) for array in unpickler.arrays) > size:
        raise pickle.UnpicklingError("arrays larger than their file")
    return _with_arrays(content, {})


def _with_arrays(value: Any, done: dict[int, Any]) -> Any:
    """A copy of `value` with real arrays. `done` has the copies so far: values may repeat or nest
    in themselves.
    """
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _Array):
        done[id(value)] = _numbers(value)
    elif isinstance(value, dict):
        copy = done[id(value)] = {}
        copy.update((key, _with_arrays(item, done)) for key, item in value.items())
    else:
        return value
    return done[id(value)]


def _numbers(array: _Array) -> NDArray[Any]:
    kind, shape, content = array.type, array.shape, array.content
    if not isinstance(kind, _Type) or kind.code not in _TYPES or kind.order not in tuple("<>|="):
        raise pickle.UnpicklingError("an array of something besides numbers")
    if isinstance(content, str):
        content = content.encode("latin1")
    numbers = np.dtype(f"{kind.order}{kind.code}")
    whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not whole or math.prod(shape) * numbers.itemsize != len(content):
        raise pickle.UnpicklingError("an array that is not of its shape")
    values = np.frombuffer(content, numbers).reshape(shape, order="F" if array.fortran else "C")
    return np.array(values, numbers.newbyteorder("="), order="C")
