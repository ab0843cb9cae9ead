"""Unpickles untrusted files. Nothing in them is imported or run.

A pickle is a program for a stack machine that calls functions by name. The machine here knows the
few names that arrays and tensors need, as functions of this module that check their arguments.
Every other name becomes an `Unknown`, and so does the result of calling it. So weights can be read
from files that also hold objects of the trainer's own classes.

Time and memory grow linearly with the size of the file: keys are short strings or integers, calls
copy no more bytes in total than the file has, and nested references may not multiply its values.
"""

import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

# Bytes per number, by PyTorch's name of the type.
ITEMSIZES = {
    **dict.fromkeys(("complex128",), 16),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2"), 1),
}
# PyTorch's storage classes, each for one type of number.
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
# NumPy's codes of the types that a layer can hold.
_CODES = {
    **{"f8": "float64", "f4": "float32", "f2": "float16"},
    **{"i8": "int64", "i4": "int32", "i2": "int16", "i1": "int8", "u1": "uint8"},
}
_LONGEST_KEY = 1000
_MOST_ARGUMENTS = 16
_MOST_DIMENSIONS = 16


class Unknown:
    """A placeholder for a class, function or object that this module does not know."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


@dataclass(frozen=True, eq=False, kw_only=True)
class Storage:
    """An array of numbers in a file, which tensors are views of.

    Attributes:
        dtype: PyTorch's name of their type.
        count: how many numbers.
        read: reads their bytes, in little-endian order.
    """

    dtype: str
    count: int
    read: Callable[[], bytearray]

    @cached_property
    def content(self) -> bytearray:
        """The bytes. They are read once, so tensors of one storage share memory."""
        content = self.read()
        if len(content) != self.count * ITEMSIZES[self.dtype]:
            raise pickle.UnpicklingError("a storage has fewer numbers than stated")
        return content


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredTensor:
    """A dense tensor or array whose numbers are still in the file.

    Attributes:
        storage: the numbers.
        dtype: PyTorch's name of their type.
        offset: index of the first number.
        shape: the shape.
        strides: steps between numbers along each axis, in numbers.
        negative: whether all numbers are negated.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    negative: bool = False

    def __post_init__(self) -> None:
        steps = list(zip(self.shape, self.strides, strict=True))
        whole = all(type(n) is int and 0 <= n < 2**63 for n in (self.offset, *self.shape))
        if not whole or not all(type(n) is int and 0 <= n < 2**63 for n in self.strides):
            raise pickle.UnpicklingError("a tensor's shape must be of whole numbers")
        last = self.offset + sum((size - 1) * stride for size, stride in steps)
        if 0 not in self.shape and last >= self._count:
            raise pickle.UnpicklingError("a tensor is larger than its numbers")

    @property
    def _count(self) -> int:
        storage = self.storage
        return storage.count * ITEMSIZES[storage.dtype] // ITEMSIZES[self.dtype]

    @property
    def is_stretched(self) -> bool:
        """Whether the tensor repeats numbers, so that a copy would be larger than the file."""
        return math.prod(self.shape) > self._count

    def array(self) -> NDArray[Any]:
        """The tensor as a NumPy array; bfloat16 becomes float32.

        Raises:
            pickle.UnpicklingError: the file has fewer numbers than stated.
            TypeError: NumPy has no such type.
        """
        half = self.dtype == "bfloat16"
        numbers = np.dtype("<u2" if half else self.dtype)
        array: NDArray[Any] = np.ndarray(
            self.shape,
            numbers,
            self.storage.content,
            self.offset * numbers.itemsize,
            [stride * numbers.itemsize for stride in self.strides],
        )
        if half:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return -array if self.negative else array

    def tensor(self) -> "Tensor":
        """The tensor as a PyTorch tensor on the CPU.

        Raises:
            pickle.UnpicklingError: the file has fewer numbers than stated.
        """
        import torch

        dtype = getattr(torch, self.dtype)
        if not self.storage.content:
            return torch.empty_strided(self.shape, self.strides, dtype=dtype)
        flat = torch.frombuffer(self.storage.content, dtype=dtype)
        tensor = flat.as_strided(self.shape, self.strides, self.offset)
        return tensor.neg() if self.negative else tensor


class _ArrayType:
    """NumPy's dtype."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.dtype = _CODES.get(code) if isinstance(code, str) else None
        self.is_bool = code == "b1"
        self.big_endian = False

    def build(self, state: Any) -> None:
        order = state[1]
        if not isinstance(order, str) or order not in "<>|=":
            raise pickle.UnpicklingError("an array's byte order is unknown")
        self.big_endian = order == ">"


class Array:
    """A NumPy array, which a pickle creates empty and fills later.

    Attributes:
        stored: its numbers; None if it was never filled, or holds something else.
    """

    def __init__(self) -> None:
        self.stored: StoredTensor | None = None

    def build(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _ArrayType):
            raise pickle.UnpicklingError("an array must have a type")
        if kind.dtype is None:
            return
        if isinstance(content, str):  # in old protocols
            content = content.encode("latin1")
        size = ITEMSIZES[kind.dtype]
        if not isinstance(content, bytes | bytearray) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array must have bytes and a shape")
        _check_shape(shape)
        if math.prod(shape) * size != len(content):
            raise pickle.UnpicklingError("an array does not have the size of its shape")
        kept = swapped(content, size) if kind.big_endian else content
        storage = Storage(dtype=kind.dtype, count=len(kept) // size, read=lambda: bytearray(kept))
        self.stored = StoredTensor(
            storage=storage,
            dtype=kind.dtype,
            offset=0,
            shape=shape,
            strides=_contiguous(shape[::-1])[::-1] if fortran else _contiguous(shape),
        )


def stored_tensor(value: object) -> StoredTensor | None:
    """The tensor behind a value of a pickle, if it is one."""
    stored = value.stored if isinstance(value, Array) else value
    return stored if isinstance(stored, StoredTensor) else None


@dataclass(frozen=True)
class _NumberType:
    """A storage class or a dtype of PyTorch; without a name, storage of untyped bytes."""

    dtype: str | None


@dataclass(frozen=True)
class _Function:
    """A function of this module that a pickle may call."""

    call: Callable[..., Any]


class Unpickler:
    """Runs the pickles of a file, one after the other.

    Args:
        file: is read from its current position.
        size: limit of the bytes that the pickles may copy, and of the values they may hold.
        storage: finds a storage by its type, key and count; None refuses files with storages.
    """

    def __init__(
        self,
        file: IO[bytes],
        size: int,
        storage: Callable[[str, str, int, Any], Storage] | None = None,
    ) -> None:
        self._file = file
        self._size = size
        self._left = size
        self._storage = storage
        self._names: dict[str, None] = {}
        self._functions: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: Array(),
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy.core.numeric", "_frombuffer"): self._from_buffer,
            ("numpy", "dtype"): _ArrayType,
            ("collections", "OrderedDict"): self._dictionary,
            ("collections", "defaultdict"): lambda *_: {},
            ("__builtin__", "bytes"): lambda *_: b"",  # in old protocols; others are encoded
            ("_codecs", "encode"): lambda text, *_: text,  # `Array.build` encodes it
            ("torch._utils", "_rebuild_tensor"): _tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
            ("torch._tensor", "_rebuild_from_type_v2"): self._from_type,
        }

    @property
    def unknown(self) -> list[str]:
        """Names of the classes and functions that were unknown so far."""
        return list(self._names)

    def load(self) -> Any:
        """Run the next pickle.

        Returns:
            Numbers, strings, lists, tuples, dictionaries, `StoredTensor`, `Array` and `Unknown`.

        Raises:
            pickle.UnpicklingError: the pickle does something that weights do not need.
            Exception: it is damaged; the type depends on the damage.
        """
        import pickletools  # not needed for safetensors, so not at every start

        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def to_mark() -> list[Any]:
            mark = marks.pop()
            items = stack[mark:]
            del stack[mark:]
            return items

        argument: Any
        for opcode, argument, _ in pickletools.genops(self._file):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case (
                    "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4"
                    | "FLOAT" | "BINFLOAT" | "STRING" | "BINSTRING" | "SHORT_BINSTRING"
                    | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8"
                    | "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8"
                ):  # fmt: skip
                    stack.append(argument)
                case "NONE":
                    stack.append(None)
                case "NEWTRUE":
                    stack.append(True)
                case "NEWFALSE":
                    stack.append(False)
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "MARK":
                    marks.append(len(stack))
                case "POP":
                    if marks and marks[-1] == len(stack):
                        marks.pop()
                    else:
                        stack.pop()
                case "POP_MARK":
                    to_mark()
                case "DUP":
                    stack.append(stack[-1])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "TUPLE":
                    items = to_mark()
                    stack.append(tuple(items))
                case "EMPTY_LIST":
                    stack.append([])
                case "LIST":
                    items = to_mark()
                    stack.append(items)
                case "APPEND":
                    item = stack.pop()
                    if isinstance(stack[-1], list):
                        stack[-1].append(item)
                case "APPENDS":
                    items = to_mark()
                    if isinstance(stack[-1], list):
                        stack[-1].extend(items)
                case "EMPTY_DICT":
                    stack.append({})
                case "DICT":
                    items = to_mark()
                    stack.append(_filled({}, items))
                case "SETITEM":
                    item, key = stack.pop(), stack.pop()
                    _filled(stack[-1], [key, item])
                case "SETITEMS":
                    items = to_mark()
                    _filled(stack[-1], items)
                case "EMPTY_SET":
                    stack.append(Unknown("set"))
                case "ADDITEMS":
                    to_mark()
                case "FROZENSET":
                    to_mark()
                    stack.append(Unknown("frozenset"))
                case "GLOBAL":
                    module, _, name = argument.partition(" ")
                    stack.append(self._find(module, name))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(self._find(module, name))
                case "INST":
                    module, _, name = argument.partition(" ")
                    items = to_mark()
                    stack.append(self._call(self._find(module, name), tuple(items)))
                case "OBJ":
                    function, *items = to_mark()
                    stack.append(self._call(function, tuple(items)))
                case "REDUCE" | "NEWOBJ":
                    arguments = stack.pop()
                    stack[-1] = self._call(stack[-1], arguments)
                case "NEWOBJ_EX":
                    _, arguments = stack.pop(), stack.pop()
                    stack[-1] = self._call(stack[-1], arguments)
                case "BUILD":
                    state = stack.pop()
                    if isinstance(stack[-1], Array | _ArrayType):
                        stack[-1].build(state)
                        if isinstance(stack[-1], Array):
                            self._copies(len(state[-1]))
                case "BINPERSID":
                    stack[-1] = self._persistent(stack[-1])
                case "STOP":
                    content = stack.pop()
                    _check_extent(content, 4 * self._size)
                    return content
                case _:
                    raise pickle.UnpicklingError(f"it uses {opcode.name}, which no weights need")
        raise pickle.UnpicklingError("it breaks off")

    def _find(self, module: object, name: object) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise pickle.UnpicklingError("a name must be a string")
        module = module.replace("numpy._core", "numpy.core")  # renamed by NumPy 2
        if function := self._functions.get((module, name)):
            return _Function(function)
        if module in ("torch", "torch.storage"):
            if name == "UntypedStorage":
                return _NumberType(None)
            if name in _STORAGES or name in ITEMSIZES:
                return _NumberType(_STORAGES.get(name, name))
        return Unknown(f"{module}.{name}"[:200])

    def _call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, _Function):
            if not isinstance(arguments, tuple) or len(arguments) > _MOST_ARGUMENTS:
                raise pickle.UnpicklingError("a call has too many arguments")
            return function.call(*arguments)
        if not isinstance(function, Unknown):
            return Unknown(type(function).__name__)
        if len(self._names) < 100:
            self._names[function.name] = None
        return Unknown(function.name)

    def _persistent(self, reference: Any) -> Any:
        if self._storage is None or not isinstance(reference, tuple) or len(reference) < 5:
            raise pickle.UnpicklingError("it refers to objects outside the file")
        kind, number_type, key, _, count, *rest = reference[:_MOST_ARGUMENTS]
        if kind != "storage" or not isinstance(number_type, _NumberType):
            return Unknown("storage")
        if not isinstance(key, str) or type(count) is not int or not 0 <= count < 2**63:
            raise pickle.UnpicklingError("a storage must have a key and a count")
        return self._storage(number_type.dtype or "uint8", key, count, rest[0] if rest else None)

    def _copies(self, count: int) -> None:
        # A call takes a few bytes and may copy everything else in the file: limit the copies.
        self._left -= count
        if self._left < 0:
            raise pickle.UnpicklingError("it unfolds to more than its own size")

    def _dictionary(self, *arguments: Any) -> dict[Any, Any]:
        content: dict[Any, Any] = {}
        for pairs in arguments:
            if not isinstance(pairs, dict | list | tuple):
                raise pickle.UnpicklingError("a dictionary must be made of pairs")
            self._copies(len(pairs))
            for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
                _filled(content, [key, value])
        return content

    def _from_buffer(self, content: object, kind: object, shape: object, order: object) -> Array:
        array = Array()
        array.build((None, shape, kind, order == "F", content))
        if isinstance(content, bytes | bytearray):
            self._copies(len(content))
        return array

    def _from_type(self, function: Any, _: object, arguments: Any, *__: object) -> Any:
        return self._call(function, arguments)


def swapped(content: bytes | bytearray, size: int) -> bytearray:
    """Numbers of `size` bytes each, with the bytes of each in reverse order."""
    if size == 16:  # a complex number is two
        size = 8
    return bytearray(np.frombuffer(content, f"u{size}").byteswap().tobytes())


def _filled(target: Any, items: list[Any]) -> Any:
    """Put alternating keys and values into `target`, if it is a dictionary."""
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value
    return target


def _key(key: Any) -> Any:
    """`key` if it is a short string or an integer, which hash fast; otherwise an `Unknown`."""
    if isinstance(key, str):
        if len(key) > _LONGEST_KEY:
            raise pickle.UnpicklingError(f"a key has more than {_LONGEST_KEY} characters")
        return key
    if isinstance(key, int) and abs(key) < 2**63:
        return key
    return Unknown(f"key of {type(key).__name__}")


def _check_extent(content: Any, most: int) -> None:
    """Raise if `content` contains itself, or has more than `most` values, counting repetitions."""
    extents: dict[int, int] = {}
    todo: list[tuple[Any, bool]] = [(content, False)]
    while todo:
        value, counted = todo.pop()
        children: Iterable[Any]
        if isinstance(value, dict):
            children = value.values()
        elif isinstance(value, list | tuple):
            children = value
        else:
            continue
        if counted:
            extents[id(value)] = 1 + sum(extents.get(id(child), 1) for child in children)
            if extents[id(value)] > most:
                raise pickle.UnpicklingError("it unfolds to more than its own size")
        elif id(value) not in extents:
            extents[id(value)] = 0  # until its children are counted
            todo.append((value, True))
            todo.extend((child, False) for child in children)
        elif extents[id(value)] == 0:
            raise pickle.UnpicklingError("it contains itself")


def _check_shape(shape: tuple[Any, ...]) -> None:
    if len(shape) > _MOST_DIMENSIONS or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise pickle.UnpicklingError("a shape must be of a few whole numbers")


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _scalar(kind: Any, content: Any = None) -> Any:
    """A NumPy scalar as Python's number."""
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(kind, _ArrayType) or not isinstance(content, bytes):
        return Unknown("numpy.scalar")
    if kind.is_bool and len(content) == 1:
        return content != b"\0"
    if kind.dtype is None or len(content) != ITEMSIZES[kind.dtype]:
        return Unknown("numpy.scalar")
    kept = swapped(content, len(content)) if kind.big_endian else content
    return np.frombuffer(kept, kind.dtype)[0].item()


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: str | None = None
) -> Any:
    """A tensor of `torch._utils._rebuild_tensor_v2`."""
    if not isinstance(storage, Storage):
        return Unknown("tensor")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise pickle.UnpicklingError("a tensor must have a shape")
    _check_shape(shape)
    if len(strides) != len(shape):
        raise pickle.UnpicklingError("a tensor must have as many strides as sides")
    metadata = rest[2] if len(rest) > 2 else None
    return StoredTensor(
        storage=storage,
        dtype=dtype or storage.dtype,
        offset=offset,
        shape=shape,
        strides=strides,
        negative=isinstance(metadata, dict) and metadata.get("neg") is True,
    )


def _typed_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _gradient: Any,
    _hooks: Any,
    number_type: Any,
    metadata: Any = None,
) -> Any:
    """A tensor of `torch._utils._rebuild_tensor_v3`, whose storage has no type."""
    if not isinstance(number_type, _NumberType) or number_type.dtype is None:
        return Unknown("tensor")
    return _tensor(storage, offset, shape, strides, None, None, metadata, dtype=number_type.dtype)
