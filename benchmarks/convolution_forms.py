"""Compare two forms of the 3x3 convolution: one with groups, and one dense convolution per group.

usage: python benchmarks/convolution_forms.py [--model resnest50] [--batch 32] [--size 224]
           [--precision float32|bfloat16] [--rounds 20] [--device cpu|cuda] [--output FILE]

For every shape of the convolutions in the model's blocks, the two forms take turns, forward and
then backward, in channels_last. A row with the ratios is added to the JSON list in FILE.
"""

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from splitattn import environment
from splitattn.architectures import architecture
from splitattn.bench.spread import spread
from splitattn.files import replacing
from splitattn.nn.resnest import ResNeSt
from splitattn.nn.split_attention import SplitAttention2d

OUTPUT = Path(__file__).with_suffix(".json")
WARM_UP_ROUNDS = 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of a grouped 3x3 convolution and the side of its input maps."""

    in_channels: int
    out_channels: int
    groups: int
    side: int


class Dense(nn.Module):
    """One dense convolution for each group of `grouped`, each with its own input maps."""

    def __init__(self, grouped: nn.Conv2d) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(
                weight.shape[1],
                weight.shape[0],
                grouped.kernel_size,
                grouped.stride,
                grouped.padding,
                bias=False,
            )
            for weight in grouped.weight.chunk(grouped.groups)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [conv(x) for conv, x in zip(self.convolutions, maps, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnest50")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="side of an image in pixels")
    parser.add_argument("--precision", choices=list(DTYPES), default="float32")
    parser.add_argument(
        "--rounds", type=int, default=20, help="number of rounds that count, at least 2"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2, for the quartiles, got {arguments.rounds}")
    row = {
        **{key: value for key, value in vars(arguments).items() if key != "output"},
        "shapes": [
            {
                **asdict(shape),
                "blocks": blocks,
                **compared(shape, arguments),
            }
            for shape, blocks in shapes(arguments.model, arguments.size).items()
        ],
        "environment": environment.describe(),
    }
    rows = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else []
    with replacing(arguments.output) as path:
        path.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(row, indent=1) + "\n")


def shapes(model: str, size: int) -> Counter[Shape]:
    """The shapes in a model, and the number of blocks with each."""
    found: Counter[Shape] = Counter()

    def note(conv: nn.Conv2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        shape = Shape(
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            groups=conv.groups,
            side=inputs[0].shape[-1],
        )
        found.update([shape])

    with torch.device("meta"):
        network = ResNeSt(architecture(model)).eval()
        for module in network.modules():
            if isinstance(module, SplitAttention2d):
                module.conv.register_forward_hook(note)
        network(torch.empty(1, 3, size, size))
    return found


def compared(shape: Shape, arguments: argparse.Namespace) -> dict[str, object]:
    device, dtype = torch.device(arguments.device), DTYPES[arguments.precision]
    grouped = nn.Conv2d(
        shape.in_channels, shape.out_channels, 3, padding=1, groups=shape.groups, bias=False
    )
    dense = Dense(grouped)
    for conv in (grouped, dense):
        conv.to(device, dtype, memory_format=torch.channels_last)

    def maps(parts: int) -> Tensor:
        channels = shape.in_channels // parts
        x = torch.randn(
            arguments.batch, channels, shape.side, shape.side, device=device, dtype=dtype
        )
        return x.to(memory_format=torch.channels_last).requires_grad_()

    whole, parts = maps(1), [maps(shape.groups) for _ in range(shape.groups)]
    forms = {"grouped": lambda: [grouped(whole)], "dense": lambda: dense(parts)}
    inputs = {
        "grouped": [whole, *grouped.parameters()],
        "dense": [*parts, *dense.parameters()],
    }
    ones = {name: [torch.ones_like(output) for output in run()] for name, run in forms.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for i in range(WARM_UP_ROUNDS + arguments.rounds):
        for name in list(forms)[:: -1 if i % 2 else 1]:
            begin = now(device)
            outputs = forms[name]()
            middle = now(device)
            torch.autograd.grad(outputs, inputs[name], ones[name])
            times[name].append((middle - begin, now(device) - middle))
    counted = {name: values[WARM_UP_ROUNDS:] for name, values in times.items()}
    pairs = list(zip(counted["grouped"], counted["dense"], strict=True))
    return {
        "milliseconds": {
            name: {
                "forward": spread([1000 * forward for forward, _ in values]),
                "backward": spread([1000 * backward for _, backward in values]),
            }
            for name, values in counted.items()
        },
        "grouped_to_dense": {
            "forward": spread([one[0] / many[0] for one, many in pairs]),
            "backward": spread([one[1] / many[1] for one, many in pairs]),
            "both": spread([sum(one) / sum(many) for one, many in pairs]),
        },
    }


def now(device: torch.device) -> float:
    """The time after all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
