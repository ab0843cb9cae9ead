"""The residual branch is zero in a new network, and stochastic depth drops it per image."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from splitattn.errors import InputError
from splitattn.nn.resnest import Bottleneck, DropPath, ResNeSt

from .networks import images, small, wake_residuals

BATCH = 32


def blocks_of(model: ResNeSt) -> list[Bottleneck]:
    return [block for stage in model.stages() for block in stage]


def shortcut(block: Bottleneck, x: Tensor) -> Tensor:
    return x if block.downsample is None else block.downsample(x)


def random_block(*, downsample: bool, drop_path: float) -> tuple[Bottleneck, Tensor]:
    """A training block with a nonzero residual branch, and non-negative input for it."""
    block = Bottleneck(64, 16, small(), drop_path=drop_path)
    if downsample:
        block = Bottleneck(64, 32, small(), stride=2, pool=True, drop_path=drop_path)
    nn.init.uniform_(block.bn3.weight, 0.5, 1.5)
    nn.init.normal_(block.bn3.bias)
    return block.train(), images(BATCH, 8, 8, channels=64).relu()


def residual_of(block: Bottleneck, x: Tensor) -> Tensor:
    """The output of the residual branch, before anything is dropped."""
    found: list[Tensor] = []
    handle = block.bn3.register_forward_hook(lambda _module, _inputs, out: found.append(out))
    block(x)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("radix", [0, 1, 2])
def test_residual_branches_of_a_new_network_are_zero(radix: int) -> None:
    """Fails if initialization sets all batch norms to one after the last ones were set to zero."""
    model = ResNeSt(small(radix, layers=(2, 2, 2, 2)), num_classes=10).train()
    x = images(4, 32, 32)
    for block in blocks_of(model):
        assert torch.equal(block.bn3.weight, torch.zeros_like(block.bn3.weight))
        block.register_forward_hook(
            lambda block, inputs, out: torch.testing.assert_close(
                out, shortcut(block, inputs[0]).relu(), atol=0, rtol=0
            )
        )
    model(x)
    last_norms = {id(block.bn3) for block in blocks_of(model)}
    others = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    others = [norm for norm in others if id(norm) not in last_norms]
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in others)


def test_convolutions_start_with_he_fan_in_variance() -> None:
    model = ResNeSt(small())
    for convolution in model.modules():
        if isinstance(convolution, nn.Conv2d) and convolution.weight.numel() > 20_000:
            fan_in = convolution.weight[0].numel()
            assert convolution.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)


@pytest.mark.parametrize("downsample", [False, True], ids=["identity", "downsample"])
def test_stochastic_depth_drops_the_residual_of_single_images(downsample: bool) -> None:
    """Fails if it is applied to the block's input, which drops the shortcut or nothing."""
    block, x = random_block(downsample=downsample, drop_path=0.5)
    kept_map = (shortcut(block, x) + 2 * residual_of(block, x)).relu()
    dropped_map = shortcut(block, x).relu()
    assert (kept_map - dropped_map).abs().amax((1, 2, 3)).min() > 0.1

    out = block(x)

    dropped = (out - dropped_map).abs().amax((1, 2, 3)) < 1e-5
    kept = (out - kept_map).abs().amax((1, 2, 3)) < 1e-5
    assert torch.all(dropped ^ kept)
    # 32 draws of 1/2 are outside this range for one seed in 10,000.
    assert 5 < dropped.sum() < BATCH - 5
    assert not torch.equal(out, block(x))


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_same_seed_drops_the_same_images_as_in_torchvision(
    p: float, dtype: torch.dtype
) -> None:
    x = torch.randn(BATCH, 3, 2, 2, dtype=dtype)
    found = []
    for layer in (DropPath(p), StochasticDepth(p, "row")):
        torch.manual_seed(1)
        found.append((layer.train()(x), torch.rand(1)))
        assert torch.equal(layer.eval()(x), x)
    (ours, our_next), (theirs, their_next) = found
    assert torch.equal(ours, theirs)
    assert torch.equal(our_next, their_next)


def test_the_dropped_share_is_the_probability() -> None:
    block, x = random_block(downsample=False, drop_path=0.2)
    dropped = sum(((block(x) - x).abs().amax((1, 2, 3)) < 1e-5).sum().item() for _ in range(20)) / (
        20 * BATCH
    )
    assert dropped == pytest.approx(0.2, abs=0.06)  # four standard errors of 640 draws


def test_stochastic_depth_grows_linearly_with_depth() -> None:
    model = ResNeSt(small(layers=(2, 1, 3, 1)), drop_path=0.3)
    probabilities = [
        block.drop_path.p if isinstance(block.drop_path, DropPath) else 0.0
        for block in blocks_of(model)
    ]
    assert probabilities == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])


def test_evaluation_drops_nothing() -> None:
    model = ResNeSt(small(), num_classes=10, drop_path=0.5, drop_block=0.3, dropout=0.5)
    plain = ResNeSt(small(), num_classes=10)
    wake_residuals(model)
    plain.load_state_dict(model.state_dict())
    x = images()
    with torch.inference_mode():
        model.train()(x)
        plain.train()(x)
        plain.load_state_dict(model.state_dict())
        first, second, without = model.eval()(x), model(x), plain.eval()(x)
    assert torch.equal(first, second)
    assert torch.equal(first, without)


def test_dropout_comes_before_the_classifier_while_training() -> None:
    model = ResNeSt(small(), num_classes=10, dropout=0.5).train()
    seen: list[Tensor] = []
    model.avgpool.register_forward_hook(lambda *_: torch.ones(8, 512, 1, 1))
    model.fc.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(images(8))
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}


def test_dropout_is_the_architectures_unless_given() -> None:
    row = dataclasses.replace(small(), dropout=0.2)
    assert ResNeSt(row).drop.p == 0.2
    assert ResNeSt(row, dropout=0.0).drop.p == 0.0


@pytest.mark.parametrize("name", ["drop_path", "drop_block", "dropout"])
@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_an_impossible_share_is_reported_in_one_line(name: str, share: float) -> None:
    with pytest.raises(InputError) as caught:
        ResNeSt(small(), **{name: share})
    assert str(caught.value) == f"{name} must be at least 0 and below 1, got {share}"
