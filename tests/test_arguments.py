"""Wrong arguments of the public classes are found when they open, before anything is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import splitattn
from splitattn.errors import InputError, check_number, check_whole
from splitattn.explanation.explainer import Explainer
from splitattn.features import FeatureExtractor

OPENED: list[Callable[..., Any]] = [
    splitattn.Classifier,
    Explainer,
    FeatureExtractor,
    splitattn.Detector,
    splitattn.Segmenter,
]


@pytest.mark.parametrize("opened", OPENED, ids=lambda opened: opened.__name__)
@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"limits": 5}, "limits must be Limits, got 5"),
        ({"decoding": "slow"}, "decoding must be 'exact' or 'fast', got 'slow'"),
    ],
)
def test_wrong_arguments_are_found_before_the_weights(
    opened: Callable[..., Any], wrong: dict[str, Any], line: str
) -> None:
    with pytest.raises(InputError) as error:
        opened(weights=Path("missing.safetensors"), **wrong)
    assert str(error.value) == line


def test_true_is_no_number() -> None:
    with pytest.raises(InputError, match="topk must be a whole number, got True"):
        check_whole("topk", True, least=1)
    with pytest.raises(InputError, match="max_seconds must be a number, got True"):
        check_number("max_seconds", True)


def test_a_file_to_export_needs_a_path() -> None:
    with pytest.raises(InputError, match="path must be a name or a path, got None"):
        splitattn.export(None)  # type: ignore[arg-type]
