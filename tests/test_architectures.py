"""The table of architectures has the published numbers.

Sources: the ResNeSt repository's README.md and ablation.md, timm's result tables. Published
"GFLOPs" are multiply-accumulates.
"""

import dataclasses
from typing import NamedTuple

import pytest
import readme_tables
import torch

from splitattn.architectures import (
    ARCHITECTURES,
    TIMM_NAMES,
    Architecture,
    architecture,
    split_name,
)
from splitattn.errors import InputError
from splitattn.nn.resnest import ResNeSt


class Published(NamedTuple):
    parameters: int
    state_entries: int
    size: int
    """Test resolution in pixels, at which the two counts below were taken."""
    gmacs: float
    """As published: convolutions, linear layers, batch norms and pooling."""
    convolution_gmacs: float
    """Convolutions and linear layers alone, three decimals."""


PUBLISHED = {
    "resnest14": Published(10_611_688, 152, 224, 2.76, 2.749),
    "resnest26": Published(17_069_448, 260, 224, 3.64, 3.623),
    "resnest50": Published(27_483_240, 476, 224, 5.40, 5.371),
    "resnest101": Published(48_275_016, 935, 256, 13.38, 13.321),
    "resnest200": Published(70_201_544, 1826, 320, 35.69, 35.520),
    "resnest269": Published(110_929_480, 2447, 416, 77.69, 77.349),
    # Nothing is published for radix 0: this is fvcore's count, with batch norms and pooling.
    "resnest50_fast_0s1x64d": Published(25_576_264, 332, 224, 4.353, 4.329),
    "resnest50_fast_1s1x64d": Published(26_217_896, 476, 224, 4.34, 4.329),
    "resnest50_fast_2s1x64d": Published(27_483_240, 476, 224, 4.34, 4.331),
    "resnest50_fast_4s1x64d": Published(31_912_712, 476, 224, 4.35, 4.335),
    "resnest50_fast_1s2x40d": Published(25_946_680, 476, 224, 4.38, 4.365),
    "resnest50_fast_2s2x40d": Published(26_943_792, 476, 224, 4.38, 4.366),
    "resnest50_fast_4s2x40d": Published(30_417_592, 476, 224, 4.41, 4.369),
    "resnest50_fast_1s4x24d": Published(25_677_000, 476, 224, 4.42, 4.400),
}

PLAIN_RESNET50 = Architecture(
    layers=(3, 4, 6, 3), radix=0, deep_stem=False, avg_down=False, avd=False
)


def without_storage(row: Architecture) -> ResNeSt:
    with torch.device("meta"):
        return ResNeSt(row)


def parameter_count(row: Architecture) -> int:
    """The number of parameters of the network, which is built."""
    return sum(parameter.numel() for parameter in without_storage(row).parameters())


def test_every_published_row_is_checked_below() -> None:
    """Nothing is published for depth 152 and for the embedded model, which is the project's own."""
    assert set(ARCHITECTURES) - set(PUBLISHED) == {"resnest152", "resnest26_tiny"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_is_the_published_one(name: str) -> None:
    model = without_storage(ARCHITECTURES[name])
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name].parameters
    assert len(model.state_dict()) == PUBLISHED[name].state_entries


OWN = {
    "plain": PLAIN_RESNET50,
    "SE-like": dataclasses.replace(PLAIN_RESNET50, radix=1, cardinality=2),
    "grouped": dataclasses.replace(PLAIN_RESNET50, cardinality=32),
    "no first shortcut": Architecture(layers=(2, 1, 1, 1), planes=16, stem_width=32),
}


@pytest.mark.parametrize(
    "row", [*ARCHITECTURES.values(), *OWN.values()], ids=[*ARCHITECTURES, *OWN]
)
def test_shapes_and_parameters_are_those_of_the_network(row: Architecture) -> None:
    network = without_storage(row)
    assert_same_shapes(row.shapes(), network)
    assert row.parameters() == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("radix", [0, 1, 2, 4])
@pytest.mark.parametrize("cardinality", [1, 2, 4])
@pytest.mark.parametrize("avd_first", [False, True])
@pytest.mark.parametrize("avg_down", [False, True])
@pytest.mark.parametrize("deep_stem", [False, True])
def test_shapes_are_those_of_the_network_for_every_combination_of_fields(
    radix: int, cardinality: int, avd_first: bool, avg_down: bool, deep_stem: bool
) -> None:
    row = Architecture(
        layers=(1, 2, 1, 1),
        radix=radix,
        cardinality=cardinality,
        bottleneck_width=48,
        deep_stem=deep_stem,
        stem_width=8,
        avg_down=avg_down,
        avd_first=avd_first,
        planes=16,
    )
    for num_classes, in_chans in ((7, 5), (0, 1)):
        with torch.device("meta"):
            network = ResNeSt(row, num_classes=num_classes, in_chans=in_chans)
        assert_same_shapes(row.shapes(num_classes, in_chans), network)


def assert_same_shapes(shapes: dict[str, tuple[int, ...]], network: ResNeSt) -> None:
    """Check that keys, their order and shapes are those of the network."""
    built = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert list(shapes.items()) == list(built.items())


def test_depth_152_has_its_blocks() -> None:
    model = without_storage(ARCHITECTURES["resnest152"])
    assert [len(stage) for stage in model.stages()] == [3, 8, 36, 3]
    assert model.conv1[0].out_channels == 64  # the wide stem of depth 101 and more


@pytest.mark.parametrize("name", PUBLISHED)
def test_arithmetic_is_the_published_one(name: str) -> None:
    published = PUBLISHED[name]
    _, macs = readme_tables.cost(name, published.size, num_classes=1000)
    assert macs / 1e9 == pytest.approx(published.convolution_gmacs, abs=0.0006)
    assert macs / 1e9 == pytest.approx(published.gmacs, rel=0.01)


def test_with_every_idea_off_it_has_the_size_of_resnet50() -> None:
    assert parameter_count(PLAIN_RESNET50) == 25_557_032


def test_with_deep_stem_and_average_shortcut_it_has_the_size_of_resnet50d() -> None:
    row = dataclasses.replace(PLAIN_RESNET50, deep_stem=True, avg_down=True)
    assert parameter_count(row) == 25_576_264


def test_pooling_costs_no_parameters() -> None:
    later = dataclasses.replace(ARCHITECTURES["resnest50_fast_2s1x64d"], avd_first=False)
    assert later == ARCHITECTURES["resnest50"]
    assert parameter_count(later) == parameter_count(ARCHITECTURES["resnest50_fast_2s1x64d"])


@pytest.mark.parametrize(
    ("planes", "channels"), [(64, (256, 512, 1024, 2048)), (16, (64, 128, 256, 512))]
)
def test_declared_channels_are_those_of_the_network(planes: int, channels: tuple[int, ...]) -> None:
    row = Architecture(layers=(1, 1, 1, 1), planes=planes, stem_width=24)
    model = without_storage(row)
    assert row.stage_channels == channels
    assert tuple(stage[-1].conv3.out_channels for stage in model.stages()) == channels
    assert row.stem_channels == model.bn1.num_features == 48
    plain = dataclasses.replace(row, deep_stem=False)
    assert plain.stem_channels == without_storage(plain).bn1.num_features == planes


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"layers": (3, 4, 6)}, "layers must be four positive block counts, got (3, 4, 6)"),
        ({"layers": (3, 4, 0, 3)}, "layers must be four positive block counts"),
        ({"radix": -1}, "radix must be 0 (plain convolution) or more, got -1"),
        ({"cardinality": 0}, "cardinality must be at least 1, got 0"),
        ({"bottleneck_width": 0}, "bottleneck_width must be at least 1, got 0"),
        ({"stem_width": 0}, "stem_width must be at least 1, got 0"),
        ({"planes": 0}, "planes must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1, got -0.1"),
    ],
)
def test_a_field_out_of_range_is_reported_in_one_line(fields: dict[str, object], rule: str) -> None:
    with pytest.raises(InputError) as caught:
        dataclasses.replace(ARCHITECTURES["resnest50"], **fields)
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_cannot_be_changed_by_accident() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ARCHITECTURES["resnest50"].radix = 1


def test_a_name_finds_its_row() -> None:
    assert architecture("resnest101") is ARCHITECTURES["resnest101"]


@pytest.mark.parametrize(
    ("typed", "model", "tag"),
    [
        ("resnest50", "resnest50", None),
        ("resnest50.in1k", "resnest50", "in1k"),
        ("resnest50:in1k", "resnest50", "in1k"),
        ("resnest50:", "resnest50", ""),
        ("resnest50d", "resnest50", None),
        ("resnest50d.in1k", "resnest50", "in1k"),
        ("timm/resnest50d", "resnest50", None),
        ("timm/resnest50d.in1k", "resnest50", "in1k"),
        ("timm/resnest14d.gluon_in1k", "resnest14", "gluon_in1k"),
        ("resnest26d", "resnest26", None),
        ("resnest101e", "resnest101", None),
        ("resnest200e.in1k", "resnest200", "in1k"),
        ("timm/resnest269e.in1k", "resnest269", "in1k"),
        ("resnest50d_4s2x40d.in1k", "resnest50_fast_4s2x40d", "in1k"),
        ("resnest50d_1s4x24d.in1k", "resnest50_fast_1s4x24d", "in1k"),
        ("resnest50d.a.b", "resnest50", "a.b"),
        ("resnest50d.", "resnest50", ""),
    ],
)
def test_names_of_other_projects_mean_the_same_rows(
    typed: str, model: str, tag: str | None
) -> None:
    assert split_name(typed) == (model, tag)
    assert architecture(typed) is ARCHITECTURES[model]


def test_no_name_means_two_rows() -> None:
    assert not set(TIMM_NAMES.values()) & set(ARCHITECTURES)
    assert len(set(TIMM_NAMES.values())) == len(TIMM_NAMES)
    assert set(TIMM_NAMES) <= set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("resnset50", "resnest50"),
        ("resnest_269", "resnest269"),
        ("resnest50_fast_2s2x40", "resnest50_fast_2s2x40d"),
        ("resnest101_e", "resnest101e"),
        ("timm/resnset26d.gluon_in1k", "resnest26d"),
        ("timm/resnest50d_4s2x40", "resnest50d_4s2x40d"),
        ("hub/resnest50", "resnest50"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        architecture(typed)
    assert str(caught.value) == f"no model is called {typed!r}; did you mean {meant!r}?"


def test_a_name_like_no_other_says_how_to_list_them() -> None:
    with pytest.raises(InputError, match=r"^no model is called 'x'; .*`splitattn models`"):
        architecture("x")
