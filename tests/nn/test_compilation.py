"""The network under torch.compile, torch.export and autocast."""

import copy
import dataclasses
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from splitattn.architectures import Architecture
from splitattn.nn.resnest import Bottleneck, ResNeSt

from .networks import images, randomize_norms, small, wake_residuals

every_kind_of_block = pytest.mark.parametrize(
    "architecture",
    [
        # Slow: test_backbone.py compiles both as backbones.
        pytest.param(small(0), id="plain", marks=pytest.mark.slow),
        pytest.param(small(1), id="1s1x", marks=pytest.mark.slow),
        pytest.param(small(2), id="2s1x"),
        pytest.param(dataclasses.replace(small(4, 2), avd_first=True), id="4s2x-fast"),
    ],
)

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the default backend needs a C++ compiler"
)


def trained(architecture: Architecture) -> ResNeSt:
    model = ResNeSt(architecture, num_classes=10).eval()
    randomize_norms(model)
    return model


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


@every_kind_of_block
def test_compiles_to_one_graph(architecture: Architecture) -> None:
    model = trained(architecture)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images(2, 33, 33)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=0)


def test_the_training_step_compiles_to_one_graph() -> None:
    model = trained(small(4, 2)).train()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    x = images(4, 33, 33)
    for network in (model, compiled):
        network(x).square().mean().backward()
    others = dict(compiled.named_parameters())
    for name, parameter in model.named_parameters():
        gradient = others[f"_orig_mod.{name}"].grad
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-3)
    statistics = dict(compiled.named_buffers())
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(statistics[f"_orig_mod.{name}"], buffer)


def test_gradient_checkpointing_compiles_too() -> None:
    model = trained(small()).train()
    model.gradient_checkpointing = True
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    x = images(4, 33, 33)
    for network in (model, compiled):
        network(x).square().mean().backward()
    gradient = compiled.get_parameter("_orig_mod.conv1.0.weight").grad
    torch.testing.assert_close(gradient, model.conv1[0].weight.grad, atol=1e-5, rtol=1e-3)
    assert compiled.get_buffer("_orig_mod.layer4.0.bn3.num_batches_tracked") == 1


@needs_compiler
@pytest.mark.slow
def test_compiled_kernels_give_the_same_numbers() -> None:
    block = Bottleneck(64, 16, small()).eval()
    randomize_norms(block)
    x = images(2, 9, 9, channels=64).relu()
    with torch.inference_mode():
        out = torch.compile(block, fullgraph=True)(x)
        torch.testing.assert_close(out, block(x), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_compiler
@every_kind_of_block
def test_the_compiled_network_gives_the_same_numbers(architecture: Architecture) -> None:
    model = trained(architecture)
    x = images(2, 65, 49)
    with torch.inference_mode():
        out = torch.compile(model, fullgraph=True)(x)
        torch.testing.assert_close(out, model(x), atol=1e-5, rtol=0)


def test_a_drop_block_schedule_compiles_once() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    model = ResNeSt(small(), num_classes=10, drop_path=0.2, drop_block=0.1, dropout=0.1).train()
    wake_residuals(model)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    x = images(4, 33, 33)
    for probability in (0.0, 0.05, 0.1):
        model.set_drop_block(probability)
        assert compiled(x).isfinite().all()
    assert counter.frame_count == 1


@every_kind_of_block
def test_exports_with_a_dynamic_batch(architecture: Architecture) -> None:
    model = trained(architecture)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},))
    with torch.inference_mode():
        for size in (1, 3):
            x = images(size)
            torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=0)


def bfloat16(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    return run


@every_kind_of_block
def test_autocast_is_close_to_float32(architecture: Architecture) -> None:
    model = trained(architecture)
    x = images()
    with torch.inference_mode():
        expected, out = model(x), bfloat16(model)(x)
    assert out.dtype == torch.bfloat16
    # bfloat16 has eight significant bits; rounding in each layer adds up to about 1 %.
    assert (out - expected).norm() < 0.03 * expected.norm()


@every_kind_of_block
def test_trains_under_autocast(architecture: Architecture) -> None:
    model = ResNeSt(architecture, num_classes=10, drop_path=0.1, drop_block=0.1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, labels = images(8, 33, 33), torch.arange(8)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(bfloat16(model)(x).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
