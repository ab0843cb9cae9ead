"""Finds the stem and the stages of a ResNeSt, also inside larger networks."""

from collections.abc import Iterator

from torch import nn

from splitattn.errors import InputError
from splitattn.nn.batch_norm import BatchNorm2d
from splitattn.nn.freezing import freeze
from splitattn.nn.resnest import Stage

# Depths: the stem is 0, stages are 1 to 4, everything else is HEAD.
HEAD = 5
_STEM = ("conv1", "bn1")


def parts_by_depth(network: nn.Module) -> Iterator[tuple[int, nn.Module]]:
    """The stem's modules, with depth 0, and the stages, with depths 1 to 4, in any network.

    Stages are found by their class and counted in order. The stem is `conv1` and `bn1` in the same
    parent. So `layer1` of a ResNeSt is found, and `backbone.body.layer1` of a detector.
    """
    for module in network.modules():
        stages = [child for child in module.children() if isinstance(child, Stage)]
        if stages:
            yield from ((0, part) for name, part in module.named_children() if name in _STEM)
            yield from enumerate(stages, start=1)


def depths(network: nn.Module) -> dict[int, int]:
    """The depth of each parameter of a stem or stage, by the parameter's `id`; others are HEAD."""
    return {
        id(weight): depth for depth, part in parts_by_depth(network) for weight in part.parameters()
    }


def freeze_stages(network: nn.Module, count: int) -> None:
    """Freeze the first `count` of stem, layer1, ..., layer4, as `freeze` does.

    Raises:
        InputError: the network has no such stages.
    """
    frozen = [part for depth, part in parts_by_depth(network) if depth < count]
    if count and not frozen:
        raise InputError(
            f"frozen_stages must be 0 for a network without ResNeSt stages, got {count}"
        )
    for part in frozen:
        freeze(part)


def freeze_batch_norms(network: nn.Module) -> None:
    """Freeze the batch norms of stem and stages, not those of a head."""
    for _, part in parts_by_depth(network):
        for module in part.modules():
            if isinstance(module, BatchNorm2d):
                freeze(module)
