"""The block equals the paper's equations, and refuses channels that cannot be grouped."""

from typing import Any

import pytest
import torch
from torch import Tensor

from splitattn.errors import InputError
from splitattn.nn.split_attention import SplitAttention2d

from .reference import NaiveSplitAttention, cardinality_major_input, cardinality_major_state

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def random_block(
    dtype: torch.dtype, radix: int, cardinality: int, **options: int
) -> SplitAttention2d:
    block = SplitAttention2d(32, 48, radix=radix, cardinality=cardinality, **options).to(dtype)
    for norm in (block.bn0, block.bn1):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
        torch.nn.init.normal_(norm.running_mean, std=0.1)
        torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return block


def twin(block: SplitAttention2d, **options: int) -> NaiveSplitAttention:
    """The naive block with the weights of `block`."""
    naive = NaiveSplitAttention(
        block.conv.in_channels,
        block.fc1.in_channels,
        radix=block.radix,
        cardinality=block.cardinality,
        **options,
    ).to(block.conv.weight.dtype)
    naive.load_state_dict(
        cardinality_major_state(block.state_dict(), block.radix, block.cardinality)
    )
    return naive.train(block.training)


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return found


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
@pytest.mark.parametrize("cardinality", [1, 2, 4])
@pytest.mark.parametrize("radix", [1, 2, 4])
def test_block_equals_the_papers_equations(
    radix: int, cardinality: int, dtype: torch.dtype, training: bool
) -> None:
    """Compares the output, every gradient and every running statistic.

    A wrong order of splits and groups anywhere (convolution, dense layers, softmax) changes the
    output by about its own size, unless radix or cardinality is 1.
    """
    block = random_block(dtype, radix, cardinality).train(training)
    naive = twin(block)
    # Every image has its own mean: the inner batch norm sees four pooled vectors, and if they
    # hardly differed, it would multiply every rounding error.
    offsets = torch.randn(4, 32, 1, 1, dtype=dtype)
    x = (torch.randn(4, 32, 7, 6, dtype=dtype) + offsets).requires_grad_()
    naive_x = x.detach().clone().requires_grad_()
    cotangent = torch.randn(4, 48, 7, 6, dtype=dtype)

    out = block(x)
    naive_out = naive(cardinality_major_input(naive_x, radix, cardinality))
    out.backward(cotangent)
    naive_out.backward(cotangent)

    weight_difference = largest_difference(
        cardinality_major_state(gradients(block), radix, cardinality), gradients(naive)
    )
    differences = {
        "output": (out - naive_out).abs().max().item(),
        "input gradient": (x.grad - naive_x.grad).abs().max().item(),
        "weight gradients": weight_difference / (4 * 7 * 6),  # as for a loss that is a mean
        "running statistics": largest_difference(
            cardinality_major_state(block.state_dict(), radix, cardinality), naive.state_dict()
        ),
    }
    assert max(differences.values()) <= TOLERANCE[dtype], differences


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}], ids=["stride", "dilation"])
def test_stride_and_dilation_are_those_of_the_convolution(options: dict[str, int]) -> None:
    block = random_block(torch.float64, 2, 2, **options).eval()
    x = torch.randn(2, 32, 9, 8, dtype=torch.float64)
    expected = twin(block, **options)(cardinality_major_input(x, 2, 2))
    torch.testing.assert_close(block(x), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_an_odd_kernel_keeps_the_size_of_the_map(kernel_size: int) -> None:
    block = SplitAttention2d(8, 8, kernel_size=kernel_size).eval()
    assert block(torch.randn(1, 8, 5, 6)).shape == (1, 8, 5, 6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("radix", [1, 2, 4])
def test_output_has_the_layout_of_the_input(radix: int, layout: torch.memory_format) -> None:
    block = random_block(torch.float32, radix, 2).to(memory_format=layout)
    x = torch.randn(2, 32, 6, 5).to(memory_format=layout)
    assert block(x).is_contiguous(memory_format=layout)


def test_the_reference_notices_a_softmax_over_the_wrong_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Re-implementations often read fc2's rows as radix-major, which is wrong."""

    def radix_major_softmax(self: SplitAttention2d, logits: Tensor) -> Tensor:
        return logits.unflatten(1, (self.radix, -1)).softmax(1).flatten(1, 2)

    monkeypatch.setattr(SplitAttention2d, "attend", radix_major_softmax)
    for cardinality, equal in ((1, True), (2, False)):
        block = random_block(torch.float64, 2, cardinality).eval()
        x = torch.randn(2, 32, 5, 5, dtype=torch.float64)
        expected = twin(block)(cardinality_major_input(x, 2, cardinality))
        assert ((block(x) - expected).abs().max().item() < 1e-3) is equal


@pytest.mark.parametrize("cardinality", [1, 2])
@pytest.mark.parametrize("radix", [2, 4])
def test_attention_of_the_splits_sums_to_one(radix: int, cardinality: int) -> None:
    """If all splits are equal, the output equals one split, whatever the attention is."""
    block = random_block(torch.float64, radix, cardinality).eval()
    splits: list[Tensor] = []

    def make_alike(_module: object, _inputs: object, out: Tensor) -> Tensor:
        splits.append(out.chunk(radix, 1)[0].relu())
        return out.chunk(radix, 1)[0].repeat(1, radix, 1, 1)

    block.bn0.register_forward_hook(make_alike)
    out = block(torch.randn(2, 32, 5, 5, dtype=torch.float64))
    torch.testing.assert_close(out, splits[0], atol=1e-12, rtol=0)


def test_radix_one_is_a_sigmoid_gate() -> None:
    """A softmax over a single split would always be one, which is no attention."""
    block = random_block(torch.float64, 1, 1).eval()
    torch.nn.init.zeros_(block.fc2.weight)
    torch.nn.init.constant_(block.fc2.bias, -1.0)
    x = torch.randn(2, 32, 5, 5, dtype=torch.float64)
    expected = torch.sigmoid(torch.tensor(-1.0).double()) * block.bn0(block.conv(x)).relu()
    torch.testing.assert_close(block(x), expected, atol=1e-12, rtol=0)


def test_attention_sees_the_mean_over_positions() -> None:
    """A sum would grow with the map, whose size differs between training and test."""
    block = random_block(torch.float64, 2, 1).eval()
    flat = torch.randn(1, 32, 1, 1, dtype=torch.float64)
    with torch.no_grad():  # only the kernel's center is nonzero, so borders have no effect
        block.conv.weight[:, :, [0, 2]] = 0
        block.conv.weight[:, :, :, [0, 2]] = 0
    small, large = block(flat.expand(1, 32, 3, 3)), block(flat.expand(1, 32, 8, 9))
    torch.testing.assert_close(large[..., :1, :1], small[..., :1, :1], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radix": 0}, "radix must be at least 1, got 0"),
        ({"cardinality": 0}, "cardinality must be at least 1, got 0"),
        ({"in_channels": 30, "radix": 4}, "in_channels must be a multiple of 4, got 30"),
        ({"out_channels": 45, "cardinality": 2}, "out_channels must be a multiple of 2, got 45"),
        (
            {"in_channels": 60, "out_channels": 60, "cardinality": 3, "radix": 1},
            "attention channels must be a multiple of 3, got 32",
        ),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"in_channels": "64"}, "in_channels must be a whole number, got '64'"),
        ({"out_channels": 0}, "out_channels must be at least 1, got 0"),
        ({"pool_stride": 2.0}, "pool_stride must be a whole number, got 2.0"),
    ],
)
def test_channels_that_cannot_be_grouped_are_reported_in_one_line(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        SplitAttention2d(**{"in_channels": 32, "out_channels": 48, **arguments})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
