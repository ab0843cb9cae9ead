"""The reference segmenter in NumPy equals PyTorch's segmenter."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from splitattn.graph.segmentation import SegmenterReference, doubled
from tests.dense.runs import ARCHITECTURE, mask_network


@pytest.fixture
def network() -> nn.Module:
    """A segmenter whose tensors are all random."""
    built = mask_network()
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return built.eval()


def test_the_reference_equals_the_network(network: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 96)
    arrays = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    found = SegmenterReference(ARCHITECTURE, arrays)(images.numpy())
    with torch.inference_mode():
        expected = network(images).numpy()
    assert found.shape == (2, 4, 16, 24)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_doubling_is_bilinear() -> None:
    x = torch.randn(2, 3, 5, 7)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(doubled(x.numpy()), expected.numpy(), atol=1e-6)
