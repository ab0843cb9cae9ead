"""Gradient checkpointing changes no result."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from splitattn.nn.resnest import Bottleneck, ResNeSt

from .networks import images, small, wake_residuals


def unchanged(model: ResNeSt) -> nn.Module:
    return model


def with_frozen_norms(model: ResNeSt) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def with_synchronized_norms(model: ResNeSt) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


@pytest.mark.parametrize("convert", [unchanged, with_frozen_norms, with_synchronized_norms])
@pytest.mark.parametrize("radix", [0, 1, 2])
def test_gradients_and_statistics_equal_those_without_checkpointing(
    radix: int, convert: Callable[[ResNeSt], nn.Module]
) -> None:
    """Two steps show if statistics are counted twice or not at all.

    Stochastic depth, DropBlock and dropout are on: the second pass must draw the same numbers.
    """
    architecture = small(radix, layers=(1, 2, 2, 1))
    model = ResNeSt(architecture, num_classes=10, drop_path=0.5, drop_block=0.2, dropout=0.2)
    wake_residuals(model)
    plain = convert(model.train())
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing = True
    batches = [images(4, 48, 48), images(4, 48, 48)]

    outputs = []
    for network in (plain, checkpointed):
        torch.manual_seed(1)
        outputs.append([network(batch) for batch in batches])
        sum(out.square().sum() for out in outputs[-1]).backward()

    for expected, out in zip(*outputs, strict=True):
        assert torch.equal(out, expected)
    gradients = {name: parameter.grad for name, parameter in checkpointed.named_parameters()}
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-5)
    buffers = dict(checkpointed.named_buffers())
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffers[name], buffer), name


def test_blocks_really_run_twice_while_training_and_once_in_evaluation() -> None:
    model = ResNeSt(small(), num_classes=10)
    model.gradient_checkpointing = True
    runs: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, Bottleneck):
            module.conv1.register_forward_pre_hook(lambda *_, name=name: runs.append(name))

    model.train()(images()).sum().backward()
    assert runs == [f"layer{stage}.0" for stage in (1, 2, 3, 4, 4, 3, 2, 1)]

    runs.clear()
    model.eval()(images()).sum().backward()
    assert runs == [f"layer{stage}.0" for stage in (1, 2, 3, 4)]


def test_norms_keep_counting_after_the_backward_pass() -> None:
    model = ResNeSt(small(), num_classes=10).train()
    model.gradient_checkpointing = True
    for step in (1, 2, 3):
        model(images()).sum().backward()
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert all(norm.track_running_stats for norm in norms)
        assert {norm.num_batches_tracked.item() for norm in norms} == {step}
