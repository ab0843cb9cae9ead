"""Batch norms train on one value per channel, and on request across processes."""

import copy
import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from splitattn.architectures import Architecture
from splitattn.nn.batch_norm import BatchNorm2d, synchronize
from splitattn.nn.freezing import freeze, thaw
from splitattn.nn.resnest import ResNeSt
from splitattn.nn.split_attention import SplitAttention2d

from .networks import images, small, wake_residuals


def random_norm() -> BatchNorm2d:
    norm = BatchNorm2d(6).double()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return norm


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def pooled(batch: int) -> Tensor:
    return torch.randn(batch, 6, 1, 1, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("architecture", [small(0), small(2), small(4, 2)])
def test_every_batch_norm_of_the_network_is_of_this_kind(architecture: Architecture) -> None:
    norms = [m for m in ResNeSt(architecture).modules() if isinstance(m, _BatchNorm)]
    assert {type(norm) for norm in norms} == {BatchNorm2d}


@pytest.mark.parametrize("shape", [(4, 6, 3, 5), (2, 6, 1, 1), (1, 6, 2, 1)])
def test_with_several_values_it_is_torchs_batch_norm(shape: tuple[int, ...]) -> None:
    norm = random_norm()
    theirs = nn.BatchNorm2d(6).double()
    theirs.load_state_dict(norm.state_dict())
    for _ in range(2):
        x = torch.randn(shape, dtype=torch.float64)
        assert torch.equal(norm(x), theirs(x))
    assert list(norm.state_dict()) == list(theirs.state_dict())
    for name, expected in theirs.state_dict().items():
        assert torch.equal(norm.state_dict()[name], expected), name
    assert torch.equal(norm.eval()(x), theirs.eval()(x))


def test_a_frozen_norm_equals_torchvisions_also_after_train() -> None:
    norm = random_norm()
    theirs = FrozenBatchNorm2d(6, eps=norm.eps).double()
    theirs.load_state_dict(norm.state_dict())
    freeze(nn.Sequential(norm))
    before = state(norm)
    x = torch.randn(4, 6, 3, 5, dtype=torch.float64)
    for network in (norm, norm.train(), nn.Sequential(norm).train(), copy.deepcopy(norm).train()):
        torch.testing.assert_close(network(x), theirs(x))
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())
    assert not [parameter for parameter in norm.parameters() if parameter.requires_grad]
    thaw(norm)
    assert norm.train().training
    assert all(parameter.requires_grad for parameter in norm.parameters())


def test_a_single_value_is_normalized_by_the_running_statistics_and_leaves_them() -> None:
    norm = random_norm()
    before = state(norm)
    x = pooled(1)
    out = norm(x)
    out.sum().backward()

    scale = (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
    shift = norm.bias[:, None, None]
    torch.testing.assert_close(out, (x - norm.running_mean[:, None, None]) * scale + shift)
    torch.testing.assert_close(x.grad[0], scale)
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())


def test_a_larger_batch_before_the_backward_pass_changes_no_gradient() -> None:
    norm = random_norm()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    x = pooled(1)
    out = norm(x)
    norm(pooled(4))
    out.sum().backward()
    torch.testing.assert_close(x.grad.flatten(), scale)


@pytest.mark.parametrize("size", [64, 16])
@pytest.mark.parametrize("radix", [0, 1, 2])
def test_the_network_trains_on_one_image(radix: int, size: int) -> None:
    """With 16 pixels the maps of the last stage are 1x1: one value per channel."""
    model = ResNeSt(small(radix), num_classes=10).train()
    wake_residuals(model)
    norms = {name: m for name, m in model.named_modules() if isinstance(m, BatchNorm2d)}
    single: set[str] = set()
    for name, norm in norms.items():

        def note(_module: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            if inputs[0][0, 0].numel() == 1:
                single.add(name)

        norm.register_forward_pre_hook(note)
    before = state(model)
    model(images(1, size, size)).square().sum().backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert ("layer4.0.bn1" in single) is (size == 16)
    assert ("layer1.0.conv2.bn1" in single) is (radix > 0)
    for name, norm in norms.items():
        moved = not torch.equal(norm.running_mean, before[f"{name}.running_mean"])
        assert moved is (name not in single), name
        assert norm.num_batches_tracked.item() == moved


def compiled(block: nn.Module) -> nn.Module:
    torch.compiler.reset()
    return torch.compile(block, fullgraph=True, backend="aot_eager")


def bfloat16(block: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.autocast("cpu", dtype=torch.bfloat16)(block)


@pytest.mark.parametrize("run", [compiled, bfloat16])
def test_one_image_trains_compiled_and_under_autocast(
    run: Callable[[nn.Module], Callable[[Tensor], Tensor]],
) -> None:
    block = SplitAttention2d(16, 16).to(memory_format=torch.channels_last)
    twin = copy.deepcopy(block)
    x = images(1, 9, 9, channels=16).to(memory_format=torch.channels_last)
    expected, out = block(x), run(twin)(x)
    for output in (expected, out):
        assert output.is_contiguous(memory_format=torch.channels_last)
        output.float().square().mean().backward()
    tolerance = 1e-5 if out.dtype == torch.float32 else 0.03
    assert (out - expected).norm() < tolerance * expected.norm()
    gradient = block.fc1.weight.grad
    assert (twin.fc1.weight.grad - gradient).norm() < 2 * tolerance * gradient.norm()
    assert {block.bn1.num_batches_tracked.item(), twin.bn1.num_batches_tracked.item()} == {0}


def test_checkpointing_changes_nothing_for_one_image() -> None:
    plain = ResNeSt(small(), num_classes=10).train()
    wake_residuals(plain)
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing = True
    x = images(1)
    for model in (plain, checkpointed):
        model(x).square().sum().backward()
    for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-5)
    for one, other in zip(plain.buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(other, one)


# The results of a run: tensors for images, for parameters, and the network's buffers.
Run = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]
SHARES = {
    "norm": (slice(0, 2), slice(2, 5)),
    "lonely norm": (slice(0, 5), slice(5, 5)),
    "network": (slice(0, 1), slice(1, 2)),
}


def run_norm(share: slice) -> Run:
    """Two steps on values whose mean is much larger than their standard deviation."""
    torch.manual_seed(1)
    norm = random_norm()
    synchronize(norm)
    for _ in range(2):
        x = (3 * torch.randn(5, 6, 4, 3, dtype=torch.float64) + 100)[share].requires_grad_()
        cotangent = torch.randn(5, 6, 4, 3, dtype=torch.float64)[share]
        out = norm(x)
        norm.zero_grad()
        out.backward(cotangent)
    assert x.grad is not None
    return gathered_run(norm, {"output": out.detach(), "input gradient": x.grad})


def run_network(share: slice, *, checkpointing: bool = False) -> Run:
    torch.manual_seed(2)
    model = ResNeSt(small(), num_classes=5).double().train()
    wake_residuals(model)
    synchronize(model)
    model.gradient_checkpointing = checkpointing
    x = images(2, 40, 40).double()[share].requires_grad_()
    cotangent = torch.randn(2, 5, dtype=torch.float64)[share]
    out = model(x)
    out.backward(cotangent)
    assert x.grad is not None
    return gathered_run(model, {"output": out.detach(), "input gradient": x.grad})


def gathered_run(module: nn.Module, of_images: dict[str, Tensor]) -> Run:
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return of_images, gradients, dict(module.named_buffers())


def run_in_single_precision() -> dict[str, Tensor]:
    """Statistics in float32 of values with variance one and mean ten thousand; bfloat16 maps."""
    torch.manual_seed(3 + dist.get_rank())
    norm = BatchNorm2d(1)
    synchronize(norm)
    norm.momentum = 1.0
    norm(10_000 + torch.randn(8, 1, 16, 16))
    low = torch.randn(2, 4, 5, 5).to(torch.bfloat16).to(memory_format=torch.channels_last)
    low.requires_grad_()
    norm4 = BatchNorm2d(4)
    synchronize(norm4)
    out = norm4(low)
    out.sum().backward()
    assert low.grad is not None
    return {"variance": norm.running_var, "output": out.detach(), "input gradient": low.grad}


def one_of_two(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=100),
    )
    found = {
        "norm": run_norm(SHARES["norm"][rank]),
        "lonely norm": run_norm(SHARES["lonely norm"][rank]),
        "nothing": run_norm(slice(5, 5)),
        "network": run_network(SHARES["network"][rank]),
        "checkpointed network": run_network(SHARES["network"][rank], checkpointing=True),
        "single precision": run_in_single_precision(),
    }
    if rank == 0:  # only one process: these must not wait for the other
        norm = random_norm()
        synchronize(norm)
        norm.eval()(pooled(1))
        random_norm()(pooled(2))
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Run]]:
    """The results of two processes. This process is one of them, since starting one takes long."""
    folder = tmp_path_factory.mktemp("processes")
    spawn = torch.multiprocessing.get_context("spawn")
    other = spawn.Process(target=one_of_two, args=(1, folder), daemon=True)
    other.start()
    one_of_two(0, folder)
    other.join()
    assert other.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ["norm", "lonely norm", "network", "checkpointed network"])
def test_two_processes_equal_one_with_the_whole_batch(
    name: str, of_two: list[dict[str, Run]]
) -> None:
    """Shares of the norm have different sizes, one is empty; those of the network are one image."""
    whole = run_norm(slice(None)) if "norm" in name else run_network(slice(None))
    (images0, gradients0, buffers0), (images1, gradients1, buffers1) = (r[name] for r in of_two)
    for key, expected in whole[0].items():
        both = torch.cat((images0[key], images1[key]))
        torch.testing.assert_close(both, expected, atol=1e-10, rtol=0, msg=key)
    for key, expected in whole[1].items():
        both = gradients0[key] + gradients1[key]
        torch.testing.assert_close(both, expected, atol=1e-10, rtol=1e-10, msg=key)
    for key, expected in whole[2].items():
        assert torch.equal(buffers0[key], buffers1[key]), key
        torch.testing.assert_close(buffers0[key], expected, atol=1e-10, rtol=0, msg=key)


def test_norms_without_values_in_any_process_stay_as_they_are(
    of_two: list[dict[str, Run]],
) -> None:
    fresh = random_norm_of_run()
    for found in of_two:
        _, gradients, buffers = found["nothing"]
        assert not any(gradient.any() for gradient in gradients.values())
        for key in ("running_mean", "running_var"):
            assert torch.equal(buffers[key], fresh[key])


def random_norm_of_run() -> dict[str, Tensor]:
    """The initial buffers in `run_norm`."""
    torch.manual_seed(1)
    return dict(random_norm().named_buffers())


def test_synchronized_statistics_are_sound_in_single_precision(
    of_two: list[dict[str, dict[str, Tensor]]],
) -> None:
    for found in of_two:
        assert found["single precision"]["variance"].item() == pytest.approx(1, abs=0.1)


def test_synchronized_output_and_gradient_keep_precision_and_layout(
    of_two: list[dict[str, dict[str, Tensor]]],
) -> None:
    for name in ("output", "input gradient"):
        tensor = of_two[0]["single precision"][name]
        assert tensor.dtype == torch.bfloat16
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_one_synchronized_process_equals_plain_batch_norm() -> None:
    norm = random_norm()
    plain = copy.deepcopy(norm)
    synchronize(norm)
    for batch in (1, 4):
        x = pooled(batch)
        assert torch.equal(norm(x), plain(x))
    assert all(torch.equal(*pair) for pair in zip(norm.buffers(), plain.buffers(), strict=True))
