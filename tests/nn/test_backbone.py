"""The contract that the backbones of all variants keep."""

import dataclasses
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from splitattn.architectures import ARCHITECTURES, TIMM_NAMES, Architecture
from splitattn.errors import InputError
from splitattn.nn import batch_norm
from splitattn.nn.backbone import Backbone
from splitattn.nn.batch_norm import synchronize
from splitattn.nn.resnest import Bottleneck, ResNeSt

from .networks import images, randomize_norms, small, wake_residuals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A network to make a backbone of."""

    architecture: Architecture
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    maps: int = 5

    def network(self) -> ResNeSt:
        model = ResNeSt(self.architecture, **{"num_classes": 0, **self.settings})
        wake_residuals(model)
        return model

    def backbone(self, out_indices: Sequence[int] | None = None, **frozen: Any) -> Backbone:
        indices = range(self.maps) if out_indices is None else out_indices
        return Backbone(self.network(), out_indices=indices, **frozen)


def thin(name: str) -> Architecture:
    """A small form of a variant: all its kinds of blocks, half as wide."""
    row = ARCHITECTURES[name]
    layers = tuple(min(depth, most) for depth, most in zip(row.layers, (1, 1, 1, 2), strict=True))
    return dataclasses.replace(
        row, layers=layers, planes=row.planes // 2, stem_width=row.stem_width // 2
    )


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


class MapSuite:
    """Tests of maps and of training; subclasses define the cases."""

    def test_maps_have_the_declared_channels_and_strides(self, case: Case) -> None:
        backbone = case.backbone().eval()
        with torch.inference_mode():
            maps = backbone(images(2, 65, 97))
        row, output_stride = case.architecture, case.settings.get("output_stride", 32)
        assert backbone.channels == (row.stem_channels, *row.stage_channels)
        assert backbone.strides == (2, 4, 8, min(16, output_stride), output_stride)
        assert [tuple(x.shape) for x in maps] == [
            (2, channels, -(-65 // stride), -(-97 // stride))
            for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
        ]

    def test_the_last_map_is_the_classifiers_and_so_are_the_keys(self, case: Case) -> None:
        network = case.network().eval()
        backbone = Backbone(network).eval()
        assert list(backbone.state_dict()) == list(network.state_dict())
        x = images(2, 65, 97)
        with torch.inference_mode():
            assert torch.equal(backbone(x)[-1], network.forward_features(x))

    def test_gradients_reach_every_parameter(self, case: Case) -> None:
        backbone = case.backbone((4,)).train()
        (last,) = backbone(images(4, 48, 48))
        last.square().mean().backward()
        # A bias that a batch norm follows has no effect: its gradient is rounding around zero.
        silent = {
            name
            for name, parameter in backbone.named_parameters()
            if not name.endswith("fc1.bias")
            and (parameter.grad is None or parameter.grad.abs().max() < 1e-8)
        }
        assert silent == set()

    def test_every_map_keeps_channels_last(self, case: Case) -> None:
        backbone = case.backbone().to(memory_format=torch.channels_last).train()
        x = images(2, 64, 96).to(memory_format=torch.channels_last)
        assert all(is_channels_last(x) for x in backbone(x))
        assert all(is_channels_last(x) for x in backbone.eval()(x))

    def test_frozen_layers_do_not_change(self, case: Case) -> None:
        backbone = case.backbone(frozen_stages=2, frozen_bn=True).train()
        before = deepcopy(backbone.state_dict())
        parameters = [p for p in backbone.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.1, weight_decay=0.1)
        sum(x.square().mean() for x in backbone(images(2, 48, 48))).backward()
        optimizer.step()
        after = backbone.state_dict()
        moved = {key for key, value in before.items() if not torch.equal(after[key], value)}
        norms = {name for name, module in backbone.named_modules() if is_norm(module)}
        assert moved == {
            key
            for key in before
            if key.startswith(("layer2.", "layer3.", "layer4."))
            and key.rpartition(".")[0] not in norms
        }


class GraphSuite:
    """Tests of compilation and export; subclasses define the cases."""

    def test_compiles_to_one_graph(self, case: Case) -> None:
        torch.compiler.reset()
        backbone = case.backbone().eval()
        compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
        x = images(2, 33, 33)
        with torch.inference_mode():
            torch.testing.assert_close(compiled(x), backbone(x), atol=1e-5, rtol=1e-5)

    def test_exports_with_a_dynamic_batch(self, case: Case) -> None:
        backbone = case.backbone().eval()
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(backbone, (images(2),), dynamic_shapes=({0: batch},))
        with torch.inference_mode():
            for size in (1, 3):
                x = images(size)
                expected = backbone(x)
                torch.testing.assert_close(program.module()(x), expected, atol=1e-5, rtol=1e-5)


class TestEveryVariant(MapSuite):
    @pytest.fixture(params=ARCHITECTURES)
    def case(self, request: pytest.FixtureRequest) -> Case:
        return Case(architecture=thin(request.param))


class TestEveryKindOfBlock(GraphSuite):
    @pytest.fixture(
        params=[
            pytest.param("resnest50", marks=pytest.mark.slow),
            pytest.param("resnest50_fast_4s1x64d", marks=pytest.mark.slow),
            *(f"resnest50_fast_{kind}" for kind in ("0s1x64d", "2s2x40d", "1s4x24d")),
        ],
    )
    def case(self, request: pytest.FixtureRequest) -> Case:
        # Two stages have all kinds: the first block, blocks that reduce, pooled or not, and others.
        row = dataclasses.replace(thin(request.param), layers=(1, 2, 1, 1))
        return Case(architecture=row, maps=3)


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestEveryWholeVariant(MapSuite, GraphSuite):
    @pytest.fixture(params=ARCHITECTURES)
    def case(self, request: pytest.FixtureRequest) -> Case:
        return Case(architecture=ARCHITECTURES[request.param])


class TestDilated(MapSuite, GraphSuite):
    @pytest.fixture(
        params=[
            {"output_stride": 8, "dilation": "official"},
            {"output_stride": 16, "dilation": "timm"},
        ],
        ids=str,
    )
    def case(self, request: pytest.FixtureRequest) -> Case:
        return Case(architecture=small(layers=(1, 1, 1, 2)), settings=request.param)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_networks_have_the_published_channels(name: str) -> None:
    with torch.device("meta"):
        backbone = Backbone(ResNeSt(ARCHITECTURES[name]))
        maps = backbone.eval()(torch.empty(1, 3, 64, 64))
    assert backbone.strides == (4, 8, 16, 32)
    if name != "resnest26_tiny":
        assert backbone.channels == (256, 512, 1024, 2048)
    assert tuple(x.shape[1] for x in maps) == backbone.channels
    assert not [key for key in backbone.state_dict() if key.startswith("fc.")]


@pytest.mark.parametrize("output_stride", [16, 32])
def test_equals_timms_features_only(output_stride: int) -> None:
    row = ARCHITECTURES["resnest14"]
    backbone = Backbone(
        ResNeSt(row, output_stride=output_stride, dilation="timm"), out_indices=range(5)
    )
    randomize_norms(backbone)
    theirs = timm.create_model(
        TIMM_NAMES["resnest14"], pretrained=False, features_only=True, output_stride=output_stride
    )
    assert list(theirs.state_dict()) == list(backbone.state_dict())
    theirs.load_state_dict(backbone.state_dict())
    x = images(2, 65, 97)
    with torch.inference_mode():
        ours, expected = backbone.eval()(x), theirs.eval()(x)
    assert isinstance(ours, list)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    info = backbone.feature_info
    assert info.channels() == theirs.feature_info.channels()
    assert info.reduction() == theirs.feature_info.reduction()
    # Ours is the ReLU, which timm calls act1.
    assert info.module_name() == ["relu", *theirs.feature_info.module_name()[1:]]
    assert info.out_indices == theirs.feature_info.out_indices


@pytest.mark.parametrize("idx", [None, 3, (0, 4)])
def test_feature_info_answers_as_timms(idx: int | tuple[int, ...] | None) -> None:
    """`feature_info` also describes maps that are not returned."""
    ours = Case(architecture=ARCHITECTURES["resnest14"]).backbone((1, 2)).feature_info
    model = timm.create_model(
        "resnest14d", pretrained=False, features_only=True, out_indices=(1, 2)
    )
    theirs = model.feature_info
    keys = ["num_chs", "reduction"]
    assert ours.channels(idx) == theirs.channels(idx)
    assert ours.reduction(idx) == theirs.reduction(idx)
    assert ours.get_dicts(keys, idx) == theirs.get_dicts(keys, idx)
    assert len(ours) == len(theirs)
    for index in range(len(theirs)):
        # Ours is the ReLU, which timm calls act1.
        own = {} if index else {"module": "relu"}
        assert ours[index] == ours.get_dicts(idx=index) == theirs[index] | own


def test_maps_come_in_the_order_that_was_asked_for() -> None:
    network = Case(architecture=small()).network().eval()
    x = images()
    with torch.inference_mode():
        every = Backbone(network, out_indices=range(5))(x)
        backbone = Backbone(network, out_indices=(-1, 0, 2))
        maps = backbone(x)
    assert backbone.out_indices == (4, 0, 2)
    assert backbone.strides == (32, 2, 8)
    assert all(torch.equal(x, every[i]) for x, i in zip(maps, (4, 0, 2), strict=True))
    assert backbone.feature_info.module_name() == ["layer4", "relu", "layer2"]


@pytest.mark.parametrize("last", range(5))
def test_stages_after_the_last_map_are_left_out(last: int) -> None:
    backbone = Case(architecture=small()).backbone((last,))
    stages = [f"layer{i}" for i in range(1, last + 1)]
    assert [name for name, _ in backbone.named_children()] == [
        *("conv1", "bn1", "relu", "maxpool"),
        *stages,
    ]


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d)


@pytest.mark.parametrize("frozen_stages", range(6))
def test_frozen_stages_are_counted_from_the_stem(frozen_stages: int) -> None:
    backbone = Case(architecture=small()).backbone(frozen_stages=frozen_stages)
    frozen_parts = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    frozen_parts = frozen_parts[: frozen_stages + 1] if frozen_stages else []
    backbone.eval().train()
    for name, module in backbone.named_modules():
        frozen = name.split(".")[0] in frozen_parts
        assert all(p.requires_grad != frozen for p in module.parameters(recurse=False)), name
        if is_norm(module):
            assert module.training != frozen, name


def test_frozen_norms_are_all_norms_and_nothing_else() -> None:
    backbone = Case(architecture=small()).backbone(frozen_bn=True)
    backbone.eval().train()
    for module in backbone.modules():
        assert module.training != is_norm(module)
        for parameter in module.parameters(recurse=False):
            assert parameter.requires_grad != is_norm(module)


def test_frozen_layers_drop_nothing_at_random() -> None:
    settings = {"drop_path": 0.5, "drop_block": 0.2}
    network = Case(architecture=small(layers=(2, 2, 2, 2)), settings=settings).network()
    x = images(4)
    with torch.no_grad():
        loose = Backbone(network, out_indices=(3, 4), frozen_bn=True).train()
        assert not torch.equal(loose(x)[0], loose(x)[0])
        backbone = Backbone(network, out_indices=(3, 4), frozen_stages=4).train()
        network.set_drop_block(0.3)  # a schedule must not turn it on in frozen blocks
        (third, last), (again, last_again) = backbone(x), backbone(x)
        assert torch.equal(third, again)
        assert not torch.equal(last, last_again)
        assert torch.equal(third, backbone.eval()(x)[0])


def test_frozen_layers_draw_no_random_numbers() -> None:
    settings = {"drop_path": 0.5, "drop_block": 0.2}
    backbone = Case(architecture=small(), settings=settings).backbone(frozen_stages=5).train()
    before = torch.get_rng_state()
    backbone(torch.ones(2, 3, 64, 64))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_of_a_frozen_backbone_is_frozen() -> None:
    backbone = deepcopy(Case(architecture=small()).backbone((4,), frozen_stages=2, frozen_bn=True))
    before = deepcopy(backbone.state_dict())
    sum(x.square().mean() for x in backbone.train()(images())).backward()
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    trained = {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert trained
    assert not [name for name in trained if name.startswith(("conv1", "bn1", "layer1"))]


def test_synchronizing_leaves_frozen_norms_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own conversion does not, as docs/backbones.md says."""
    network = Case(architecture=small()).network()
    backbone = Backbone(network, out_indices=(1,), frozen_bn=True)
    synchronize(backbone)
    # If they tried to communicate with other processes, they would fail: there are none.
    monkeypatch.setattr(batch_norm, "world_size", lambda: 2)
    x = images()
    assert torch.equal(backbone.train()(x)[0], backbone.eval()(x)[0])
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(backbone).train()
    assert all(norm.training for norm in converted.modules() if isinstance(norm, nn.SyncBatchNorm))


def test_frozen_norms_compile() -> None:
    torch.compiler.reset()
    backbone = Case(architecture=small()).backbone((1,), frozen_bn=True).train()
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    before = deepcopy(backbone.state_dict())
    x = images()
    (out,), (expected,) = compiled(x), backbone(x)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    out.square().mean().backward()
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_frozen_layers_stay_frozen_in_torchvisions_pyramid() -> None:
    """torchvision's pyramid takes over the backbone's children, but not the backbone itself."""
    backbone = Case(architecture=small()).backbone((1, 2, 3, 4), frozen_stages=3)
    names = {name: str(i) for i, name in enumerate(backbone.feature_info.module_name())}
    pyramid = BackboneWithFPN(backbone, names, list(backbone.channels), 16)
    pyramid.eval().train()
    before = deepcopy(pyramid.body.state_dict())
    sum(x.square().mean() for x in pyramid(images()).values()).backward()
    moved = {k for k, v in pyramid.body.state_dict().items() if not torch.equal(before[k], v)}
    assert {key.split(".")[0] for key in moved} == {"layer3", "layer4"}
    assert all(
        (parameter.grad is None) == name.startswith(("conv1", "bn1", "layer1", "layer2"))
        for name, parameter in pyramid.body.named_parameters()
    )


def test_torchvisions_pyramid_sees_the_same_maps() -> None:
    backbone = Case(architecture=small()).backbone((1, 2, 3, 4)).eval()
    names = {name: str(i) for i, name in enumerate(backbone.feature_info.module_name())}
    body = BackboneWithFPN(backbone, names, list(backbone.channels), 16).body
    x = images(2, 65, 97)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(body(x).values(), backbone(x), strict=True))


def test_gradient_checkpointing_computes_every_block_twice() -> None:
    backbone = Case(architecture=small(layers=(1, 2, 1, 1))).backbone((2, 4)).train()
    blocks = [module for module in backbone.modules() if isinstance(module, Bottleneck)]
    runs: list[nn.Module] = []
    for block in blocks:
        # A pre-hook, since the second pass may stop before the end of a block.
        block.register_forward_pre_hook(lambda module, _: runs.append(module))
    x = images()
    gradients = []
    for on in (False, True):
        backbone.gradient_checkpointing = on
        assert backbone.gradient_checkpointing is on
        runs.clear()
        backbone.zero_grad()
        sum(x.square().mean() for x in backbone(x)).backward()
        assert len(runs) == len(blocks) * (2 if on else 1)
        gradients.append([parameter.grad.clone() for parameter in backbone.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_without_stages_nothing_is_checkpointed() -> None:
    backbone = Case(architecture=small()).backbone((0,))
    backbone.gradient_checkpointing = True
    assert not backbone.gradient_checkpointing


def test_trains_on_a_single_image() -> None:
    backbone = Case(architecture=small()).backbone().train()
    sum(x.square().mean() for x in backbone(images(1, 40, 40))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())


WRONG: list[tuple[Any, str]] = [
    *((indices, str(indices)) for indices in [(), (5,), (-6,), (1, 1), (4, -1), (1.0,), 3, None]),
    ("12", "('1', '2')"),
    (iter([1, 7]), "(1, 7)"),
    (np.array([1, 9]), "(1, 9)"),
]


@pytest.mark.parametrize(("out_indices", "shown"), WRONG, ids=[shown for _, shown in WRONG])
def test_maps_that_do_not_exist_are_refused_in_one_line(out_indices: Any, shown: str) -> None:
    with pytest.raises(InputError) as caught:
        Backbone(Case(architecture=small()).network(), out_indices=out_indices)
    assert str(caught.value) == (
        "out_indices must be one or more of 0 (stem) and 1 to 4 (stages), none of them twice, "
        f"got {shown}"
    )


def test_indices_of_any_kind_become_plain_numbers() -> None:
    network = Case(architecture=small()).network()
    for indices in (np.array([4, 1]), torch.tensor([-1, 1]), iter((4, 1))):
        backbone = Backbone(network, out_indices=indices, frozen_stages=np.int64(2))
        assert backbone.out_indices == (4, 1)
        assert {type(i) for i in backbone.out_indices} == {int}


@pytest.mark.parametrize(
    ("frozen_stages", "last"), [(-1, 4), (6, 4), (4, 2), (1.5, 4), (None, 4), ("1", 4)]
)
def test_stages_that_do_not_exist_cannot_be_frozen(frozen_stages: Any, last: int) -> None:
    with pytest.raises(InputError) as caught:
        Case(architecture=small()).backbone((1, last), frozen_stages=frozen_stages)
    assert str(caught.value) == (
        f"frozen_stages must be 0 (none), 1 (the stem) to {last + 1} (all up to the last map), "
        f"got {frozen_stages!r}"
    )
