"""The NumPy network equals the torch network: two implementations that share no code."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from splitattn.architectures import Architecture
from splitattn.graph.reference import Reference
from splitattn.nn.resnest import ResNeSt
from tests.nn.networks import randomize_norms, small

CASES = [
    *(small(radix, cardinality) for radix in (0, 1, 2, 4) for cardinality in (1, 2)),
    small(layers=(2, 1, 2, 1)),
    *(
        replace(small(), **{field: value})
        for field, value in (
            ("avd_first", True),
            ("avd", False),
            ("avg_down", False),
            ("deep_stem", False),
        )
    ),
]


@pytest.mark.parametrize("architecture", CASES, ids=repr)
@pytest.mark.parametrize("num_classes", [0, 6])
def test_the_reference_equals_the_torch_network(
    architecture: Architecture, num_classes: int
) -> None:
    model = ResNeSt(architecture, num_classes=num_classes, in_chans=4).double().eval()
    randomize_norms(model)
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    images = torch.randn(2, 4, 45, 64, dtype=torch.float64)
    with torch.inference_mode():
        expected = model(images).numpy()
    outputs = Reference(architecture, tensors, dtype=np.float64)(images.numpy())
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-10 * abs(expected).max())


def test_the_reference_computes_in_single_precision_by_default() -> None:
    model = ResNeSt(small(), num_classes=6).eval()
    randomize_norms(model)
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    images = torch.randn(1, 3, 40, 40)
    with torch.inference_mode():
        expected = model(images).numpy()
    outputs = Reference(small(), tensors)(images.numpy())
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5 * abs(expected).max())
