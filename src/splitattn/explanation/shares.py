"""How much each block keeps of its splits."""

from dataclasses import dataclass

from splitattn.architectures import Architecture
from splitattn.engines.engine import Array


@dataclass(frozen=True, kw_only=True)
class BlockShares:
    """How much a block keeps of each split, over all places of the map.

    Attributes:
        block: its name, such as "layer1.0".
        shares: of each split, the mean over channels; they add up to one. With radix 1 the only
            number is the gate.
    """

    block: str
    shares: tuple[float, ...]


def block_shares(architecture: Architecture, outputs: list[Array]) -> tuple[BlockShares, ...]:
    """The shares of every block, in order.

    Args:
        outputs: the network's output "shares" (blocks, splits), or none. It leaves the last split
            out.
    """
    names = [shape.name for blocks in architecture.stages() for shape in blocks]
    several = architecture.radix > 1
    return tuple(
        BlockShares(block=name, shares=(*row, 1 - sum(row)) if several else tuple(row))
        for own in outputs
        for name, row in zip(names, own.tolist(), strict=True)
    )
