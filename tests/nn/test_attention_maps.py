"""The attention that is read from a network is the attention with which it blends."""

import pytest
import torch
from torch import Tensor

from splitattn.architectures import ARCHITECTURES, Architecture
from splitattn.errors import InputError
from splitattn.nn.attention_maps import attention_shares
from splitattn.nn.fusion import fuse
from splitattn.nn.resnest import ResNeSt
from splitattn.nn.split_attention import SplitAttention2d
from tests.nn.networks import images, randomize_norms, small


def network(architecture: Architecture) -> ResNeSt:
    model = ResNeSt(architecture, num_classes=7)
    randomize_norms(model)
    return model


def kinds() -> list[tuple[int, int]]:
    """The pairs of radix and cardinality in the table, without radix 0: it has no attention."""
    return sorted({(a.radix, a.cardinality) for a in ARCHITECTURES.values() if a.radix})


@pytest.mark.parametrize(("radix", "cardinality"), kinds())
def test_a_block_gives_its_splits_weighted_by_the_shares(radix: int, cardinality: int) -> None:
    """This also shows that shares and channels have the same order, radix-major."""
    block = SplitAttention2d(32, 48, radix=radix, cardinality=cardinality).eval()
    x = images(batch=3, height=7, width=6, channels=32)
    with torch.inference_mode():
        shares = attention_shares(block, x)[""]
        assert shares.shape == (3, radix, 48)
        splits = block.bn0(block.conv(x)).relu().unflatten(1, (radix, 48))
        expected = (shares[..., None, None] * splits).sum(1)
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("radix", "cardinality"), kinds())
def test_shares_of_a_channel_add_up_to_one(radix: int, cardinality: int) -> None:
    model = network(small(radix, cardinality))
    shares = attention_shares(model, images(channels=3))
    assert all(share.min() >= 0 and share.max() <= 1 for share in shares.values())
    if radix > 1:
        for share in shares.values():
            torch.testing.assert_close(share.sum(1), torch.ones_like(share[:, 0]))


def test_every_block_answers_in_the_order_in_which_it_runs() -> None:
    shares = attention_shares(network(small(layers=(1, 2, 1, 1))), images(batch=2))
    assert {name: tuple(share.shape) for name, share in shares.items()} == {
        "layer1.0.conv2": (2, 2, 16),
        "layer2.0.conv2": (2, 2, 32),
        "layer2.1.conv2": (2, 2, 32),
        "layer3.0.conv2": (2, 2, 64),
        "layer4.0.conv2": (2, 2, 128),
    }


def test_an_image_has_its_own_shares_whatever_is_beside_it() -> None:
    """Batch norm in training mode would let the images of a batch see each other."""
    model = network(small()).train()
    batch = images(batch=2)
    together = attention_shares(model, batch)
    alone = attention_shares(model, batch[1:])
    for name, share in together.items():
        torch.testing.assert_close(share[1:], alone[name])
        assert not torch.allclose(share[0], share[1])


def test_the_network_stays_as_it_was() -> None:
    model = network(small()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attention_shares(model, images())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_hooks_go_when_the_network_fails() -> None:
    model = network(small())
    with pytest.raises(RuntimeError):
        attention_shares(model, torch.zeros(1, 4, 32, 32))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_that_was_compiled_and_has_run_answers_like_any_other() -> None:
    torch.compiler.reset()
    model = network(small()).eval()
    x = images()
    compiled = torch.compile(model, backend="eager")
    with torch.inference_mode():
        compiled(x)
    shares = attention_shares(compiled, x)
    assert list(shares) == [f"_orig_mod.{name}" for name in attention_shares(model, x)]


def test_a_block_that_does_not_run_is_named() -> None:
    model = network(small())
    model.layer4 = torch.nn.Identity()
    model.spare = SplitAttention2d(16, 16)
    model.fc = torch.nn.Identity()
    with pytest.raises(InputError, match=r"every block to run in Python, got nothing of 'spare'"):
        attention_shares(model, images())


def without_blocks() -> list[torch.nn.Module]:
    return [network(small(radix=0)), fuse(network(small()))]


@pytest.mark.parametrize("model", without_blocks(), ids=["radix 0", "fused"])
def test_a_network_without_attention_is_refused(model: torch.nn.Module) -> None:
    x: Tensor = images()
    with pytest.raises(InputError, match="needs Split-Attention blocks, got "):
        attention_shares(model, x)
