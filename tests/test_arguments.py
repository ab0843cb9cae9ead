"""Arguments of a wrong type are refused at the call, in one line."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import splitattn
from splitattn.arguments import check_type, checked
from splitattn.errors import InputError
from splitattn.images.limits import Limits

ODD = object()


@pytest.mark.parametrize(
    ("annotation", "accepted", "refused", "rule"),
    [
        (int | None, [3, np.int64(3), None], [True, 3.0, "3"], "a whole number"),
        (float, [0.5, 1, np.float32(1)], [True, "1", None, b""], "a number"),
        (bool, [True, np.bool_(False)], [1, None, "yes"], "True or False"),
        (str | Path | None, ["a", Path("a"), None], [5, b"a", []], "a name or a path"),
        (str | int, ["a", 1], [True, 1.5, None], "a name or a whole number"),
        (Literal["exact", "fast"], ["exact"], ["slow", None, []], "'exact' or 'fast'"),
        (Callable[[int], None], [print], [5, None, "print"], "a function"),
        (Iterable[str], [["a"], ("a",), {"a"}], [5, None], "a list"),
        (Limits, [Limits()], [5, None, Limits], "Limits"),
        (Any, [5, None], [], ""),
    ],
)
def test_a_value_must_be_of_the_annotated_type(
    annotation: Any, accepted: list[Any], refused: list[Any], rule: str
) -> None:
    for value in accepted:
        check_type("it", value, annotation)
    for value in refused:
        with pytest.raises(InputError) as error:
            check_type("it", value, annotation)
        assert str(error.value) == f"it must be {rule}, got {value!r}"


def test_arguments_are_checked_by_position_and_by_name() -> None:
    @checked("own")
    def twice(number: int, *, own: int = 1) -> int:
        """Its text."""
        return 2 * number * own

    assert twice(2) == twice(number=2) == 4
    assert twice.__doc__ == "Its text."
    assert [*inspect.signature(twice).parameters] == ["number", "own"]
    for call in (lambda: twice("2"), lambda: twice(number="2")):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="number must be a whole number, got '2'"):
            call()
    assert twice(2, own="a") == "aaaa"  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        twice()  # type: ignore[call-arg]


PUBLIC: dict[Any, dict[str, Any]] = {
    splitattn.Classifier: {},
    splitattn.Detector: {"weights": "none.safetensors"},
    splitattn.Segmenter: {"weights": "none.safetensors"},
    splitattn.create_model: {"model": "resnest14"},
    splitattn.create_backbone: {"model": "resnest14"},
    splitattn.create_detector: {"model": "resnest14", "num_classes": 2},
    splitattn.create_segmenter: {"model": "resnest14", "num_classes": 2},
    splitattn.evaluate: {"data": "none"},
    splitattn.export: {"path": "none.onnx"},
    splitattn.train: {"data": "none", "output": "none"},
    splitattn.find_learning_rate: {"data": "none", "output": "none"},
    splitattn.label_bulk: {"source": "none", "target": "none"},
    splitattn.transform: {},
    splitattn.read_metadata: {},
}


@pytest.mark.parametrize(
    ("function", "name"),
    [
        pytest.param(function, name, id=f"{function.__name__}-{name}")
        for function in PUBLIC
        for name in inspect.signature(function).parameters
    ],
)
def test_each_argument_of_the_public_functions_is_checked_at_the_call(
    function: Any, name: str
) -> None:
    with pytest.raises(InputError, match=r"must be .*, got"):
        function(**(PUBLIC[function] | {name: ODD}))


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("predict", {"topk": True}, "topk must be a whole number, got True"),
        ("predict", {"threshold": "0.5"}, "threshold must be a number, got '0.5'"),
        ("predict_stream", {"batch_size": 1.5}, "batch_size must be a whole number, got 1.5"),
        ("predict_stream", {"workers": "2"}, "workers must be a whole number, got '2'"),
        ("explain", {"label": 1.5}, "label must be a name or a whole number, got 1.5"),
        ("explain", {"method": None}, "method must be a name, got None"),
    ],
)
def test_methods_check_theirs(method: str, arguments: dict[str, Any], message: str) -> None:
    classifier = splitattn.Classifier()
    with pytest.raises(InputError) as error:
        getattr(classifier, method)([], **arguments)
    assert str(error.value) == message


@pytest.mark.parametrize("sources", [5, None, "photo.jpg"])
def test_a_stream_needs_several_images(sources: Any) -> None:
    with pytest.raises(InputError, match=r"predict_stream needs several images, got .*: put it"):
        splitattn.Classifier().predict_stream(sources)


def test_limits_are_numbers() -> None:
    with pytest.raises(InputError, match="max_pixels must be a number, got '5'"):
        Limits(max_pixels="5")  # type: ignore[arg-type]
