"""Pickles of every protocol: detectron2's, trainers' with objects, and hostile ones."""

import io
import pickle
import pickletools
import re
import struct
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from splitattn.errors import WeightsError
from splitattn.weights.checkpoint import read_tensors
from splitattn.weights.unpickler import Unpickler

ARRAYS = {
    "float32": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "float16": np.array([0.5, -0.0, np.nan], dtype=np.float16),
    "float64": np.array(2.5),
    "int64": np.array(7),
    "uint8": np.array([[1], [255]], dtype=np.uint8),
    "big endian": np.array([1.5, 2.5], dtype=">f4"),
    "Fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "empty": np.zeros((0, 3), dtype=np.float32),
}


def read(folder: Path, content: bytes) -> dict[str, torch.Tensor]:
    path = folder / "model.pkl"
    path.write_bytes(content)
    return read_tensors(path).tensors


def refusal(folder: Path, content: bytes) -> str:
    with pytest.raises(WeightsError) as error:
        read(folder, content)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("container", [dict, OrderedDict])
def test_arrays_become_tensors_of_the_same_numbers(
    tmp_path: Path, protocol: int, container: Callable[..., dict[str, Any]]
) -> None:
    file = {"model": container(ARRAYS), "__author__": "third_party", "matching_heuristics": True}
    state = read(tmp_path, pickle.dumps(file, protocol))
    assert state.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        assert state[key].shape == array.shape
        np.testing.assert_array_equal(state[key].numpy(), array)
        assert state[key].dtype == getattr(
            torch, {"big endian": "float32"}.get(key, str(array.dtype))
        )


def test_tensors_can_be_written_to_without_harm(tmp_path: Path) -> None:
    shared = np.zeros(3, dtype=np.float32)
    state = read(tmp_path, pickle.dumps({"a": shared, "b": shared}))
    state["a"].add_(1)
    assert state["a"].tolist() == [1, 1, 1]


def test_files_of_python_2_are_read(tmp_path: Path) -> None:
    """Strings of Python 2 are bytes, and NumPy's modules had other names."""
    numbers = np.array([1.5, -2.0], dtype=np.float32)
    content = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\0K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
        b"\x89U\x08" + numbers.tobytes() + b"tbs."
    )
    assert pickle.loads(content, encoding="latin1")["a"].tolist() == [1.5, -2.0]
    assert read(tmp_path, content)["a"].tolist() == [1.5, -2.0]


class Payload:
    """Creates the file `path` when a reader runs the code of its pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_no_code_runs(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    content = pickle.dumps({"model": {"a": ARRAYS["int64"]}, "b": Payload(canary)}, protocol)
    if protocol:
        assert read(tmp_path, content).keys() == {"a"}
    else:
        assert "not a weights file" in refusal(tmp_path, content)
    assert not canary.exists()
    pickle.loads(content)
    assert canary.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"builtins eval",
        b"builtins getattr",
        b"os system",
        b"numpy load",
        b"numpy.core.multiarray fromfile",
        b"_codecs decode",
        b"collections namedtuple",
        b"torch.storage _load_from_bytes",
        b"copyreg _reconstructor",
    ],
)
def test_only_the_names_that_arrays_need_are_known(tmp_path: Path, name: bytes) -> None:
    content = b"\x80\x02c" + name.replace(b" ", b"\n") + b"\nX\x01\0\0\0a\x85R."
    assert f"({name.decode().replace(' ', '.')})" in refusal(tmp_path, content)


def test_extensions_are_refused(tmp_path: Path) -> None:
    assert "it uses EXT1" in refusal(tmp_path, b"\x80\x02\x82\x01.")


def forged(shape: object, code: str, state: tuple[Any, ...], content: object) -> bytes:
    """A pickled array with these parts, which may contradict each other."""

    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            return (
                np.zeros(0).__reduce__()[0],
                (np.ndarray, (0,), b"b"),
                (1, shape, Kind(), False, content),
            )

    class Kind:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, (code, False, True), state

    return pickle.dumps({"a": Forged()}, protocol=4)


LITTLE = (3, "<", None, None, None, -1, -1, 0)


def test_a_forged_array_with_valid_parts_is_read(tmp_path: Path) -> None:
    content = forged((2,), "f4", LITTLE, bytes(8))
    assert read(tmp_path, content)["a"].tolist() == [0, 0]
    assert pickle.loads(content)["a"].tolist() == [0, 0]


@pytest.mark.parametrize(
    "content",
    [
        # An array of objects whose addresses are in the file; NumPy would follow them.
        forged((1,), "O", (3, "|", None, None, None, -1, -1, 0), bytes(8)),
        forged((1,), "O8", LITTLE, [Path]),
        forged((2,), "f4", LITTLE, bytes(7)),
        forged((2**40,), "f4", LITTLE, bytes(8)),
        forged((-2, -1), "f4", LITTLE, bytes(8)),
        forged([2], "f4", LITTLE, bytes(8)),
        forged((2.0,), "f4", LITTLE, bytes(8)),
        forged((True, 2), "f4", LITTLE, bytes(8)),
        forged(2, "f4", LITTLE, bytes(8)),
        forged((2,), "f4", (3, "x"), bytes(8)),
        forged((2,), "f4", (), bytes(8)),
        forged((2,), "f4,f4", LITTLE, bytes(16)),
        forged((2,), "U1", LITTLE, bytes(8)),
        forged((2,), "c8", LITTLE, bytes(16)),
        forged((2,), "b1", LITTLE, b"\x02\x03"),
        forged((2,), "f4", LITTLE, None),
        forged((2,), "f4", LITTLE, [1, 2]),
    ],
)
def test_arrays_that_no_layer_takes_are_refused(tmp_path: Path, content: bytes) -> None:
    assert re.search("damaged|holds no weights", refusal(tmp_path, content))


def test_an_array_without_content_is_refused(tmp_path: Path) -> None:
    content = b"\x80\x02}X\x01\0\0\0acnumpy.core.multiarray\n_reconstruct\n)Rs."
    assert "holds no weights" in refusal(tmp_path, content)


def test_a_file_cannot_grow_in_memory(tmp_path: Path) -> None:
    """A hundred arrays share the same bytes in the file."""
    body = bytes(10_000)
    rebuild = np.zeros(0).__reduce__()[0]

    class Copy:
        def __reduce__(self) -> tuple[Any, ...]:
            state = (1, (10_000,), np.dtype("u1"), False, body)
            return rebuild, (np.ndarray, (0,), b"b"), state

    content = pickle.dumps({str(number): Copy() for number in range(100)}, protocol=4)
    assert len(content) < 30_000
    assert "damaged" in refusal(tmp_path, content)


@pytest.mark.parametrize("call", ["encode", "OrderedDict"])
def test_calls_cannot_copy_more_than_the_file(tmp_path: Path, call: str) -> None:
    """A few bytes each would copy the largest object in the file again."""
    calls = 400
    if call == "encode":
        text = b"a" * 2**20
        arguments = b"X" + struct.pack("<I", len(text)) + text + b"X\x06\0\0\0latin1\x86q\x01"
        content = b"\x80\x02c_codecs\nencode\nq\x00" + arguments
    else:
        items = b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(60_000))
        content = b"\x80\x02ccollections\nOrderedDict\nq\x00}q\x02(" + items + b"u\x85q\x01"
    content += b"h\x00h\x01R" * calls + b"."
    tracemalloc.start()
    refusal(tmp_path, content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20  # the copies would take 400 MB and more


def test_dictionaries_made_of_pairs_are_read(tmp_path: Path) -> None:
    """Python 2 writes an OrderedDict so."""

    class Pairs:
        def __reduce__(self) -> tuple[Any, ...]:
            return OrderedDict, ([[key, array] for key, array in ARRAYS.items()],)

    assert read(tmp_path, pickle.dumps({"model": Pairs()}, 2)).keys() == ARRAYS.keys()


def test_a_huge_memo_index_takes_no_memory(tmp_path: Path) -> None:
    """The memo of the C unpickler would be as long as the largest index."""
    refusal(tmp_path, b"\x80\x02}r" + struct.pack("<I", 2**32 - 2) + b".")


def test_dictionaries_that_hold_each_other_do_not_loop(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": ARRAYS["int64"]}
    for _ in range(200):
        content = {"model": content, "state_dict": content, "ema": content}
    refusal(tmp_path, pickle.dumps(content))
    content["model"] = content
    refusal(tmp_path, pickle.dumps(content))


def test_a_file_changes_no_global_state(tmp_path: Path) -> None:
    """A file can set attributes only on objects that are made anew for each read."""
    poison = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n"
        b"N}X\x0c\0\0\0__defaults__)s\x86b."  # BUILD with (None, {"__defaults__": ()})
    )
    pickletools.dis(poison, io.StringIO())
    refusal(tmp_path, poison)
    assert read(tmp_path, pickle.dumps(ARRAYS)).keys() == ARRAYS.keys()


def test_damage_anywhere_is_reported_in_one_line_or_does_no_harm(tmp_path: Path) -> None:
    content = pickle.dumps({"model": {"a": ARRAYS["float32"]}})
    refusals = []
    for position in range(len(content)):
        for value in (0, 46, 255):
            damaged = bytearray(content)
            damaged[position] = value
            try:
                read(tmp_path, bytes(damaged))
            except WeightsError as error:
                refusals.append(str(error))
    assert len(refusals) > len(content)
    assert "\n" not in "".join(refusals)


def test_a_protocol_5_array_is_read(tmp_path: Path) -> None:
    """NumPy pickles writable arrays as BYTEARRAY8."""
    content = pickle.dumps({"a": ARRAYS["float32"]}, 5)
    assert "BYTEARRAY8" in {opcode.name for opcode, *_ in pickletools.genops(content)}
    np.testing.assert_array_equal(read(tmp_path, content)["a"].numpy(), ARRAYS["float32"])


# A few bytes that cause 2**60 or n**2 steps.
NEST = b"K\x01\x85" + b"2\x86" * 60  # ((1,), (1,)), 60 levels deep, shared at each level
LONG_KEY = b"X" + struct.pack("<I", 200_000) + b"a" * 200_000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"}" + NEST + b"K\x01s.", "holds no weights"),
        (b"}X\x01\0\0\0a" + NEST + b"s.", "unfolds to more than its own size"),
        (b"}(" + NEST + b"K\x01t\x85K\x01s.", "holds no weights"),
        (b"\x8f(" + NEST + b"\x90.", "holds no weights"),
        (b"(" + NEST + b"\x91.", "holds no weights"),
        (b"}q\0" + LONG_KEY + b"K\x01s.", "a key has more than 1000 characters"),
        (b"}\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b"K\x01s.", "no weights"),
        (b"ccollections\nOrderedDict\n(" + b"K\x01" * 30 + b"tR.", "too many arguments"),
        (b"}q\0X\x01\0\0\0ah\0s.", "it contains itself"),
        (b"\x96" + struct.pack("<Q", 2**40) + b".", "truncated"),
        (b"\x8d" + struct.pack("<Q", 2**62) + b".", "truncated"),
        (b"Q.", "truncated"),
        (b"Nq\x01\x97.", "it uses NEXT_BUFFER"),
    ],
)
def test_a_pickle_bomb_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in refusal(tmp_path, b"\x80\x02" + content)


def test_numpys_scalars_are_numbers() -> None:
    values = {
        "f4": np.float32(0.5), "f8": np.float64(-2.5), "i8": np.int64(7), "b": np.True_,
        "big": np.array([1.5], ">f8")[0],
    }  # fmt: skip
    for protocol in (2, 4, 5):
        found = Unpickler(io.BytesIO(pickle.dumps(values, protocol)), 10_000).load()
        assert found == {"f4": 0.5, "f8": -2.5, "i8": 7, "b": True, "big": 1.5}
