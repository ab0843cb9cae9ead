"""Split attention as the paper writes it (arXiv 2004.08955, section 3.1), one group at a time.

Cardinality-major: group k holds its R splits next to each other. Each split has its own 3x3
convolution, each group its own pair of dense layers. A slow and plain reference for tests.
"""

import torch
from torch import Tensor, nn


class CardinalGroup(nn.Module):
    """One of the K groups: R splits of c' input channels each become one output of c channels."""

    def __init__(
        self, split_in: int, channels: int, hidden: int, radix: int, stride: int, dilation: int
    ) -> None:
        super().__init__()
        self.radix = radix
        self.convs = nn.ModuleList(
            nn.Conv2d(
                split_in, channels, 3, stride, padding=dilation, dilation=dilation, bias=False
            )
            for _ in range(radix)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(radix))
        self.dense1 = nn.Linear(channels, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.dense2 = nn.Linear(hidden, radix * channels)

    def forward(self, x: Tensor) -> Tensor:
        splits = []
        for r, x_r in enumerate(x.chunk(self.radix, dim=1)):
            splits.append(torch.relu(self.norms[r](self.convs[r](x_r))))

        summed = torch.zeros_like(splits[0])
        for split in splits:
            summed = summed + split
        statistics = summed.sum((2, 3)) / (summed.shape[2] * summed.shape[3])  # (B, c)

        logits = self.dense2(torch.relu(self.norm(self.dense1(statistics))))
        logits_r = logits.chunk(self.radix, dim=1)  # R times (B, c)
        output = torch.zeros_like(splits[0])
        for r in range(self.radix):
            if self.radix == 1:
                weight = 1 / (1 + torch.exp(-logits_r[0]))
            else:
                weight = torch.exp(logits_r[r]) / sum(torch.exp(other) for other in logits_r)
            output = output + weight[:, :, None, None] * splits[r]
        return output


class NaiveSplitAttention(nn.Module):
    """K cardinal groups, one after another; input channels are ordered (group, split, channel)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        radix: int,
        cardinality: int,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        hidden = max(in_channels * radix // 4, 32)
        self.groups = nn.ModuleList(
            CardinalGroup(
                in_channels // (radix * cardinality),
                out_channels // cardinality,
                hidden // cardinality,
                radix,
                stride,
                dilation,
            )
            for _ in range(cardinality)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.groups), dim=1)
        return torch.cat([group(part) for group, part in zip(self.groups, parts, strict=True)], 1)


def cardinality_major_input(x: Tensor, radix: int, cardinality: int) -> Tensor:
    """Reorder channels from (split, group, channel) to (group, split, channel)."""
    return x.unflatten(1, (radix, cardinality, -1)).transpose(1, 2).flatten(1, 3)


def cardinality_major_state(
    block: dict[str, Tensor], radix: int, cardinality: int
) -> dict[str, Tensor]:
    """Split the tensors of a `SplitAttention2d` into those of the naive block, under its names.

    They may be weights, running statistics or gradients. Every number of the input is used once.
    """
    per_split = {"conv": "convs", "bn0": "norms"}
    per_group = {"fc1": "dense1", "bn1": "norm", "fc2": "dense2"}
    naive: dict[str, Tensor] = {}
    for name, tensor in block.items():
        module, kind = name.split(".")
        for k in range(cardinality):
            if module in per_group:
                naive[f"groups.{k}.{per_group[module]}.{kind}"] = _dense(
                    _part(tensor, k, cardinality)
                )
                continue
            for r in range(radix):
                part = _part(tensor, r * cardinality + k, radix * cardinality)
                naive[f"groups.{k}.{per_split[module]}.{r}.{kind}"] = part
    return naive


def _part(tensor: Tensor, index: int, parts: int) -> Tensor:
    """One of equal parts of the channels; a norm's count of batches has no channels."""
    return tensor.chunk(parts)[index] if tensor.dim() else tensor


def _dense(weight: Tensor) -> Tensor:
    """The weight (out, in, 1, 1) of a 1x1 convolution as that of a linear layer; biases as is."""
    return weight.flatten(1) if weight.dim() == 4 else weight
