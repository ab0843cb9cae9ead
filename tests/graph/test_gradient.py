"""Gradients in NumPy equal PyTorch's."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from splitattn.architectures import Architecture
from splitattn.graph.folding import fold
from splitattn.graph.gradient import logit_gradient
from splitattn.nn.fusion import FusedResNeSt
from tests.nn.networks import small

from .networks import arrays_of, trained


@pytest.mark.parametrize("form", ["branches", "grouped"])
@pytest.mark.parametrize(
    ("architecture", "side"),
    [
        (small(2, 1), 8),
        (small(1, 1), 7),
        (replace(small(2, 2), avd_first=True), 7),
        (small(4, 2), 5),
        (replace(small(0, 2), avd=False, avg_down=False), 6),
    ],
    ids=["radix2", "radix1", "groups", "radix4", "radix0"],
)
def test_gradients_are_those_of_autograd(architecture: Architecture, side: int, form: str) -> None:
    network = fold(architecture, arrays_of(trained(architecture)), form=form, dtype=np.float64)
    fused = FusedResNeSt(network)
    stage = 2
    values = torch.rand(network.channels[stage], side, side, dtype=torch.float64)
    map_CHW = values.clone().requires_grad_()
    first = sum(len(blocks) for blocks in network.stages[:stage])
    # `* 1` makes a copy: the first operation may write into its input.
    features = fused.stages[first:](map_CHW[None] * 1).mean((2, 3))
    fused.fc(features)[0, 1].backward()
    found = logit_gradient(network, stage, values.numpy(), 1)
    assert map_CHW.grad is not None
    np.testing.assert_allclose(found, map_CHW.grad.numpy(), rtol=1e-9, atol=1e-12)
    assert np.abs(found).max() > 0
