"""Every example in docs/backbones.md runs, and its model takes a training step."""

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import encoders
from torch import nn

from splitattn.create import create_backbone, create_model
from splitattn.errors import WeightsError
from splitattn.nn.backbone import Backbone
from splitattn.nn.batch_norm import BatchNorm2d
from splitattn.nn.resnest import Stage

from .examples import blocks

GUIDE = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text(encoding="utf-8")
EXAMPLES = blocks(GUIDE, "python")
# These two examples print; the others build models to train.
FIRST = EXAMPLES.pop(0)
(FEATURES,) = (block for block in EXAMPLES if "create_feature_extractor" in block)
EXAMPLES.remove(FEATURES)
TITLES = ("FasterRCNN", "MaskRCNN", "DeepLabV3", "Unet", "Segmenter")


def example(title: str) -> dict[str, Any]:
    """Run an example; returns its global names."""
    (code,) = (block for block in EXAMPLES if f"model = {title}(" in block.replace("smp.", ""))
    names: dict[str, Any] = {}
    exec(compile(code, f"{title} in docs/backbones.md", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def _encoders_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoders, "splitattn", {})


def test_every_example_of_the_guide_is_tested() -> None:
    assert len(EXAMPLES) == len(TITLES)


def test_the_first_example_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(compile(FIRST, "docs/backbones.md", "exec"), names)
    assert f"  # {capsys.readouterr().out}" in FIRST
    shapes = [str(tuple(x.shape)) for x in names["maps"]]
    assert f"a list: {shapes[0]} ... {shapes[-1]}" in FIRST


def test_features_by_name_are_those_of_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(compile(FEATURES, "docs/backbones.md", "exec"), names)
    assert f"# {capsys.readouterr().out}" in FEATURES
    network, x = names["network"].eval(), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(names["extractor"](x)["coarse"], network.forward_features(x))


@pytest.mark.parametrize("title", TITLES)
def test_every_example_takes_a_training_step_and_its_backbone_comes_out_again(
    title: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = example(title)
    model = names["model"]
    assert names["loss"].isfinite()
    assert capsys.readouterr().out == f"loss {names['loss']:.2f}\n"
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    untrained = create_backbone("resnest26_tiny", weights="distilled_in1k")
    stages = [module for module in model.modules() if isinstance(module, Stage)]
    assert len(stages) == 4
    for stage, before in zip(stages, untrained.stages(), strict=True):
        frozen = not any(parameter.requires_grad for parameter in stage.parameters())
        assert torch.equal(stage[0].conv1.weight, before[0].conv1.weight) == frozen
        for norm, as_before in zip(norms(stage), norms(before), strict=True):
            assert torch.equal(norm.running_mean, as_before.running_mean) == norm.frozen
    torch.save(model.state_dict(), tmp_path / "model.pth")
    again = create_backbone("resnest26_tiny", weights=tmp_path / "model.pth")
    for stage, loaded in zip(stages, again.stages(), strict=True):
        torch.testing.assert_close(loaded.state_dict(), stage.state_dict(), rtol=0, atol=0)


def norms(stage: nn.Module) -> list[BatchNorm2d]:
    return [module for module in stage.modules() if isinstance(module, BatchNorm2d)]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_the_encoder_serves_networks_that_dilate_and_other_images(output_stride: int) -> None:
    example("Unet")
    model = smp.DeepLabV3Plus(
        "splitattn",
        encoder_weights=None,
        encoder_output_stride=output_stride,
        in_channels=1,
        classes=5,
    ).eval()
    assert isinstance(model.encoder.backbone, Backbone)
    assert model.encoder.output_stride == output_stride
    with torch.inference_mode():
        assert model(torch.randn(1, 1, 64, 96)).shape == (1, 5, 64, 96)


@pytest.mark.parametrize("kind", [smp.DeepLabV3, smp.FPN, smp.Linknet, smp.PSPNet, smp.UPerNet])
def test_the_encoder_serves_every_architecture_that_asks_for_maps(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    example("Unet")
    model = kind("splitattn", encoder_weights=None, classes=5).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 64, 96)).shape == (1, 5, 64, 96)
    come_out_again(model, model.encoder.backbone, tmp_path / "model.pth")


@pytest.mark.parametrize("out_indices", [(0,), (1, 2), (0, 3)])
def test_a_backbone_without_its_last_stages_comes_out_again(
    out_indices: tuple[int, ...], tmp_path: Path
) -> None:
    segmenter = example("Segmenter")["Segmenter"]
    backbone = create_backbone("resnest26_tiny", out_indices=out_indices)
    come_out_again(segmenter(backbone, classes=4), backbone, tmp_path / "model.pth")
    needs_more = create_backbone, {"out_indices": (1, 4)}
    for create, settings in (needs_more, (create_model, {})):
        with pytest.raises(WeightsError, match=r"of 4 stages are missing \(.*layer4\)"):
            create("resnest26_tiny", weights=tmp_path / "model.pth", **settings)


def come_out_again(model: nn.Module, backbone: Backbone, path: Path) -> None:
    torch.save({"model": model.state_dict(), "epoch": 1}, path)
    again = create_backbone("resnest26_tiny", weights=path, out_indices=backbone.out_indices)
    torch.testing.assert_close(again.state_dict(), backbone.state_dict(), rtol=0, atol=0)


def test_code_that_was_written_for_timm_takes_both() -> None:
    segmenter = example("Segmenter")["Segmenter"]
    network = timm.create_model("resnest14d", pretrained=False, features_only=True)
    with torch.inference_mode():
        logits = segmenter(network, classes=4).eval()(torch.randn(1, 3, 64, 64))
    assert logits.shape == (1, 4, 64, 64)
