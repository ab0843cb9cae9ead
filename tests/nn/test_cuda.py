"""The same network on a GPU."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from splitattn.architectures import Architecture
from splitattn.nn.resnest import ResNeSt

from .networks import images, randomize_norms, wake_residuals
from .test_memory_format import LayoutWatch, every_kind_of_block

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _full_float32_precision() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@torch.inference_mode()
@every_kind_of_block
def test_logits_are_those_of_the_cpu(architecture: Architecture) -> None:
    model = ResNeSt(architecture, num_classes=10).eval()
    randomize_norms(model)
    x = images(4, 97, 65)
    expected = model(x)
    out = model.cuda()(x.cuda())
    torch.testing.assert_close(out.cpu(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@every_kind_of_block
def test_every_layer_keeps_channels_last(architecture: Architecture, dtype: torch.dtype) -> None:
    model = ResNeSt(architecture, num_classes=10, drop_path=0.2, drop_block=0.1).cuda()
    wake_residuals(model)
    model.to(memory_format=torch.channels_last)
    watch = LayoutWatch(model)
    x = images(4, 64, 96).cuda().to(memory_format=torch.channels_last)
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        loss = model(x).float().square().mean()
    loss.backward()
    assert watch.broken == set()
    assert "gradient into layer4.0" in watch.seen


@every_kind_of_block
def test_trains_under_autocast(architecture: Architecture) -> None:
    model = ResNeSt(architecture, num_classes=10, drop_path=0.1, drop_block=0.1).cuda().train()
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x = images(8).cuda().to(memory_format=torch.channels_last)
    labels = torch.arange(8, device="cuda")
    losses = []
    for _ in range(4):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
