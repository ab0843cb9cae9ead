"""How each project names the tensors of a ResNeSt, as a table.

All projects have the same networks and tensors; only the names differ. The official names are those
of `nn/`. Other projects' names appear only in this module.

Sources: resnest/torch and resnest/d2 of github.com/zhanghang1989/ResNeSt;
mmpretrain/models/backbones/{resnest,resnet}.py; mmdet/models/backbones/resnest.py and
mmdet/models/layers/res_layer.py, of which mmsegmentation has its own copy; timm/models/resnest.py.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from splitattn.architectures import Architecture
from splitattn.errors import check_choice

T = TypeVar("T")

_Row = tuple[str, str | None, str | None, str | None]

# Columns: official, mmpretrain, mmdet and mmseg, detectron2. First the modules outside the stages.
# The norm after the stem's last convolution is part of the stem everywhere but in the official
# code.
_STEM: tuple[_Row, ...] = (
    ("conv1.0", "stem.0.conv", "stem.0", "stem.conv1_1"),
    ("conv1.1", "stem.0.bn", "stem.1", "stem.conv1_1.norm"),
    ("conv1.3", "stem.1.conv", "stem.3", "stem.conv1_2"),
    ("conv1.4", "stem.1.bn", "stem.4", "stem.conv1_2.norm"),
    ("conv1.6", "stem.2.conv", "stem.6", "stem.conv1_3"),
    ("bn1", "stem.2.bn", "stem.7", "stem.conv1_3.norm"),
    ("conv1", None, None, None),  # without the deep stem
    ("fc", None, None, "linear"),  # mmpretrain's: `Layout.classifier`
)
_STAGES: tuple[_Row, ...] = (
    ("layer1", "layer1", "layer1", "res2"),
    ("layer2", "layer2", "layer2", "res3"),
    ("layer3", "layer3", "layer3", "res4"),
    ("layer4", "layer4", "layer4", "res5"),
)
# The modules of a block.
_BLOCK: tuple[_Row, ...] = (
    ("conv1", "conv1", "conv1", "conv1"),
    ("bn1", "bn1", "bn1", "conv1.norm"),
    ("conv2.conv", "conv2.conv", "conv2.conv", "conv2.conv"),
    ("conv2.bn0", "conv2.bn0", "conv2.bn0", "conv2.bn0"),
    ("conv2.fc1", "conv2.fc1", "conv2.fc1", "conv2.fc1"),
    ("conv2.bn1", "conv2.bn1", "conv2.bn1", "conv2.bn1"),
    ("conv2.fc2", "conv2.fc2", "conv2.fc2", "conv2.fc2"),
    ("conv2", None, None, "conv2"),  # radix 0
    ("bn2", None, None, "conv2.norm"),
    ("conv3", "conv3", "conv3", "conv3"),
    ("bn3", "bn3", "bn3", "conv3.norm"),
    ("downsample.1", "downsample.1", "downsample.1", "shortcut"),
    ("downsample.2", "downsample.2", "downsample.2", "shortcut.norm"),
    ("downsample.0", None, None, None),  # without avg_down, then with its norm as downsample.1
)
# mmpretrain has no pooling module in shortcuts of stride 1.
_MMPRETRAIN_FIRST_SHORTCUT = {
    "layer1.#.downsample.1": "layer1.#.downsample.0",
    "layer1.#.downsample.2": "layer1.#.downsample.1",
}

# Modules of segmentation heads: ours, which are torchvision's, and PyTorch-Encoding's
# (encoding/models/sseg of github.com/zhanghang1989/PyTorch-Encoding).
_HEADS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "deeplabv3": (
        ("0.convs.0", "aspp.b0"),
        ("0.convs.1", "aspp.b1"),
        ("0.convs.2", "aspp.b2"),
        ("0.convs.3", "aspp.b3"),
        ("0.convs.4", "aspp.b4.gap"),
        ("0.project", "aspp.project"),
        ("1", "block.0"),
        ("2", "block.1"),
        ("4", "block.4"),
    ),
    "fcn": (("0", "conv5.0"), ("1", "conv5.1"), ("4", "conv5.4")),
}
_HEAD_PREFIX, _AUXILIARY_PREFIX = "head.", "auxlayer."

_LATE_POOLING = (
    "its blocks pool only after the 3x3 convolution, so outputs would differ (avd_first)"
)
_DEEP_STEM = "it supports only the stem of three convolutions (deep_stem)"
_AVERAGED_SHORTCUT = "it supports only shortcuts with average pooling (avg_down)"
_OPENMMLAB_LACKS: Mapping[str, Mapping[object, str]] = {
    "avd_first": {True: _LATE_POOLING},
    "radix": {0: "its blocks always have attention (radix 0)"},
    "deep_stem": {False: _DEEP_STEM},
    "avg_down": {False: _AVERAGED_SHORTCUT},
}
_DETECTRON2_LACKS: Mapping[str, Mapping[object, str]] = {
    "avd_first": {True: _LATE_POOLING},
    "radix": {1: "its blocks of radix 1 are plain convolutions, without attention"},
    "deep_stem": {False: _DEEP_STEM},
    "avg_down": {False: _AVERAGED_SHORTCUT},
}

_DEPTHS_TO_200 = ((3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3))
_DEPTHS_TO_269 = (*_DEPTHS_TO_200, (3, 30, 48, 8))

# A module of a block. In a layout's names, # replaces its number: layer1.#.conv1.
_IN_BLOCK = re.compile(r"((?:layer|res)\d)\.(\d+)\.(.+)")
# Most parts of a prefix: model.backbone.bottom_up. has three.
_LONGEST_PREFIX = 8
# If a second prefix has fewer known keys, it is not a second network.
_NETWORK = 50
# Prefixes of averaged weights (EMA, SWA): `ema_model.module.`, `model_ema.`, `averaged.`.
_AVERAGE = re.compile(r"(^|[._])(ema|swa|averaged?)[._]", re.IGNORECASE)
# Parts of a key that only deformable convolutions have: mm*'s and detectron2's.
_OFFSETS = frozenset({"conv_offset", "conv2_offset"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """How one or several projects name the tensors.

    Attributes:
        names: names of the layout; several if projects use identical keys.
        modules: its name of each module, by official name. `#` stands for a block's number.
        classifier: its name of a classifier that is outside the prefix; None if there is no such
            classifier.
        prefix: the prefix of every key but the classifier's in the project's own files.
        wrapper: the entry of a .pth file in which the project looks for the state dict; None if the
            file is the state dict.
        lacks: values of fields of `Architecture` that the project's network does not support, each
            with the reason.
        depths: layer counts that the project supports; None if all of ours.
    """

    names: tuple[str, ...]
    modules: Mapping[str, str]
    classifier: str | None = None
    prefix: str = ""
    wrapper: str | None = None
    lacks: Mapping[str, Mapping[object, str]] = field(default_factory=dict)
    depths: tuple[tuple[int, ...], ...] | None = None

    def __str__(self) -> str:
        first, *others = self.names
        return f"{first} (the same as {' and '.join(others)})" if others else first

    @cached_property
    def officials(self) -> Mapping[str, str]:
        """The official name of each module, by the layout's name."""
        return {own: official for official, own in self.modules.items()}

    @property
    def key_mapping(self) -> "KeyMapping":
        """The mapping for files that the project itself writes."""
        return KeyMapping(layout=self, prefix=self.prefix)

    def refusal(self, architecture: Architecture) -> str | None:
        """Why the layout cannot hold such a network, or None if it can."""
        for name, reasons in self.lacks.items():
            if reason := reasons.get(getattr(architecture, name)):
                return reason
        return None


@dataclass(frozen=True, kw_only=True)
class KeyMapping:
    """Maps the keys of one file to official keys and back.

    Attributes:
        layout: the names in the file.
        prefix: the prefix of all keys, such as `backbone.`; empty, or ends in a dot.
        place: the classifier's index if it is in a `Sequential` with a dropout (`fc.1.weight`);
            None if it is not.
    """

    layout: Layout
    prefix: str
    place: str | None = None

    @property
    def _classifier(self) -> str | None:
        if self.place:
            return f"{self.prefix}fc.{self.place}"
        # Beside the backbone: model.head.fc beside model.backbone.layer1.
        own = self.layout.classifier
        return own and f"{self.prefix.removesuffix(self.layout.prefix)}{own}"

    def official(self, key: str) -> str | None:
        """The official name of `key`, or None if the layout has no such key.

        The official layout accepts every key, even one that no network here has.
        """
        module, _, tensor = key.rpartition(".")
        if module == self._classifier:
            return f"fc.{tensor}"
        if not key.startswith(self.prefix):
            return None
        if self.layout is OFFICIAL:
            return key.removeprefix(self.prefix)
        name = _renamed(module.removeprefix(self.prefix), self.layout.officials)
        return name and f"{name}.{tensor}"

    def own(self, official: str) -> str | None:
        """The file's name of an official key, or None if it has none: the inverse of `official`."""
        module, _, tensor = official.rpartition(".")
        if module == "fc" and self._classifier:
            return f"{self._classifier}.{tensor}"
        if self.layout is OFFICIAL:
            return f"{self.prefix}{official}"
        name = _renamed(module, self.layout.modules)
        return name and f"{self.prefix}{name}.{tensor}"

    def is_outside(self, key: str) -> bool:
        """Whether `key` belongs to a larger model around the backbone, which has the prefix."""
        return not key.startswith(self.prefix) and self.official(key) is None


def _renamed(module: str, names: Mapping[str, str]) -> str | None:
    block = _IN_BLOCK.fullmatch(module)
    if block is None:
        return names.get(module)
    stage, number, inner = block.groups()
    renamed = names.get(f"{stage}.#.{inner}")
    return renamed and renamed.replace("#", number)


def _modules(column: int) -> dict[str, str]:
    names = {row[0]: row[column] for row in _STEM}
    for stage in _STAGES:
        for row in _BLOCK:
            own = row[column] and f"{stage[column]}.#.{row[column]}"
            names[f"{stage[0]}.#.{row[0]}"] = own
    return {official: own for official, own in names.items() if own is not None}


OFFICIAL = Layout(
    names=("official", "timm", "encoding"),
    modules=_modules(0),
)
MMPRETRAIN = Layout(
    names=("mmpretrain",),
    modules=_modules(1) | _MMPRETRAIN_FIRST_SHORTCUT,
    classifier="head.fc",
    prefix="backbone.",
    wrapper="state_dict",
    lacks=_OPENMMLAB_LACKS,
    depths=_DEPTHS_TO_269,
)
MMDET = Layout(
    names=("mmdet", "mmseg"),
    modules=_modules(2),
    wrapper="state_dict",
    lacks=_OPENMMLAB_LACKS,
    depths=_DEPTHS_TO_200,
)
DETECTRON2 = Layout(
    names=("detectron2",),
    modules=_modules(3),
    prefix="backbone.bottom_up.",
    wrapper="model",
    lacks=_DETECTRON2_LACKS,
    depths=_DEPTHS_TO_269,
)
LAYOUTS = (OFFICIAL, MMPRETRAIN, MMDET, DETECTRON2)
BY_NAME = {name: layout for layout in LAYOUTS for name in layout.names}


def find_layout(name: str) -> Layout:
    """The layout called `name`.

    Raises:
        InputError: there is none; the message names them.
    """
    check_choice("layout", name, BY_NAME)
    return BY_NAME[name]


def recognize(keys: Collection[str]) -> KeyMapping:
    """The layout and prefix with the most known keys; the official layout if none is known."""
    return networks(keys)[0]


def networks(keys: Collection[str]) -> list[KeyMapping]:
    """The key mapping of each network among `keys`; the one with the most known keys first.

    A file may hold a student and its teacher, or a network and its EMA, each under a prefix. If no
    key is known, the only answer is the official layout.
    """
    counts = _known(keys)
    best: dict[str, KeyMapping] = {}
    # Among equals prefer the first layout, and the project's own prefix.
    for mapping in sorted(
        counts, key=lambda mapping: (-counts[mapping], mapping.prefix != mapping.layout.prefix)
    ):
        best.setdefault(mapping.prefix, mapping)
    first, *others = best.values() or [OFFICIAL.key_mapping]
    found = [first, *(mapping for mapping in others if counts[mapping] >= _NETWORK)]
    return [_with_place(mapping, keys) for mapping in found]


def _with_place(mapping: KeyMapping, keys: Collection[str]) -> KeyMapping:
    """The mapping, with `place` set if a `Sequential` under `fc` has one layer with weights."""
    if mapping.layout is not OFFICIAL:
        return mapping
    around = f"{mapping.prefix}fc."
    places = {key.removeprefix(around).rpartition(".")[0] for key in keys if key.startswith(around)}
    (place, *others) = places or {""}
    return replace(mapping, place=place) if place.isdecimal() and not others else mapping


def is_average(name: str) -> bool:
    """Whether a name or prefix stands for averaged weights, as `model_ema` and `swa_model.` do."""
    return bool(_AVERAGE.search(f"{name}."))


def count_known(keys: Collection[str]) -> int:
    """How many of `keys` belong to a network here, in the layout that knows the most of them."""
    return max(_known(keys).values(), default=0)


def _known(keys: Collection[str]) -> dict[KeyMapping, int]:
    """The number of known keys for each layout and prefix."""
    counts: Counter[tuple[int, str]] = Counter()
    for module, tensors in Counter(key.rpartition(".")[0] for key in keys).items():
        parts = module.split(".", _LONGEST_PREFIX)
        for start in range(len(parts)):
            prefix = "".join(f"{part}." for part in parts[:start])
            name = module[len(prefix) :]
            for index, layout in enumerate(LAYOUTS):
                if name == layout.classifier:
                    own = prefix + layout.prefix
                elif _renamed(name, layout.officials):
                    own = prefix
                else:
                    continue
                counts[index, own] += tensors
    return {
        KeyMapping(layout=LAYOUTS[index], prefix=prefix): counts[index, prefix]
        for index, prefix in sorted(counts, key=lambda place: place[0])
    }


def is_deformable(key: str) -> bool:
    """Whether the key belongs to a deformable convolution (DCN), in any layout."""
    return not _OFFSETS.isdisjoint(key.split("."))


def head_tensors(tensors: Mapping[str, T], head: str, *, auxiliary: bool = False) -> dict[str, T]:
    """The tensors of a segmentation head in a file, by our keys without their prefix.

    Args:
        tensors: by the file's keys, ours or PyTorch-Encoding's; those of other modules are left
            out.
        head: "fpn", "deeplabv3" or "fcn".
        auxiliary: take the auxiliary head, which is always an FCN, instead.
    """
    prefix, head = (_AUXILIARY_PREFIX, "fcn") if auxiliary else (_HEAD_PREFIX, head)
    ours = {f"{theirs}.": f"{own}." for own, theirs in _HEADS.get(head, ())}
    found = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            start = next((start for start in ours if name.startswith(start)), "")
            found[ours.get(start, "") + name.removeprefix(start)] = tensor
    return found
