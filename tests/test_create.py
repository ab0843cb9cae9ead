"""`create_model` builds a network from a name and weights, with another head or stem if asked."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from splitattn.architectures import ARCHITECTURES, Architecture, list_models
from splitattn.classifier import Classifier
from splitattn.create import create_backbone, create_model, load_trained
from splitattn.errors import InputError, WeightsError
from splitattn.nn.resnest import ResNeSt
from splitattn.nn.split_attention import SplitAttention2d
from splitattn.preprocessing import Preprocessing
from splitattn.weights.catalogue import list_weights
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata
from splitattn.weights.resolve import resolve


@pytest.fixture
def trained() -> ResNeSt:
    model = create_model("resnest14", num_classes=6)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture
def path(tmp_path: Path, trained: ResNeSt) -> Path:
    metadata = ModelMetadata(
        model="resnest14",
        classes=tuple("abcdef"),
        preprocessing=Preprocessing(size=64, crop_fraction=1.0),
    )
    return Path(write_weights(tmp_path / "weights.safetensors", trained, metadata))


def write_weights(path: Path, model: ResNeSt, metadata: ModelMetadata | None = None) -> str:
    write_checkpoint(path, model.state_dict(), metadata)
    return str(path)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_lists_are_those_of_the_tables() -> None:
    assert list_models() == list(ARCHITECTURES)
    assert {entry.model for entry in list_weights()} <= set(ARCHITECTURES)
    assert [entry.tag for entry in list_weights("resnest14")] == ["gluon_in1k"]
    with pytest.raises(InputError, match="did you mean 'resnest50'"):
        list_weights("resnet50")


def test_without_weights_a_model_is_random_and_has_a_thousand_classes() -> None:
    model = create_model("resnest14")
    assert model.fc.weight.shape == (1000, 2048)
    assert model.training


def test_timms_names_build_the_same_networks(
    path: Path, trained: ResNeSt, caplog: pytest.LogCaptureFixture
) -> None:
    model = create_model("timm/resnest14d", weights=path)
    assert torch.equal(model.fc.weight, trained.fc.weight)
    assert create_model("resnest14d").architecture is ARCHITECTURES["resnest14"]
    assert list_weights("resnest14d.gluon_in1k") == list_weights("resnest14")
    assert not warnings_of(caplog)


def test_a_tag_in_a_name_loads_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    create_model("timm/resnest14d.gluon_in1k")
    assert warnings_of(caplog) == [
        "resnest14 is initialized at random: weights='gluon_in1k' has those weights"
    ]
    with pytest.raises(WeightsError, match="no weights called 'in21k'"):
        create_model("resnest50d.in21k")


def test_an_architecture_of_ones_own_can_be_built_but_has_no_weights(path: Path) -> None:
    own = Architecture(layers=(1, 1, 1, 1), planes=16, stem_width=8)
    assert create_model(own, num_classes=4).fc.weight.shape == (4, 512)
    with pytest.raises(InputError, match="weights need a model's name"):
        create_model(own, weights=path)


def test_weights_decide_the_classes_and_load_exactly(
    path: Path, trained: ResNeSt, caplog: pytest.LogCaptureFixture
) -> None:
    model = create_model("resnest14", weights=path)
    for key, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert not warnings_of(caplog)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_another_number_of_classes_gets_a_new_head_or_none(
    path: Path, trained: ResNeSt, caplog: pytest.LogCaptureFixture, num_classes: int
) -> None:
    model = create_model("resnest14", weights=path, num_classes=num_classes).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.forward_features(images), trained.eval().forward_features(images))
        assert model(images).shape == (2, num_classes or 2048)
    assert len(warnings_of(caplog)) == (1 if num_classes else 0)


def test_a_classifier_for_as_many_other_classes_can_be_left_out(
    path: Path, trained: ResNeSt, caplog: pytest.LogCaptureFixture
) -> None:
    model = create_model("resnest14", weights=path, new_classifier=True)
    assert model.fc.weight.shape == trained.fc.weight.shape
    assert not torch.equal(model.fc.weight, trained.fc.weight)
    assert torch.equal(model.conv1[0].weight, trained.conv1[0].weight)
    assert not warnings_of(caplog)  # it was asked for


@pytest.mark.parametrize("in_chans", [1, 5])
def test_another_number_of_channels_keeps_the_features_of_a_grey_image(
    path: Path, trained: ResNeSt, caplog: pytest.LogCaptureFixture, in_chans: int
) -> None:
    model = create_model("resnest14", weights=path, in_chans=in_chans).eval()
    gray = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        ours = model(gray.expand(-1, in_chans, -1, -1))
        theirs = trained.eval()(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert warnings_of(caplog) == [
        f"{path.name}: the first convolution is adapted from 3 to {in_chans} channels"
    ]


def test_half_precision_weights_load_into_a_float32_model(tmp_path: Path, trained: ResNeSt) -> None:
    half = {key: v.half() if v.ndim > 1 else v for key, v in trained.state_dict().items()}
    write_checkpoint(tmp_path / "half.safetensors", half)
    model = create_model("resnest14", weights=tmp_path / "half.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.conv1[0].weight, trained.conv1[0].weight.half().float())


def test_weights_of_another_model_are_refused_in_one_line(tmp_path: Path) -> None:
    other = create_model("resnest26", num_classes=6)
    path = write_weights(tmp_path / "other.safetensors", other)
    with pytest.raises(WeightsError, match="checkpoint of resnest26") as raised:
        create_model("resnest14", weights=path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["fc.weight", "conv1.0.weight", "layer1.0.bn1.weight"])
def test_a_tensor_of_the_wrong_rank_is_refused_in_one_line(
    tmp_path: Path, trained: ResNeSt, key: str
) -> None:
    state = dict(trained.state_dict())
    state[key] = torch.tensor(1.0)
    write_checkpoint(tmp_path / "odd.safetensors", state)
    with pytest.raises(WeightsError, match=rf"{key} has shape \(\)"):
        create_model("resnest14", weights=tmp_path / "odd.safetensors")


@pytest.mark.parametrize("features", [1, 0])
def test_no_network_is_built_for_more_classes_than_a_file_has_weights_for(
    tmp_path: Path, trained: ResNeSt, features: int
) -> None:
    state = dict(trained.state_dict())
    many = 10**6  # a classifier of 2048 features for so many classes would take 8 GB
    state |= {"fc.weight": torch.zeros(many, features), "fc.bias": torch.zeros(many)}
    path = tmp_path / "odd.safetensors"
    write_checkpoint(path, state)
    fault = rf"fc.weight has shape \({many}, {features}\) instead of \({many}, 2048\)"
    with pytest.raises(WeightsError, match=fault):
        create_model("resnest14", weights=path)
    with pytest.raises(WeightsError, match=fault):
        load_trained(resolve("resnest14", path))


def test_a_checkpoint_without_a_head_still_loads_with_one_of_its_own(
    tmp_path: Path, trained: ResNeSt, caplog: pytest.LogCaptureFixture
) -> None:
    headless = {k: v for k, v in trained.state_dict().items() if not k.startswith("fc.")}
    write_checkpoint(tmp_path / "headless.safetensors", headless)
    model = create_model("resnest14", weights=tmp_path / "headless.safetensors", num_classes=4)
    assert torch.equal(model.conv1[0].weight, trained.conv1[0].weight)
    assert "the classifier is new, for 4 classes" in warnings_of(caplog)[0]


@pytest.mark.parametrize("gone", ["fc.weight", "fc.bias"])
def test_half_a_classifier_is_no_checkpoint_without_a_head(
    tmp_path: Path, trained: ResNeSt, gone: str
) -> None:
    path = tmp_path / "half.safetensors"
    write_checkpoint(path, {k: v for k, v in trained.state_dict().items() if k != gone})
    told = rf"1 of \d+ keys are missing \({gone}\)"
    for num_classes in (None, 6, 3):
        with pytest.raises(WeightsError, match=told):
            create_model("resnest14", weights=path, num_classes=num_classes)
    with pytest.raises(WeightsError, match=told):
        create_backbone("resnest14", weights=path)
    with pytest.raises(WeightsError, match=told):
        load_trained(resolve("resnest14", path))


def test_a_classifier_of_no_classes_does_not_become_one_of_a_thousand(
    tmp_path: Path, trained: ResNeSt
) -> None:
    empty = {"fc.weight": torch.zeros(0, 2048), "fc.bias": torch.zeros(0)}
    path = tmp_path / "empty.pth"
    torch.save({**trained.state_dict(), **empty}, path)
    with pytest.raises(WeightsError, match=r"fc.weight has shape \(0, 2048\) instead of"):
        create_model("resnest14", weights=path)


@pytest.mark.parametrize("kind", [torch.int8, torch.bool])
@pytest.mark.parametrize("key", ["conv1.0.weight", "layer1.0.bn1.running_var"])
def test_integer_tensors_are_refused_as_weights(
    tmp_path: Path, trained: ResNeSt, kind: torch.dtype, key: str
) -> None:
    path = tmp_path / "quantized.pth"
    state = dict(trained.state_dict())
    torch.save(state | {key: state[key].to(kind)}, path)
    with pytest.raises(WeightsError) as error:
        create_model("resnest14", weights=path)
    assert f"{key} is of {str(kind).removeprefix('torch.')}: save" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
        ({"num_classes": "10"}, "num_classes must be a whole number, got '10'"),
        ({"in_chans": 3.0}, "in_chans must be a whole number, got 3.0"),
        ({"weights": True}, "weights must be a name or a path, got True"),
        ({"in_chans": 0}, "in_chans must be at least 1, got 0"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1"),
        ({"drop_path": "0.1"}, "drop_path must be a number, got '0.1'"),
        ({"dropout": [0.1]}, r"dropout must be a number, got \[0.1\]"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model("resnest14", **arguments)
    # Arguments are checked before weights are looked for.
    with pytest.raises(InputError, match=message):
        create_model("resnest14", **{"weights": "nowhere.safetensors", **arguments})


def test_a_checkpoint_without_a_head_cannot_label_images(tmp_path: Path, trained: ResNeSt) -> None:
    headless = {k: v for k, v in trained.state_dict().items() if not k.startswith("fc.")}
    write_checkpoint(tmp_path / "headless.safetensors", headless)
    with pytest.raises(WeightsError, match="has no classifier, so it cannot label images"):
        Classifier("resnest14", tmp_path / "headless.safetensors")


def test_a_backbone_has_the_weights_features_and_says_nothing_of_their_classifier(
    path: Path, trained: ResNeSt, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = create_backbone("resnest14", weights=path)
    assert backbone.channels == (256, 512, 1024, 2048)
    assert backbone.strides == (4, 8, 16, 32)
    assert backbone.training
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = trained.eval().forward_features(x)
        assert torch.equal(backbone.eval()(x)[-1], expected)
    assert not warnings_of(caplog)


def test_a_backbone_follows_its_arguments(
    path: Path, trained: ResNeSt, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = create_backbone(
        "resnest14",
        weights=path,
        out_indices=(0, 2),
        in_chans=1,
        output_stride=8,
        dilation="timm",
        frozen_stages=1,
        frozen_bn=True,
    )
    stem, second = backbone(torch.randn(2, 1, 64, 64))
    assert (stem.shape[1:], second.shape[1:]) == ((64, 32, 32), (512, 8, 8))
    assert torch.equal(backbone.layer2[0].conv3.weight, trained.layer2[0].conv3.weight)
    assert not backbone.conv1[0].weight.requires_grad
    assert not backbone.layer2[0].bn3.training
    assert len(warnings_of(caplog)) == 1  # about the stem
    dilated = create_backbone("resnest14", output_stride=16, dilation="timm", drop_path=0.3)
    assert isinstance(dilated.layer4[0].conv2, SplitAttention2d)
    assert dilated.layer4[0].conv2.pool_stride is None
    assert dilated.layer4[0].drop_path.p == 0.3


def test_a_saved_backbone_is_weights_of_a_backbone(tmp_path: Path, trained: ResNeSt) -> None:
    headless = {k: v for k, v in trained.state_dict().items() if not k.startswith("fc.")}
    backbone = create_backbone("resnest14")
    assert list(backbone.state_dict()) == list(headless)
    backbone.load_state_dict(headless)
    write_checkpoint(tmp_path / "backbone.safetensors", backbone.state_dict())
    again = create_backbone("resnest14", weights=tmp_path / "backbone.safetensors")
    assert all(torch.equal(again.state_dict()[key], headless[key]) for key in headless)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_indices": (1, 7)}, "out_indices must be one or more of 0"),
        ({"frozen_stages": 6}, r"frozen_stages must be 0 \(none\)"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ({"dilation": "mm"}, "dilation must be official or timm, got 'mm'"),
    ],
)
def test_impossible_backbones_are_refused_before_weights_are_looked_for(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        create_backbone("resnest14", weights="nowhere.safetensors", **arguments)
