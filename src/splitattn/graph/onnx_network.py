"""The folded network, from images to feature maps and logits, as nodes of an ONNX graph."""

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_lowercase

from onnx import TensorProto

from splitattn.graph.folding import (
    CLASS_MAPS,
    Attention,
    AveragePool,
    Block,
    Branch,
    FoldedNetwork,
    Linear,
    SplitAttention,
)
from splitattn.graph.onnx_writer import Tensor, Writer

# The feature maps, by index.
MAPS = ("stem", "layer1", "layer2", "layer3", "layer4")


def write_network(
    to: Writer, network: FoldedNetwork, size: int | None, outputs: Sequence[str]
) -> dict[str, Tensor]:
    """Write the parts that `outputs` need; return the tensors that can be outputs, by name."""
    x = Tensor(name="images", channels=network.in_chans, side=size)
    if to.half:
        x = replace(x, name=to.node("Cast", "images.half", x.name, to=TensorProto.FLOAT16))
    for i, conv in enumerate(network.stem):
        x = to.like("Relu", f"stem.{i}.relu", to.conv(f"stem.{i}", x, conv))
    found = {"stem": x}
    pooled = not {"features", "logits"}.isdisjoint(outputs)
    whole = not set(outputs).issubset(MAPS)
    last = len(network.stages) if whole else max(MAPS.index(name) for name in outputs)
    if last:
        x = to.max_pool("stem.pool", x)
    shares: list[list[list[Tensor]]] = []  # by block, group and split
    for name, stage in zip(MAPS[1:], network.stages[:last], strict=False):
        for block in stage:
            x, shares_of_block = _write_block(to, block, x)
            shares.append(shares_of_block)
        found[name] = x
    if "shares" in outputs:
        found["shares"] = _write_shares(to, shares, network.radix)
    if CLASS_MAPS in outputs:
        assert network.classifier is not None
        found[CLASS_MAPS] = _write_class_maps(to, network.classifier, x)
    if pooled:
        x = to.mean("pool", x)
        x = Tensor(name=to.node("Flatten", "pool.flat", x.name), channels=x.channels, side=None)
        found["features"] = x
    if "logits" in outputs:
        assert network.classifier is not None
        weight = to.weights("classifier.weight", network.classifier.weight)
        bias = to.weights("classifier.bias", network.classifier.bias)
        to.node("Gemm", "classifier", x.name, weight, bias, transB=1)
        found["logits"] = Tensor(name="classifier", channels=network.num_classes, side=None)
    return found


def _write_shares(to: Writer, shares: Sequence[Sequence[list[Tensor]]], radix: int) -> Tensor:
    """Write the output "shares" of `to_onnx`, from shares by block, group and split."""
    counted = range(max(radix - 1, 1))
    means = []
    for block, groups in enumerate(shares):
        for split in counted:
            name = f"shares.{block}.{ascii_lowercase[split]}"
            of_groups = [group[split] for group in groups]
            whole = to.concatenated(f"{name}.groups", of_groups) if groups[1:] else of_groups[0]
            means.append(to.channel_mean(name, whole))
    name = to.reshaped("shares.blocks", to.concatenated("shares.means", means), len(shares), -1)
    return Tensor(name=name, channels=len(shares), side=None)


def _write_class_maps(to: Writer, classifier: Linear, x: Tensor) -> Tensor:
    """Write the output "class_maps" of `to_onnx`: the classifier at each place of the last map."""
    weight = to.weights("class_maps.weight", classifier.weight[:, :, None, None])
    windows = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0]}
    name = to.node("Conv", "class_maps.conv", x.name, weight, group=1, **windows)
    return Tensor(name=name, channels=len(classifier.bias), side=x.side)


def _write_block(to: Writer, block: Block, x: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
    """Write a block; return its map and the shares of the splits in each group."""
    name = block.name
    shortcut = x
    for step in block.shortcut:
        if isinstance(step, AveragePool):
            shortcut = to.average(f"{name}.shortcut.pool", shortcut, step)
        else:
            shortcut = to.conv(f"{name}.shortcut", shortcut, step)
    several = len(block.groups) > 1
    written = [
        _write_group(to, f"{name}.group{k}" if several else name, group, x)
        for k, group in enumerate(block.groups, start=1)
    ]
    groups = [blended for blended, _ in written]
    x = to.concatenated(f"{name}.groups", groups) if several else groups[0]
    x = to.conv(f"{name}.conv3", x, block.conv3)
    x = to.like("Relu", f"{name}.relu", to.like("Add", f"{name}.add", x, shortcut))
    return x, [shares for _, shares in written]


def _write_group(
    to: Writer, name: str, group: SplitAttention, x: Tensor
) -> tuple[Tensor, list[Tensor]]:
    several = len(group.branches) > 1
    marks = [f".{ascii_lowercase[i]}" for i in range(len(group.branches))] if several else [""]
    maps = [
        _write_branch(to, name, mark, branch, x)
        for mark, branch in zip(marks, group.branches, strict=True)
    ]
    averaged = [
        to.average(f"{name}.pool{mark}", one, group.pool)
        for mark, one in zip(marks, maps, strict=True)
    ]
    attention = group.attention
    if attention is None:
        return averaged[0], []
    means = [
        to.mean(f"{name}.attention.pool{mark}", one) for mark, one in zip(marks, maps, strict=True)
    ]
    if attention.radix > 1 and not several:
        letters = ascii_lowercase[: attention.radix]
        averaged = to.split(f"{name}.split", letters, averaged[0])
        means = to.split(f"{name}.attention.split", letters, means[0])
    shares = _write_attention(to, f"{name}.attention", attention, means)
    return _write_blend(to, f"{name}.blend", averaged, shares), shares


def _write_branch(to: Writer, name: str, mark: str, branch: Branch, x: Tensor) -> Tensor:
    x = to.like("Relu", f"{name}.conv1{mark}.relu", to.conv(f"{name}.conv1{mark}", x, branch.conv1))
    x = to.average(f"{name}.pool{mark}", x, branch.pool)
    return to.like(
        "Relu", f"{name}.conv2{mark}.relu", to.conv(f"{name}.conv2{mark}", x, branch.conv2)
    )


def _write_attention(
    to: Writer, name: str, attention: Attention, means: list[Tensor]
) -> list[Tensor]:
    """Write the shares of the splits; with two splits, the blend derives the second share."""
    total = means[0]
    for mark, mean in zip(ascii_lowercase[1:], means[1:], strict=False):
        total = to.like("Add", f"{name}.sum.{mark}", total, mean)
    hidden = to.like("Relu", f"{name}.fc1.relu", to.conv(f"{name}.fc1", total, attention.fc1))
    if attention.radix <= 2:
        gate = to.like("Sigmoid", f"{name}.gate", to.conv(f"{name}.fc2", hidden, attention.fc2[0]))
        if attention.radix == 1 or not to.eight_bit:
            return [gate]
        one = to.full(f"{name}.one", 1)
        return [gate, replace(to.like("Sub", f"{name}.rest", one, gate), channels=gate.channels)]
    # A softmax from operators that every engine has; the last split's logits are zero.
    letters = ascii_lowercase[: attention.radix]
    logits = [
        to.conv(f"{name}.fc2.{letter}", hidden, layer)
        for letter, layer in zip(letters, attention.fc2, strict=False)
    ]
    zero = to.full(f"{name}.zero", 0)
    highest = to.like("Max", f"{name}.highest", *logits, zero)
    relative = [
        to.like("Sub", f"{name}.relative.{letter}", one, highest)
        for letter, one in zip(letters, logits, strict=False)
    ]
    relative.append(to.like("Neg", f"{name}.relative.{letters[-1]}", highest))
    powers = [
        to.like("Exp", f"{name}.power.{letter}", one)
        for letter, one in zip(letters, relative, strict=True)
    ]
    total = to.like("Sum", f"{name}.total", *powers)
    return [
        to.like("Div", f"{name}.share.{letter}", power, total)
        for letter, power in zip(letters, powers, strict=True)
    ]


def _write_blend(to: Writer, name: str, splits: list[Tensor], shares: list[Tensor]) -> Tensor:
    if len(splits) == 1:
        return to.like("Mul", name, splits[0], shares[0])
    if len(shares) == 1 and not to.eight_bit:
        first, last = splits
        difference = to.like("Sub", f"{name}.difference", first, last)
        weighted = to.like("Mul", f"{name}.product", difference, shares[0])
        return to.like("Add", name, last, weighted)
    letters = ascii_lowercase[: len(splits)]
    *others, out = (
        to.like("Mul", f"{name}.product.{letter}", split, share)
        for letter, split, share in zip(letters, splits, shares, strict=True)
    )
    for letter, other in zip(letters, others[:-1], strict=False):
        out = to.like("Add", f"{name}.sum.{letter}", out, other)
    return to.like("Add", name, out, others[-1])
