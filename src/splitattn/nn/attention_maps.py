"""Reads the attention of every block from a network while it runs.

Shapes: B batch, R radix, K cardinality, C output channels of a block.
"""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from splitattn.errors import InputError
from splitattn.nn.parity import evaluating
from splitattn.nn.split_attention import SplitAttention2d


def attention_shares(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """How much of each split every block of `model` keeps, for each image and channel.

    Args:
        model: a network with `SplitAttention2d` blocks; it is run in evaluation mode.
        images: (B, in_chans, H, W) normalized floats, on the network's device.

    Returns:
        The attention (B, R, C) of each block by the block's name, in the order in which blocks run.
        A channel's shares add up to one along R. With radix 1 the only entry is the sigmoid gate,
        from 0 to 1. Channels are those of the block's output: C / K for each cardinal group, one
        group after the other.

    Raises:
        InputError: the network has no such block, because its radix is 0 or `fuse` replaced the
            blocks; or a block did not run in Python, as in a scripted or exported network.
    """
    blocks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SplitAttention2d)
    }
    if not blocks:
        raise InputError(
            f"attention_shares needs Split-Attention blocks, got {type(model).__name__} without "
            "any; take a network of radix 1 or more, before it is fused"
        )
    shares: dict[str, Tensor] = {}

    def keep(
        name: str, block: SplitAttention2d, _fc2: nn.Module, _inputs: object, logits: Tensor
    ) -> None:
        shares[name] = block.attend(logits).reshape(len(logits), block.radix, -1)

    # Compiled code would not call hooks that were added after its compilation.
    eager = torch.compiler.set_stance
    with ExitStack() as hooks, eager("force_eager"), torch.inference_mode(), evaluating(model):
        for name, block in blocks.items():
            hooks.enter_context(block.fc2.register_forward_hook(partial(keep, name, block)))
        model(images)
    if missing := [name for name in blocks if name not in shares]:
        raise InputError(
            f"attention_shares needs every block to run in Python, got nothing of {missing[0]!r} "
            f"and {len(missing) - 1} others; take the network itself, neither scripted nor exported"
        )
    return shares
