"""With the same weights, outputs equal those of torchvision's and timm's networks."""

import dataclasses

import pytest
import timm
import torch
import torchvision
from torch import nn

from splitattn.architectures import ARCHITECTURES, TIMM_NAMES, Architecture
from splitattn.errors import InputError
from splitattn.nn.resnest import ResNeSt
from splitattn.nn.split_attention import SplitAttention2d

from .networks import images, randomize_norms

PLAIN = Architecture(layers=(3, 4, 6, 3), radix=0, deep_stem=False, avg_down=False, avd=False)


@torch.inference_mode()
def assert_equal_outputs(ours: nn.Module, theirs: nn.Module, *sizes: tuple[int, int]) -> None:
    """Load our random weights into `theirs`, under the same keys, and compare the logits."""
    randomize_norms(ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ours.eval()
    theirs.eval()
    for height, width in sizes:
        x = images(2, height, width)
        logits = ours(x)
        # Not constant, and not so large that rounding exceeds the tolerance.
        assert 0.1 < logits.std() < 10
        # They differ between images, as they would not if the residuals were zero.
        assert (logits[0] - logits[1]).abs().max() > 0.01
        torch.testing.assert_close(logits, theirs(x), atol=1e-5, rtol=0)


# Slow: they differ from resnest101 only in the number of blocks.
DEEPEST = dict.fromkeys(("resnest200", "resnest269"), pytest.mark.slow)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=DEEPEST.get(name, ())) for name in TIMM_NAMES]
)
def test_equals_timm(name: str) -> None:
    theirs = timm.create_model(TIMM_NAMES[name], pretrained=False)
    assert_equal_outputs(ResNeSt(ARCHITECTURES[name]), theirs, (97, 65), (64, 64))


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["resnest26", "resnest50_fast_4s2x40d"])
def test_dilated_as_timm_does_it_equals_timm(name: str, output_stride: int) -> None:
    theirs = timm.create_model(TIMM_NAMES[name], pretrained=False, output_stride=output_stride)
    ours = ResNeSt(ARCHITECTURES[name], output_stride=output_stride, dilation="timm")
    assert_equal_outputs(ours, theirs, (97, 65))
    # Feature maps too, since logits hardly depend on positions.
    x = images(2, 65, 97)
    official = ResNeSt(ARCHITECTURES[name], output_stride=output_stride).eval()
    official.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        features = ours.forward_features(x)
        torch.testing.assert_close(features, theirs.forward_features(x), atol=1e-5, rtol=1e-5)
        assert (features - official.forward_features(x)).abs().max() > 0.1 * features.abs().max()


def test_without_its_ideas_it_is_torchvisions_resnet50() -> None:
    assert_equal_outputs(ResNeSt(PLAIN), torchvision.models.resnet50(), (97, 65), (64, 64))


def test_with_cardinality_it_is_torchvisions_resnext50() -> None:
    row = dataclasses.replace(PLAIN, cardinality=32, bottleneck_width=4)
    assert_equal_outputs(ResNeSt(row), torchvision.models.resnext50_32x4d(), (97, 65))


def test_with_deep_stem_and_average_shortcut_it_is_timms_resnet50d() -> None:
    row = dataclasses.replace(PLAIN, deep_stem=True, avg_down=True)
    theirs = timm.create_model("resnet50d", pretrained=False)
    assert_equal_outputs(ResNeSt(row), theirs, (97, 65), (64, 64))


def test_radix_one_gates_like_squeeze_and_excitation() -> None:
    """Every block scales its 3x3 convolution's channels by a sigmoid of their means."""
    model = ResNeSt(dataclasses.replace(PLAIN, radix=1, layers=(1, 1, 1, 1)))
    randomize_norms(model)
    model.eval()
    gates = {}

    def compare(block: SplitAttention2d, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        (x,) = inputs
        maps = block.bn0(block.conv(x)).relu()
        squeezed = block.fc1.weight.flatten(1) @ maps.mean((2, 3)).T + block.fc1.bias[:, None]
        hidden = block.bn1(squeezed.T[:, :, None, None]).relu().flatten(1)
        gate = torch.sigmoid(hidden @ block.fc2.weight.flatten(1).T + block.fc2.bias)
        torch.testing.assert_close(out, gate[:, :, None, None] * maps, atol=1e-5, rtol=0)
        gates[block] = gate

    for module in model.modules():
        if isinstance(module, SplitAttention2d):
            module.register_forward_hook(compare)
    with torch.inference_mode():
        model(images(2, 65, 97))
    assert len(gates) == 4
    assert all(gate.shape[1] == block.conv.out_channels for block, gate in gates.items())


def test_code_written_for_timms_networks_finds_its_methods() -> None:
    ours = ResNeSt(ARCHITECTURES["resnest14"], num_classes=7).eval()
    theirs = timm.create_model(TIMM_NAMES["resnest14"], pretrained=False, num_classes=7).eval()
    theirs.load_state_dict(ours.state_dict())
    x = images(2, 64, 64)
    for network in (ours, theirs):
        assert network.num_features == 2048
        assert network.get_classifier() is network.fc
        network.set_grad_checkpointing()
    assert ours.gradient_checkpointing
    with torch.no_grad():
        maps = ours.forward_features(x)
        for arguments in ({}, {"pre_logits": True}):
            found = ours.forward_head(maps, **arguments)
            expected = theirs.forward_head(theirs.forward_features(x), **arguments)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        for classes, width in ((3, 3), (0, 2048), (5, 5)):
            for network in (ours, theirs):
                network.reset_classifier(classes, global_pool="avg")
                assert network.num_classes == classes
                assert network(x).shape == (2, width)
    assert ours.fc.weight.detach().std() == pytest.approx((2 / 2048) ** 0.5, rel=0.1)
    with pytest.raises(InputError, match="num_classes must be at least 0, got -1"):
        ours.reset_classifier(-1)
    with pytest.raises(InputError, match="global_pool must be 'avg', got 'max'"):
        ours.reset_classifier(5, "max")
