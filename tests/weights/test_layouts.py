"""Key mappings: names from lists written by hand, round trips, and keys that nearly fit."""

import dataclasses
import subprocess
import sys
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitattn.architectures import ARCHITECTURES, Architecture
from splitattn.errors import InputError, WeightsError
from splitattn.weights.layouts import (
    DETECTRON2,
    LAYOUTS,
    MMDET,
    MMPRETRAIN,
    OFFICIAL,
    KeyMapping,
    Layout,
    find_layout,
    is_deformable,
    recognize,
)
from splitattn.weights.matching import check_match
from tests.nn.networks import small
from tests.weights.networks import Shapes, shapes_of

FOREIGN = [layout for layout in LAYOUTS if layout is not OFFICIAL]
# Prefixes under which trainers and larger models put a network.
PREFIXES = ("", "backbone.", "bottom_up.", "backbone.bottom_up.", "model.", "backbone.body.")
KEY_MAPPINGS = [
    KeyMapping(layout=layout, prefix=prefix)
    for layout in LAYOUTS
    for prefix in dict.fromkeys((layout.prefix, *PREFIXES))
]
HEAD = {"fc.weight", "fc.bias"}

# Names of every kind of tensor in the projects' code: official, mmpretrain, mmdet, detectron2.
BY_HAND = """
conv1.0.weight            backbone.stem.0.conv.weight           stem.0.weight             backbone.bottom_up.stem.conv1_1.weight
conv1.1.weight            backbone.stem.0.bn.weight             stem.1.weight             backbone.bottom_up.stem.conv1_1.norm.weight
conv1.1.num_batches_tracked backbone.stem.0.bn.num_batches_tracked stem.1.num_batches_tracked backbone.bottom_up.stem.conv1_1.norm.num_batches_tracked
conv1.3.weight            backbone.stem.1.conv.weight           stem.3.weight             backbone.bottom_up.stem.conv1_2.weight
conv1.4.bias              backbone.stem.1.bn.bias               stem.4.bias               backbone.bottom_up.stem.conv1_2.norm.bias
conv1.6.weight            backbone.stem.2.conv.weight           stem.6.weight             backbone.bottom_up.stem.conv1_3.weight
bn1.running_mean          backbone.stem.2.bn.running_mean       stem.7.running_mean       backbone.bottom_up.stem.conv1_3.norm.running_mean
layer1.0.conv1.weight     backbone.layer1.0.conv1.weight        layer1.0.conv1.weight     backbone.bottom_up.res2.0.conv1.weight
layer1.0.bn1.running_var  backbone.layer1.0.bn1.running_var     layer1.0.bn1.running_var  backbone.bottom_up.res2.0.conv1.norm.running_var
layer2.1.conv2.conv.weight backbone.layer2.1.conv2.conv.weight  layer2.1.conv2.conv.weight backbone.bottom_up.res3.1.conv2.conv.weight
layer2.1.conv2.bn0.weight backbone.layer2.1.conv2.bn0.weight    layer2.1.conv2.bn0.weight backbone.bottom_up.res3.1.conv2.bn0.weight
layer3.22.conv2.fc1.bias  backbone.layer3.22.conv2.fc1.bias     layer3.22.conv2.fc1.bias  backbone.bottom_up.res4.22.conv2.fc1.bias
layer3.22.conv2.bn1.bias  backbone.layer3.22.conv2.bn1.bias     layer3.22.conv2.bn1.bias  backbone.bottom_up.res4.22.conv2.bn1.bias
layer4.2.conv2.fc2.weight backbone.layer4.2.conv2.fc2.weight    layer4.2.conv2.fc2.weight backbone.bottom_up.res5.2.conv2.fc2.weight
layer4.2.conv3.weight     backbone.layer4.2.conv3.weight        layer4.2.conv3.weight     backbone.bottom_up.res5.2.conv3.weight
layer4.2.bn3.weight       backbone.layer4.2.bn3.weight          layer4.2.bn3.weight       backbone.bottom_up.res5.2.conv3.norm.weight
layer1.0.downsample.1.weight backbone.layer1.0.downsample.0.weight layer1.0.downsample.1.weight backbone.bottom_up.res2.0.shortcut.weight
layer1.0.downsample.2.bias backbone.layer1.0.downsample.1.bias  layer1.0.downsample.2.bias backbone.bottom_up.res2.0.shortcut.norm.bias
layer2.0.downsample.1.weight backbone.layer2.0.downsample.1.weight layer2.0.downsample.1.weight backbone.bottom_up.res3.0.shortcut.weight
layer4.0.downsample.2.bias backbone.layer4.0.downsample.2.bias  layer4.0.downsample.2.bias backbone.bottom_up.res5.0.shortcut.norm.bias
fc.weight                 head.fc.weight                        -                         backbone.bottom_up.linear.weight
fc.bias                   head.fc.bias                          -                         backbone.bottom_up.linear.bias
"""  # noqa: E501

# Only the official layout can hold the fast variants.
FAST = {name for name in ARCHITECTURES if "_fast_" in name}
HELD = {layout.names[0]: set(ARCHITECTURES) - FAST for layout in FOREIGN} | {
    "official": set(ARCHITECTURES)
}


def own_shapes(model: str, key_mapping: KeyMapping) -> Shapes:
    """The shapes of a model under the keys of a layout."""
    return {own: shape for key, shape in shapes_of(model).items() if (own := key_mapping.own(key))}


def read_as_official(found: Shapes) -> tuple[Shapes, list[str], KeyMapping]:
    """Shapes by official key, keys that have none, and the mapping, as `read_checkpoint` does."""
    key_mapping = recognize(found)
    officials = {key: key_mapping.official(key) for key in found if not key_mapping.is_outside(key)}
    known = {name: found[key] for key, name in officials.items() if name is not None}
    return known, [key for key, name in officials.items() if name is None], key_mapping


def refusal(found: Shapes, model: str) -> str:
    known, unexpected, key_mapping = read_as_official(found)
    with pytest.raises(WeightsError) as error:
        check_match(
            known,
            ARCHITECTURES[model],
            model=model,
            origin="file.pth",
            key_mapping=key_mapping,
            unexpected=unexpected,
        )
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("row", BY_HAND.strip().splitlines(), ids=lambda row: row.split()[0])
def test_names_are_those_that_the_projects_code_gives(row: str) -> None:
    official, *others = row.split()
    for layout, own in zip((MMPRETRAIN, MMDET, DETECTRON2), others, strict=True):
        if own == "-":
            assert layout.key_mapping.own(official) is None
        else:
            assert layout.key_mapping.own(official) == own
            assert layout.key_mapping.official(own) == official
    assert OFFICIAL.key_mapping.own(official) == OFFICIAL.key_mapping.official(official) == official


def test_the_list_written_by_hand_has_every_kind_of_module() -> None:
    def kind(key: str) -> str:
        module = key.rpartition(".")[0]
        return module.split(".", 2)[2] if module.startswith("layer") else module

    listed = {kind(row.split()[0]) for row in BY_HAND.strip().splitlines()}
    assert listed == {kind(key) for key in shapes_of("resnest101")}


def test_the_norm_of_the_stem_and_those_of_blocks_have_different_names() -> None:
    """In the official layout, three different modules are called `bn1`."""
    for layout in FOREIGN:
        names = {
            layout.key_mapping.own(f"{module}.weight")
            for module in ("bn1", "layer1.0.bn1", "layer1.0.conv2.bn1")
        }
        assert len(names) == 3
        assert all(
            name and "stem" not in name for name in names - {layout.key_mapping.own("bn1.weight")}
        )


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.names[0])
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_a_layout_holds_a_variant_and_gives_it_back_or_says_why_not(
    model: str, layout: Layout
) -> None:
    refused = layout.refusal(ARCHITECTURES[model])
    assert (refused is None) == (model in HELD[layout.names[0]])
    if refused:
        assert "avd_first" in refused
        return
    official = {
        key: shape
        for key, shape in shapes_of(model).items()
        if layout is not MMDET or key not in HEAD
    }
    for prefix in dict.fromkeys((layout.prefix, *PREFIXES)):
        key_mapping = KeyMapping(layout=layout, prefix=prefix)
        own = own_shapes(model, key_mapping)
        assert len(own) == len(official)
        known, unexpected, found = read_as_official(own)
        assert found == key_mapping
        assert known == official
        assert not unexpected


@pytest.mark.parametrize(
    ("fields", "layouts", "reason"),
    [
        ({"radix": 1}, {"detectron2"}, "without attention"),
        ({"radix": 0}, {"mmpretrain", "mmdet"}, "radix 0"),
        ({"avd_first": True}, {"mmpretrain", "mmdet", "detectron2"}, "avd_first"),
        ({"deep_stem": False}, {"mmpretrain", "mmdet", "detectron2"}, "deep_stem"),
        ({"avg_down": False}, {"mmpretrain", "mmdet", "detectron2"}, "avg_down"),
        ({"radix": 4, "cardinality": 2}, set(), ""),
    ],
)
def test_networks_that_a_layout_cannot_hold_are_refused_with_the_reason(
    fields: dict[str, int], layouts: set[str], reason: str
) -> None:
    architecture: Architecture = dataclasses.replace(small(), **fields)
    refused = {layout.names[0]: layout.refusal(architecture) for layout in LAYOUTS}
    assert {name for name, why in refused.items() if why} == layouts
    assert all(reason in why for why in refused.values() if why)


def test_plain_blocks_have_a_name_in_detectron2() -> None:
    key_mapping = DETECTRON2.key_mapping
    assert key_mapping.own("layer3.1.conv2.weight") == "backbone.bottom_up.res4.1.conv2.weight"
    assert key_mapping.own("layer3.1.bn2.bias") == "backbone.bottom_up.res4.1.conv2.norm.bias"
    assert MMDET.key_mapping.own("layer3.1.bn2.bias") is None


PARTS = st.sampled_from(
    sorted(
        {part for row in BY_HAND.split() for part in row.split(".")}
        | {"", "#", "00", "bottom_up", "Layer1", "layer5", "res6", "module", "norm", "conv2", "bn2"}
    )
)
KEYS = st.one_of(
    st.lists(PARTS, max_size=8).map(".".join),
    st.text(max_size=30),
    st.sampled_from([key for row in BY_HAND.splitlines() for key in row.split()]),
)


@pytest.mark.parametrize("key_mapping", KEY_MAPPINGS)
@given(key=KEYS)
@settings(max_examples=200, deadline=None, database=None)
def test_every_name_that_has_another_has_it_both_ways(key_mapping: KeyMapping, key: str) -> None:
    if (official := key_mapping.official(key)) is not None:
        assert key_mapping.own(official) == key
    if key_mapping.layout is not OFFICIAL and (own := key_mapping.own(key)) is not None:
        assert key_mapping.official(own) == key


@given(data=st.data())
@settings(max_examples=60, deadline=None, database=None)
def test_a_part_of_a_file_is_recognized_as_long_as_it_has_some_of_the_stem(
    data: st.DataObject,
) -> None:
    key_mapping = data.draw(st.sampled_from(KEY_MAPPINGS))
    model = data.draw(st.sampled_from(["resnest14", "resnest26"]))
    official = {key: own for key in shapes_of(model) if (own := key_mapping.own(key))}
    stem = [own for key, own in official.items() if key.startswith(("conv1.", "bn1."))]
    shortcut = [own for key, own in official.items() if key.startswith("layer1.0.downsample.1")]
    kept = data.draw(st.lists(st.sampled_from(sorted(official.values())), max_size=40))
    # Without a shortcut, few names distinguish mmdet and mmpretrain without a prefix.
    assert recognize({*kept, *stem, *shortcut}) == key_mapping


NEAR = [pytest.param(s, id=f"{s.layout.names[0]}-{s.prefix}") for s in KEY_MAPPINGS]


@pytest.mark.parametrize("key_mapping", NEAR)
def test_a_missing_key_is_reported_by_its_name_in_the_file(key_mapping: KeyMapping) -> None:
    whole = own_shapes("resnest14", key_mapping)
    for key in whole:
        if key.endswith("num_batches_tracked"):
            continue
        message = refusal({k: v for k, v in whole.items() if k != key}, "resnest14")
        assert f"1 of {len(whole)} keys are missing ({key})" in message
        assert "unexpected" not in message


@pytest.mark.parametrize("key_mapping", NEAR)
def test_a_renamed_key_is_reported_as_missing_and_unexpected(key_mapping: KeyMapping) -> None:
    whole = own_shapes("resnest14", key_mapping)
    for key in list(whole)[::7]:
        found = {k + "x" if k == key else k: v for k, v in whole.items()}
        message = refusal(found, "resnest14")
        assert f"1 are unexpected ({key}x)" in message
        assert f"({key})" in message or key.endswith("num_batches_tracked")


@pytest.mark.parametrize("layout", FOREIGN, ids=lambda layout: layout.names[0])
def test_an_official_name_in_another_projects_file_is_an_unexpected_key(layout: Layout) -> None:
    """Scripts that rename only most of the keys leave such names."""
    whole = own_shapes("resnest14", layout.key_mapping)
    own = layout.key_mapping.own("bn1.weight")
    left = f"{layout.prefix}bn1.weight"
    message = refusal({left if k == own else k: v for k, v in whole.items()}, "resnest14")
    assert f"missing ({own}), 1 are unexpected ({left})" in message


# Keys of detectors, segmenters and classifiers outside the backbone.
OUTSIDE = (
    *("neck.lateral_convs.0.conv.weight", "rpn_head.rpn_conv.weight", "decode_head.conv_seg.bias"),
    *("backbone.fpn_lateral2.weight", "proposal_generator.rpn_head.conv.weight", "pixel_mean"),
    *("data_preprocessor.mean", "fpn_output2.weight", "linear.weight", "bn1.weight"),
)


@pytest.mark.parametrize("key_mapping", KEY_MAPPINGS)
def test_only_a_prefix_tells_a_backbone_from_the_model_around_it(key_mapping: KeyMapping) -> None:
    outside = {key for key in OUTSIDE if key_mapping.is_outside(key)}
    assert outside == {
        key for key in OUTSIDE if key_mapping.prefix and not key.startswith(key_mapping.prefix)
    }
    whole = own_shapes("resnest14", key_mapping)
    assert not any(map(key_mapping.is_outside, whole))
    assert recognize({*whole, *outside}) == key_mapping
    # An unknown key within the backbone is not outside it.
    assert not key_mapping.is_outside(f"{key_mapping.prefix}layer1.0.conv9.weight")


@pytest.mark.parametrize("key_mapping", NEAR)
def test_a_changed_shape_is_reported_with_the_expected_one(key_mapping: KeyMapping) -> None:
    whole = own_shapes("resnest14", key_mapping)
    for key, shape in list(whole.items())[::7]:
        found = (*shape, 2)
        message = refusal(whole | {key: found}, "resnest14")
        assert f"{key} has shape {found} instead of {shape}" in message
        assert "missing" not in message


@pytest.mark.parametrize("layout", FOREIGN, ids=lambda layout: layout.names[0])
def test_a_file_of_another_model_is_refused_with_its_name(layout: Layout) -> None:
    message = refusal(own_shapes("resnest50", layout.key_mapping), "resnest26")
    # resnest50_fast_2s1x64d has the same shapes, but this layout cannot hold it.
    assert message.endswith("it is a checkpoint of resnest50: name that model (--model)")
    some = layout.key_mapping.own("layer1.2.conv1.weight")
    assert f"unexpected ({some}, " in message


@pytest.mark.parametrize(
    ("layout", "offset"),
    [
        (MMDET, "layer2.0.conv2.conv.conv_offset.weight"),
        (MMPRETRAIN, "backbone.layer2.0.conv2.conv.conv_offset.bias"),
        (DETECTRON2, "backbone.bottom_up.res3.0.conv2_offset.weight"),
    ],
)
def test_networks_with_deformable_convolutions_are_refused(layout: Layout, offset: str) -> None:
    assert is_deformable(offset)
    found = own_shapes("resnest26", layout.key_mapping) | {offset: (27,)}
    message = refusal(found, "resnest26")
    assert f"unexpected ({offset})" in message
    assert "deformable convolutions (DCN), which no model here has" in message


def test_counters_of_batches_may_be_missing() -> None:
    """detectron2's networks have frozen batch norms, which have no counters."""
    for layout in LAYOUTS:
        found = {
            key: shape
            for key, shape in own_shapes("resnest14", layout.key_mapping).items()
            if not key.endswith("num_batches_tracked")
        }
        known, unexpected, key_mapping = read_as_official(found)
        assert key_mapping == layout.key_mapping
        check_match(
            known,
            ARCHITECTURES["resnest14"],
            model="resnest14",
            origin="",
            unexpected=unexpected,
        )


def test_unknown_keys_are_taken_for_the_official_layout() -> None:
    assert recognize([]) == recognize(["embeddings.weight"]) == OFFICIAL.key_mapping
    plain = dataclasses.replace(small(), deep_stem=False, avg_down=False)
    assert OFFICIAL.refusal(plain) is None
    # A plain ResNet has mmpretrain's keys only in its shortcuts.
    resnet = ["conv1.weight", "bn1.weight", "layer1.0.downsample.0.weight", "layer1.0.bn2.weight"]
    assert recognize(resnet) == OFFICIAL.key_mapping


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("official", OFFICIAL),
        ("timm", OFFICIAL),
        ("encoding", OFFICIAL),
        ("mmpretrain", MMPRETRAIN),
        ("mmdet", MMDET),
        ("mmseg", MMDET),
        ("detectron2", DETECTRON2),
    ],
)
def test_a_layout_has_the_names_of_its_projects(name: str, layout: Layout) -> None:
    assert find_layout(name) is layout
    assert name in str(layout)


def test_no_name_is_of_two_layouts() -> None:
    names = list(chain.from_iterable(layout.names for layout in LAYOUTS))
    assert len(names) == len(set(names))


def test_an_unknown_layout_gets_the_list_and_the_nearest() -> None:
    with pytest.raises(InputError) as error:
        find_layout("mmdett")
    message = str(error.value)
    assert message.startswith("layout must be one of official, timm, encoding, mmpretrain, mmdet")
    assert message.endswith("got 'mmdett'; did you mean 'mmdet'?")


def test_layouts_are_known_without_torch() -> None:
    script = "import sys, splitattn.weights.layouts; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
