"""All layers keep channels_last, also in the backward pass."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from splitattn.architectures import Architecture
from splitattn.nn.resnest import Bottleneck, ResNeSt
from splitattn.nn.split_attention import SplitAttention2d

from .networks import images, small, wake_residuals

every_kind_of_block = pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(
            dataclasses.replace(small(radix, cardinality), avd_first=avd_first),
            id=f"{radix}s{cardinality}x-{'pool first' if avd_first else 'pool after'}",
        )
        for radix in (0, 1, 2, 4)
        for cardinality in (1, 2)
        for avd_first in (False, True)
    ],
)


def maps(value: object) -> Iterator[Tensor]:
    """Yield `value` if it is a feature map whose layout is unambiguous."""
    if isinstance(value, Tensor) and value.dim() == 4 and min(value.shape[1:]) > 1:
        yield value


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


class LayoutWatch:
    """Records layers whose output, and blocks whose input gradient, is not channels_last."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: set[str] = set()
        self.broken: set[str] = set()
        for name, module in model.named_modules():
            is_block = isinstance(module, Bottleneck | SplitAttention2d)
            if is_block or not list(module.children()):
                module.register_forward_hook(self._output_hook(name))
            if is_block:
                module.register_forward_pre_hook(self._input_hook(name))

    def _note(self, name: str, x: Tensor) -> None:
        self.seen.add(name)
        if not is_channels_last(x):
            self.broken.add(name)

    def _output_hook(self, name: str):
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            for x in maps(output):
                self._note(name, x)

        return hook

    def _input_hook(self, name: str):
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for x in maps(inputs[0]):
                if x.requires_grad:
                    x.register_hook(lambda grad: self._note(f"gradient into {name}", grad))

        return hook


def channels_last_network(architecture: Architecture) -> ResNeSt:
    model = ResNeSt(architecture, num_classes=10, drop_path=0.2, drop_block=0.1)
    wake_residuals(model)
    return model.to(memory_format=torch.channels_last)


@every_kind_of_block
def test_every_layer_keeps_channels_last(architecture: Architecture) -> None:
    model = channels_last_network(architecture)
    watch = LayoutWatch(model)
    x = images(2, 64, 96).to(memory_format=torch.channels_last)

    model.train()(x).sum().backward()
    model.eval()(x)

    assert watch.broken == set()
    convolutions = {name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    pooled = {name for name in convolutions if name.endswith(("fc1", "fc2"))}
    assert convolutions - pooled <= watch.seen
    blocks = {f"layer{stage}.0" for stage in (1, 2, 3, 4)}
    if architecture.radix:
        blocks |= {f"{block}.conv2" for block in blocks}
    assert {f"gradient into {block}" for block in blocks} <= watch.seen


@every_kind_of_block
def test_layout_changes_no_number(architecture: Architecture) -> None:
    model = ResNeSt(architecture, num_classes=10).eval()
    wake_residuals(model)
    x = images(2, 65, 49)
    with torch.inference_mode():
        contiguous = model(x)
        model.to(memory_format=torch.channels_last)
        last = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, contiguous, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dilation", ["official", "timm"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_network_keeps_channels_last(
    output_stride: int, dilation: Literal["official", "timm"]
) -> None:
    model = ResNeSt(small(), output_stride=output_stride, dilation=dilation)
    model.to(memory_format=torch.channels_last)
    watch = LayoutWatch(model)
    features = model.forward_features(images().to(memory_format=torch.channels_last))
    assert is_channels_last(features)
    assert watch.broken == set()


def test_the_watch_notices_the_call_that_breaks_other_implementations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other implementations end in `out.contiguous()`, which returns to channels first."""
    forward = SplitAttention2d.forward
    monkeypatch.setattr(SplitAttention2d, "forward", lambda self, x: forward(self, x).contiguous())
    model = channels_last_network(small())
    watch = LayoutWatch(model)
    model(images().to(memory_format=torch.channels_last))
    assert {f"layer{stage}.0.conv2" for stage in (1, 2, 3, 4)} <= watch.broken
