"""Reading a plain pickle of NumPy arrays, as detectron2 writes them, without running any of it.

A pickle is a program that calls what it names. Here the few names that arrays need are stand-ins
that only note down what they are given, and every other name is refused; NumPy sees the bytes of an
array once its type and shape have been checked.
"""

import math
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

# Kind and size of the numbers that both libraries have.
_TYPES = frozenset({"u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8"})


class _Type:
    """Notes down a dtype."""

    __slots__ = ("code", "order")

    def __init__(self, code: object) -> None:
        self.code = code
        self.order: object = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """Notes down an array."""

    __slots__ = ("content", "fortran", "shape", "type")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.type, self.fortran, self.content = state


class _Unpickler(pickle._Unpickler):
    """The one written in Python: a few bytes can make that in C take all memory for its memo."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, encoding="latin1")  # bytes of Python 2
        self._copies_left = size
        self.arrays: list[_Array] = []
        # Of this object alone, so that nothing which a file does to them outlives it.
        self._stand_ins: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: self._array(),
            ("numpy.core.numeric", "_frombuffer"): self._from_buffer,
            ("numpy", "ndarray"): lambda *_: None,
            ("numpy", "dtype"): lambda code, *_: _Type(code),
            ("collections", "OrderedDict"): self._dictionary,
            ("__builtin__", "bytes"): lambda *_: b"",  # in old protocols; others are encoded
            ("_codecs", "encode"): lambda text, *_: text,  # by `_tensor`, once
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
        # A call is a few bytes, and could copy what the rest of the file holds.
        self._copies_left -= sum(map(len, items))
        if self._copies_left < 0:
            raise pickle.UnpicklingError("dictionaries larger than their file")
        return dict(*items)

    def _from_buffer(self, content: object, kind: object, shape: object, order: object) -> _Array:
        array = self._array()
        array.__setstate__((None, shape, kind, order == "F", content))
        return array


def load_arrays(file: BinaryIO, size: int) -> Any:
    """What is pickled in `file`, of `size` bytes; arrays in (nested) dictionaries become tensors.

    Raises:
        pickle.UnpicklingError: it names something besides arrays, or arrays of no numbers.
        Exception: it is damaged, in any way there is.
    """
    unpickler = _Unpickler(file, size)
    content = unpickler.load()
    # Many arrays could share the same bytes; whole ones are never larger than their file.
    if sum(len(array.content) for array in unpickler.arrays) > size:
        raise pickle.UnpicklingError("arrays larger than their file")
    return _with_tensors(content, {})


def _with_tensors(value: Any, done: dict[int, Any]) -> Any:
    """A copy of `value` with tensors in it; `done` has copies of what repeats or holds itself."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _Array):
        done[id(value)] = _tensor(value)
    elif isinstance(value, dict):
        copy = done[id(value)] = {}
        copy.update((key, _with_tensors(item, done)) for key, item in value.items())
    else:
        return value
    return done[id(value)]


def _tensor(array: _Array) -> Tensor:
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
    return torch.from_numpy(np.array(values, numbers.newbyteorder("="), order="C"))
