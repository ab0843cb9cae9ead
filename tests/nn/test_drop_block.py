"""DropBlock has the places and the arithmetic of the official training."""

import pytest
import torch
from torch import Tensor, nn

from splitattn.nn.drop_block import DropBlock2d
from splitattn.nn.resnest import ResNeSt

from .networks import images, small, wake_residuals


def drop_blocks(model: nn.Module) -> dict[str, DropBlock2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, DropBlock2d)}


def expected_share(probability: float, height: int, width: int, block: int = 3) -> float:
    """The exact expected share of dropped positions.

    A position survives if no block that covers it is dropped; fewer blocks cover positions at the
    border.
    """
    gamma = probability * height * width / block**2
    gamma /= (height - block + 1) * (width - block + 1)
    survival = 0.0
    for row in range(height):
        for column in range(width):
            rows = min(row + block // 2, height - 1) - max(row - block // 2, 0) + 1
            columns = min(column + block // 2, width - 1) - max(column - block // 2, 0) + 1
            survival += (1 - gamma) ** (rows * columns)
    return 1 - survival / (height * width)


def measured_share(layer: DropBlock2d, height: int, width: int) -> float:
    return (
        (layer(torch.ones(1, 2_000_000 // (height * width), height, width)) == 0)
        .float()
        .mean()
        .item()
    )


@pytest.mark.parametrize("radix", [0, 2])
def test_three_places_in_every_block_of_the_last_two_stages(radix: int) -> None:
    model = ResNeSt(small(radix, layers=(1, 1, 2, 1)), drop_block=0.1)
    assert list(drop_blocks(model)) == [
        f"{block}.drop_block{place}"
        for block in ("layer3.0", "layer3.1", "layer4.0")
        for place in (1, 2, 3)
    ]


@pytest.mark.parametrize("radix", [0, 1, 2])
def test_each_place_follows_its_convolution(radix: int) -> None:
    """The places are after the first norm, before its ReLU; after the 3x3; after the last norm."""
    block = ResNeSt(small(radix), drop_block=0.1).train().layer3[0]
    before = {
        block.drop_block1: block.bn1,
        block.drop_block2: block.bn2 if radix == 0 else block.conv2,
        block.drop_block3: block.bn3,
    }
    outputs: dict[nn.Module, Tensor] = {}
    arrivals: list[nn.Module] = []
    for producer in before.values():
        producer.register_forward_hook(lambda m, _inputs, out: outputs.__setitem__(m, out))
    for place in before:
        place.register_forward_pre_hook(
            lambda m, inputs: arrivals.append(m) if inputs[0] is outputs[before[m]] else None
        )
    relu_inputs: list[Tensor] = []
    block.relu.register_forward_pre_hook(lambda _m, inputs: relu_inputs.append(inputs[0].clone()))
    block(torch.randn(2, 128, 8, 8))
    assert arrivals == [block.drop_block1, block.drop_block2, block.drop_block3]
    assert (relu_inputs[0] == 0).any()
    assert (relu_inputs[0] < 0).any()


def test_one_mask_serves_the_whole_batch() -> None:
    out = DropBlock2d(0.2).train()(torch.ones(4, 16, 14, 14))
    assert (out == 0).any()
    assert torch.equal(out, out[:1].expand_as(out))


def test_channels_have_masks_of_their_own() -> None:
    out = DropBlock2d(0.2).train()(torch.ones(1, 2, 14, 14))
    assert not torch.equal(out[:, 0], out[:, 1])


def test_whole_blocks_are_dropped() -> None:
    out = DropBlock2d(0.02).train()(torch.ones(1, 64, 14, 14))
    dropped = (out == 0).float()
    centers = -nn.functional.max_pool2d(-dropped, 3, stride=1, padding=1)  # erosion
    assert centers.any()
    assert torch.equal(nn.functional.max_pool2d(centers, 3, stride=1, padding=1), dropped)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (14, 14), (7, 7), (13, 5)])
def test_the_dropped_share_is_that_of_the_official_arithmetic(height: int, width: int) -> None:
    share = measured_share(DropBlock2d(0.1).train(), height, width)
    assert share == pytest.approx(expected_share(0.1, height, width), abs=0.003)


def test_the_dropped_share_is_close_to_the_probability() -> None:
    """On large maps few blocks reach beyond the border, so the share is close."""
    for probability in (0.05, 0.1):
        share = measured_share(DropBlock2d(probability).train(), 56, 56)
        assert share == pytest.approx(probability, rel=0.05)


def test_renormalization_preserves_the_mean() -> None:
    out = DropBlock2d(0.3).train()(torch.ones(2, 16, 9, 11))
    assert out.mean().item() == pytest.approx(1, abs=1e-6)
    assert out.unique().numel() == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (2, 7)])
def test_maps_smaller_than_a_block_lose_single_pixels(size: tuple[int, int]) -> None:
    assert measured_share(DropBlock2d(0.1).train(), *size) == pytest.approx(0.1, abs=0.003)


def test_a_mask_that_drops_everything_is_no_division_by_zero() -> None:
    out = DropBlock2d(0.99).train()(torch.ones(2, 1, 3, 3))
    assert torch.equal(out, torch.zeros_like(out))


def test_evaluation_returns_the_input_itself() -> None:
    x = torch.randn(2, 4, 7, 7)
    assert DropBlock2d(0.5).eval()(x) is x


def test_a_schedule_can_change_the_probability() -> None:
    model = ResNeSt(small(), num_classes=10, drop_block=0.1).train()
    wake_residuals(model)
    x = images(4)
    assert not torch.equal(model(x), model(x))

    model.set_drop_block(0.0)
    assert torch.equal(model(x), model(x))

    model.set_drop_block(0.25)
    layers = drop_blocks(model).values()
    assert [layer.probability.item() for layer in layers] == [0.25] * 6
    share = measured_share(model.layer4[0].drop_block3, 14, 14)
    assert share == pytest.approx(expected_share(0.25, 14, 14), abs=0.003)


def test_no_state_is_added_to_the_network() -> None:
    with_drop_block = ResNeSt(small(), drop_block=0.1, drop_path=0.1).state_dict()
    assert list(with_drop_block) == list(ResNeSt(small()).state_dict())


def test_half_precision_stays_half_precision() -> None:
    out = DropBlock2d(0.1).train()(torch.ones(2, 4, 7, 7, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
