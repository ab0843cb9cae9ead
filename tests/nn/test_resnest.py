"""Shapes, strides, heads and gradients of whole networks."""

import dataclasses
from typing import Any, Literal

import pytest
import torch
from torch import nn

from splitattn.architectures import ARCHITECTURES, Architecture
from splitattn.errors import InputError
from splitattn.nn.resnest import Bottleneck, ResNeSt
from splitattn.nn.split_attention import SplitAttention2d

from .networks import images, randomize_norms, small, wake_residuals


def strided_down(size: int, stride: int) -> int:
    return -(-size // stride)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 47), (64, 97), (65, 63)])
def test_map_is_the_image_divided_by_the_stride_rounded_up(
    size: tuple[int, int], output_stride: int
) -> None:
    model = ResNeSt(small(), output_stride=output_stride).eval()
    sizes: list[tuple[int, ...]] = []
    for stage in model.stages():
        stage[-1].register_forward_hook(lambda _m, _in, out: sizes.append(tuple(out.shape[2:])))
    with torch.inference_mode():
        features = model.forward_features(images(1, *size))
    strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    assert sizes == [tuple(strided_down(side, stride) for side in size) for stride in strides]
    assert features.shape[1] == small().stage_channels[-1]


@pytest.mark.parametrize(("avd", "avg_down"), [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize("avd_first", [False, True])
@pytest.mark.parametrize("deep_stem", [False, True])
def test_networks_with_ideas_switched_off_keep_the_strides(
    avd: bool, avg_down: bool, avd_first: bool, deep_stem: bool
) -> None:
    row = dataclasses.replace(
        small(), avd=avd, avg_down=avg_down, avd_first=avd_first, deep_stem=deep_stem
    )
    with torch.inference_mode():
        assert ResNeSt(row).eval().forward_features(images(1, 65, 97)).shape[2:] == (3, 4)


def three_by_three(block: Bottleneck) -> nn.Conv2d:
    conv = block.conv2.conv if isinstance(block.conv2, SplitAttention2d) else block.conv2
    assert isinstance(conv, nn.Conv2d)
    return conv


@pytest.mark.parametrize(
    ("output_stride", "dilations"),
    [
        (32, [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]),
        (16, [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 2, 2]]),
        (8, [[1, 1, 1], [1, 1, 1], [1, 2, 2], [2, 4, 4]]),
    ],
)
@pytest.mark.parametrize("radix", [0, 2])
def test_dilations_are_the_official_ones(
    radix: int, output_stride: int, dilations: list[list[int]]
) -> None:
    model = ResNeSt(small(radix, layers=(3, 3, 3, 3)), output_stride=output_stride)
    for stage, expected in zip(model.stages(), dilations, strict=True):
        convolutions = [three_by_three(block) for block in stage]
        assert [conv.dilation for conv in convolutions] == [(d, d) for d in expected]
        assert [conv.padding for conv in convolutions] == [(d, d) for d in expected]
        # Average pooling (avd) has the strides.
        assert all(conv.stride == (1, 1) for conv in convolutions)


@pytest.mark.parametrize(
    ("output_stride", "pool_strides"), [(32, [2, 2, 2]), (16, [2, 2, 1]), (8, [2, 1, 1])]
)
def test_official_first_block_of_a_dilated_stage_still_averages(
    output_stride: int, pool_strides: list[int]
) -> None:
    model = ResNeSt(small(layers=(2, 2, 2, 2)), output_stride=output_stride)
    first_stage, *later_stages = model.stages()
    assert [block.conv2.pool_stride for block in first_stage] == [None, None]
    for stage, stride in zip(later_stages, pool_strides, strict=True):
        assert [block.conv2.pool_stride for block in stage] == [stride, None]


@pytest.mark.parametrize(
    ("output_stride", "pool_strides"), [(32, [2, 2, 2]), (16, [2, 2, None]), (8, [2, None, None])]
)
def test_timms_first_block_of_a_dilated_stage_averages_its_shortcut_instead(
    output_stride: int, pool_strides: list[int | None]
) -> None:
    model = ResNeSt(small(layers=(2, 2, 2, 2)), output_stride=output_stride, dilation="timm")
    _, *later_stages = model.stages()
    for stage, stride in zip(later_stages, pool_strides, strict=True):
        assert [block.conv2.pool_stride for block in stage] == [stride, None]
        pool, _, _ = stage[0].downsample
        x = torch.ones(1, 1, 3, 4)
        expected = torch.tensor([[1, 1, 1, 0.5], [1, 1, 1, 0.5], [0.5, 0.5, 0.5, 0.25]])
        torch.testing.assert_close(pool(x)[0, 0], torch.ones(2, 2) if stride else expected)


@pytest.mark.parametrize("avd_first", [False, True])
def test_attention_is_not_merged_with_pooling_across_other_layers(avd_first: bool) -> None:
    architecture = dataclasses.replace(small(), avd_first=avd_first)
    model = ResNeSt(architecture, drop_block=0.0 if avd_first else 0.1)
    *_, last_stage = model.stages()
    assert last_stage[0].conv2.pool_stride is None
    pool = last_stage[0].avd
    assert isinstance(pool, nn.AvgPool2d)
    assert (pool.kernel_size, pool.stride, pool.padding) == (3, 2, 1)


@torch.inference_mode()
def test_a_dilated_map_contains_the_strided_map() -> None:
    """Every second position of the finer map is the coarser map (the "hole" algorithm).

    This holds if only stride and dilation depend on the resolution: without attention, whose mean
    sees all positions, and without average pooling in the shortcut. Fails if the first block skips
    its average pooling or is dilated itself, or if a later block is not dilated.
    """
    row = dataclasses.replace(small(0, layers=(1, 1, 1, 3)), avg_down=False)
    strided, dilated = ResNeSt(row).eval(), ResNeSt(row, output_stride=16).eval()
    randomize_norms(strided)
    dilated.load_state_dict(strided.state_dict())
    x = images(2, 193, 161)
    expected = strided.forward_features(x)
    assert expected.std() > 0.1
    finer = dilated.forward_features(x)
    torch.testing.assert_close(finer[..., ::2, ::2], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dilation", ["official", "timm"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_changes_neither_keys_nor_shapes(
    output_stride: int, dilation: Literal["official", "timm"]
) -> None:
    row = ARCHITECTURES["resnest50"]
    with torch.device("meta"):
        strided = ResNeSt(row).state_dict()
        dilated = ResNeSt(row, output_stride=output_stride, dilation=dilation).state_dict()
    assert [(key, value.shape) for key, value in strided.items()] == [
        (key, value.shape) for key, value in dilated.items()
    ]


@pytest.mark.parametrize("deep_stem", [False, True])
@pytest.mark.parametrize("in_chans", [1, 4])
def test_images_may_have_any_number_of_channels(in_chans: int, deep_stem: bool) -> None:
    row = dataclasses.replace(small(), deep_stem=deep_stem)
    model = ResNeSt(row, num_classes=7, in_chans=in_chans).eval()
    assert model(images(2, channels=in_chans)).shape == (2, 7)
    with pytest.raises(RuntimeError):
        model(images(2, channels=3))


def test_without_classes_it_returns_the_pooled_features() -> None:
    model = ResNeSt(small(), num_classes=0).eval()
    x = images()
    torch.testing.assert_close(model(x), model.forward_features(x).mean((2, 3)))
    assert not [key for key in model.state_dict() if key.startswith("fc.")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ({"dilation": "gluon"}, "dilation must be official or timm, got 'gluon'"),
        ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
        ({"in_chans": 0}, "in_chans must be at least 1, got 0"),
    ],
)
def test_an_argument_out_of_range_is_reported_in_one_line(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        ResNeSt(small(), **arguments)
    assert str(caught.value) == message


def test_an_architecture_whose_channels_cannot_be_grouped_is_reported_in_one_line() -> None:
    row = dataclasses.replace(small(), bottleneck_width=66)
    with pytest.raises(InputError, match=r"^in_channels must be a multiple of 8, got [0-9]+$"):
        ResNeSt(dataclasses.replace(row, radix=8))


@pytest.mark.parametrize("cardinality", [1, 2, 4])
@pytest.mark.parametrize("radix", [0, 1, 2, 4])
def test_every_parameter_receives_a_gradient(radix: int, cardinality: int) -> None:
    model = ResNeSt(small(radix, cardinality), num_classes=10).train()
    wake_residuals(model)
    loss = nn.functional.cross_entropy(model(images(4, 48, 48)), torch.arange(4))
    loss.backward()
    # A bias that a batch norm follows has no effect: its gradient is rounding around zero.
    without_effect = {name for name, _ in model.named_parameters() if name.endswith("fc1.bias")}
    silent = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or parameter.grad.abs().max() < 1e-8
    }
    assert silent - without_effect == set()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_hook_on_a_stage_is_called() -> None:
    """Feature extractors and class activation maps rely on such hooks."""
    model = ResNeSt(small(), num_classes=10)
    called: list[str] = []
    for name in ("layer1", "layer2", "layer3", "layer4"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    model(images())
    assert called == ["layer1", "layer2", "layer3", "layer4"]


def test_keys_are_the_official_layout() -> None:
    row = Architecture(layers=(1, 1, 1, 1), planes=16, stem_width=8)
    keys = [key for key in ResNeSt(row).state_dict() if key.startswith(("conv1", "bn1", "layer1"))]
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = ["conv1.0.weight", *(f"conv1.1.{part}" for part in norm)]
    expected += ["conv1.3.weight", *(f"conv1.4.{part}" for part in norm), "conv1.6.weight"]
    expected += [f"bn1.{part}" for part in norm]
    block = ["conv1.weight", *(f"bn1.{part}" for part in norm)]
    block += ["conv2.conv.weight", *(f"conv2.bn0.{part}" for part in norm)]
    block += ["conv2.fc1.weight", "conv2.fc1.bias", *(f"conv2.bn1.{part}" for part in norm)]
    block += ["conv2.fc2.weight", "conv2.fc2.bias"]
    block += ["conv3.weight", *(f"bn3.{part}" for part in norm)]
    block += ["downsample.1.weight", *(f"downsample.2.{part}" for part in norm)]
    assert keys == expected + [f"layer1.0.{key}" for key in block]
