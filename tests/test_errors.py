"""Errors are for people: one line, whatever is in it."""

import pickle

import pytest

from splitattn.errors import DataError, ImageError, InputError, WeightsError, nearest


@pytest.mark.parametrize("kind", [InputError, ImageError, WeightsError, DataError])
def test_a_message_is_one_line_of_text_whatever_it_quotes(kind: type[InputError]) -> None:
    error = kind("no such file: a\nb\r\x1b[31m\udcff é 日本")
    assert str(error) == r"no such file: a\nb\r\x1b[31m\udcff é 日本"
    # As it comes from a worker process.
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar10", "; did you mean 'CIFAR10'?"),
        ("onnx", "; did you mean 'onnxruntime'?"),
        ("ONNXruntim", "; did you mean 'onnxruntime'?"),
        ("tensorrt", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_found_in_any_case_and_by_its_beginning(name: str, hint: str) -> None:
    assert nearest(name, ["openvino", "onnxruntime", "CIFAR10"]) == hint
