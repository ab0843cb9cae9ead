"""Saved folders and repositories: timm loads ours, and we load timm's."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from timm.models import save_for_hf
from torch import Tensor, nn

import splitattn
from splitattn import pretrained
from splitattn.classifier import Classifier
from splitattn.create import create_model
from splitattn.errors import InputError, WeightsError
from splitattn.nn.fusion import fuse
from splitattn.nn.resnest import Dilation, ResNeSt
from splitattn.preprocessing import Preprocessing, center_crop, with_channels
from splitattn.pretrained import from_pretrained, push_to_hub, save_pretrained
from splitattn.weights.card import model_card
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.hub import CARD_MARK
from splitattn.weights.metadata import ModelMetadata, read_metadata
from splitattn.weights.resolve import resolve
from tests.cli.networks import CLASSES, PREPROCESSING, network
from tests.hub_server import Hub, environment
from tests.nn.networks import randomize_norms

METADATA = ModelMetadata(
    model="resnest14",
    classes=CLASSES,
    preprocessing=PREPROCESSING,
    recipe={"epochs": 3},
    metrics={"top1": 91.25, "n": 400},
)
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SAMPLE = Path(splitattn.__file__).parent / "images" / "samples" / "chelsea.jpg"


@torch.inference_mode()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(IMAGES)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder written by `save_pretrained`."""
    folder = tmp_path_factory.mktemp("ours") / "new" / "folder"
    save_pretrained(network(), folder, metadata=METADATA, license="Apache-2.0")
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A folder that timm wrote, and the logits of its model."""
    folder = tmp_path_factory.mktemp("theirs")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("resnest14d", num_classes=3)
        randomize_norms(model)
    labels = {"label_names": ["n1", "n2", "n3"], "label_descriptions": {"n1": "tench"}}
    model.pretrained_cfg["crop_pct"] = 1.0
    save_for_hf(model, str(folder), model_config=labels)
    return folder, logits(model)


def test_a_folder_holds_three_files(ours: Path) -> None:
    assert {path.name for path in ours.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert read_metadata(ours / "model.safetensors") == METADATA
    config = json.loads((ours / "config.json").read_text("utf-8"))
    assert config["label_names"] == list(CLASSES)
    assert config["pretrained_cfg"]["license"] == "apache-2.0"
    assert "91.25" in (ours / "README.md").read_text("utf-8")


def test_a_saved_network_is_loaded_again(ours: Path) -> None:
    expected = logits(network())
    assert not from_pretrained(ours).training
    for model in (
        from_pretrained(ours),
        from_pretrained(str(ours)),
        from_pretrained(ours / "model.safetensors"),
        from_pretrained(f"local-dir:{ours}"),
        create_model(f"local-dir:{ours}"),
        create_model("resnest14", weights=ours),
    ):
        assert torch.equal(logits(model), expected)
    assert create_model(f"local-dir:{ours}", num_classes=2).num_classes == 2


def test_timm_loads_our_folder(ours: Path) -> None:
    model = timm.create_model(f"local-dir:{ours}", pretrained=True)
    torch.testing.assert_close(logits(model), logits(network()), atol=1e-5, rtol=1e-5)
    assert model.pretrained_cfg["label_names"] == list(CLASSES)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == [3, PREPROCESSING.size, PREPROCESSING.size]
    assert config["crop_pct"] == PREPROCESSING.crop_fraction
    assert config["interpolation"] == PREPROCESSING.interpolation


def test_our_folder_without_our_metadata_is_read_like_one_of_timms(
    ours: Path, tmp_path: Path
) -> None:
    torch.save(network().state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((ours / "config.json").read_bytes())
    classifier = Classifier(weights=tmp_path, engine="torch")
    assert classifier.classes == CLASSES
    assert classifier.preprocessing.size == PREPROCESSING.size


def test_we_load_a_folder_of_timms(theirs: tuple[Path, Tensor]) -> None:
    folder, expected = theirs
    for model in (from_pretrained(folder), create_model(f"local-dir:{folder}")):
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    classifier = Classifier(f"local-dir:{folder}", engine="torch")
    assert classifier.classes == ("tench", "n2", "n3")
    assert classifier.preprocessing == Preprocessing(
        size=224, crop_fraction=1.0, interpolation="bilinear", order="resize-crop"
    )
    assert (classifier.model, classifier.weights) == ("resnest14", f"local-dir:{folder}")
    assert len(classifier.predict(SAMPLE)) == 3


def test_too_few_class_names_are_refused_before_any_image(
    theirs: tuple[Path, Tensor], tmp_path: Path
) -> None:
    folder, _ = theirs
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"label_names": ["a"]}))
    (tmp_path / "pytorch_model.bin").symlink_to(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="must name each of its 3 classes, it names 1"):
        Classifier(weights=tmp_path)


def test_a_hostile_checkpoint_in_a_folder_runs_nothing(
    theirs: tuple[Path, Tensor], tmp_path: Path
) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    folder, _ = theirs
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save({"fc.bias": Hostile()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="it has objects"):
        create_model(f"local-dir:{tmp_path}")
    assert not (tmp_path / "owned").exists()


def test_a_card_that_a_person_wrote_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    save_pretrained(network(), tmp_path, metadata=METADATA)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_card_that_was_made_here_follows_the_weights(tmp_path: Path) -> None:
    save_pretrained(network(), tmp_path, metadata=METADATA)
    better = replace(METADATA, metrics={"top1": 95.5})
    save_pretrained(network(), tmp_path, metadata=better, license="MIT")
    card = (tmp_path / "README.md").read_text()
    assert "95.5" in card
    assert "91.25" not in card
    assert 'license: "mit"' in card
    taken_over = card.replace(f"{CARD_MARK}\n", "")
    (tmp_path / "README.md").write_text(taken_over)
    save_pretrained(network(), tmp_path, metadata=METADATA)
    assert (tmp_path / "README.md").read_text() == taken_over


def test_timms_name_of_the_model_is_saved_as_ours(ours: Path, tmp_path: Path) -> None:
    metadata = replace(METADATA, model="timm/resnest14d.gluon_in1k")
    save_pretrained(network(), tmp_path, metadata=metadata, license="Apache-2.0")
    for name in ("README.md", "config.json"):
        assert (tmp_path / name).read_bytes() == (ours / name).read_bytes()
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["splitattn"])["model"] == "resnest14"
    for name in ("resnest14", "resnest14d"):
        assert torch.equal(logits(create_model(name, weights=tmp_path)), logits(network()))
    # A file written directly may have timm's name of the model.
    write_checkpoint(tmp_path / "model.safetensors", network().state_dict(), metadata)
    assert resolve("resnest14", tmp_path).model == resolve("resnest14d", tmp_path).model
    assert "timm has no such architecture" not in model_card(tmp_path / "model.safetensors")


def test_a_folder_comes_before_a_tag_of_the_catalogue(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_imagenet").symlink_to(ours)
    assert from_pretrained("tiny_imagenet").num_classes == len(CLASSES)


def test_a_network_for_other_images_is_the_one_in_the_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gray = timm.create_model("resnest14d", num_classes=3, in_chans=1).eval()
    save_for_hf(gray, str(tmp_path), model_config={"label_names": ["a", "b", "c"]})
    caplog.clear()  # drop timm's own messages
    model = from_pretrained(tmp_path)
    images = IMAGES[:, :1]
    with torch.inference_mode():
        torch.testing.assert_close(model(images), gray(images), atol=1e-5, rtol=1e-5)
    assert not caplog.records
    classifier = Classifier(weights=tmp_path)
    assert classifier.preprocessing.channels == 1
    assert len(classifier.predict(np.zeros((40, 40), np.uint8))) == 3


def changed(**fields: Any) -> ModelMetadata:
    defaults = {"model": "resnest14", "classes": CLASSES, "preprocessing": center_crop(64)}
    return ModelMetadata(**defaults | fields)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (changed(model="resnest26"), "metadata names resnest26, but"),
        (changed(model="resnest13"), "no model is called 'resnest13'"),
        (changed(classes=("a", "b")), "each of the model's 6 classes, it names 2"),
    ],
)
def test_metadata_must_be_true(tmp_path: Path, metadata: ModelMetadata, message: str) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(InputError, match=message):
        save_pretrained(network(), folder, metadata=metadata)
    with pytest.raises(InputError, match=message):
        push_to_hub(network(), "owner/name", metadata=metadata)
    assert not folder.exists()


def test_only_networks_that_can_be_described_are_saved(tmp_path: Path) -> None:
    fused: Any = fuse(network())
    gray = create_model("resnest14", num_classes=len(CLASSES), in_chans=1)
    of_gray = replace(METADATA, preprocessing=with_channels(METADATA.preprocessing, 1))
    with pytest.raises(InputError, match="only a ResNeSt can be saved"):
        save_pretrained(fused, tmp_path, metadata=METADATA)
    with pytest.raises(InputError, match="each of the model's 1 channels, it has 3"):
        save_pretrained(gray, tmp_path, metadata=METADATA)
    with pytest.raises(InputError, match="each of the model's 3 channels, it has 1"):
        save_pretrained(network(), tmp_path, metadata=of_gray)
    for dilation in get_args(Dilation):
        dilated = create_model("resnest14", num_classes=6, output_stride=16, dilation=dilation)
        with pytest.raises(InputError, match="got 16"):
            save_pretrained(dilated, tmp_path, metadata=METADATA)
        with pytest.raises(InputError, match="got 16"):
            push_to_hub(dilated, "owner/name", metadata=METADATA)
    with pytest.raises(InputError, match="SPDX identifier"):
        save_pretrained(network(), tmp_path, metadata=METADATA, license="a b")
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="cannot write to"):
        save_pretrained(network(), tmp_path / "file", metadata=METADATA)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_names_of_neither_a_folder_nor_a_repository_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="a repository must be owner/name"):
        from_pretrained("nowhere")
    with pytest.raises(WeightsError, match="neither a tag of any model nor a file"):
        from_pretrained(tmp_path / "nowhere")
    for odd in ("a" * 300, "a\0b", "\udcff"):
        with pytest.raises(WeightsError, match="a repository must be owner/name"):
            from_pretrained(odd)
        with pytest.raises(WeightsError, match="neither a tag of any model nor a file"):
            from_pretrained(Path(odd))


def test_a_pushed_network_is_loaded_from_the_hub(hub: Hub) -> None:
    url = push_to_hub(network(), "owner/cats", metadata=METADATA, license="MIT", token="secret")
    assert url.startswith(f"{hub.url}/owner/cats/commit/")
    files = hub.repositories["owner/cats"]["main"]
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    card = files["README.md"].decode()
    assert "hf-hub:owner/cats" in card
    assert 'license: "mit"' in card
    expected = logits(network())
    loaded: list[ResNeSt] = [
        from_pretrained("owner/cats"),
        create_model("hf-hub:owner/cats@main"),
        create_model("resnest14", weights="hf-hub:owner/cats"),
    ]
    for model in loaded:
        assert torch.equal(logits(model), expected)
    theirs = timm.create_model("hf-hub:owner/cats", pretrained=True)
    torch.testing.assert_close(logits(theirs), expected, atol=1e-5, rtol=1e-5)


def test_the_command_line_labels_with_a_repository(
    hub: Hub, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/cats", {path.name: path.read_bytes() for path in ours.iterdir()})
    command = [sys.executable, "-m", "splitattn", "predict", str(SAMPLE), "--format", "json"]
    done = subprocess.run(
        [*command, "--model", "hf-hub:owner/cats", "--engine", "torch"],
        env=os.environ | environment(hub),
        capture_output=True,
        text=True,
    )
    assert done.stderr == "loading PyTorch\n"
    result = json.loads(done.stdout)
    assert (result["model"], result["weights"]) == ("resnest14", "hf-hub:owner/cats")
    monkeypatch.setenv("SPLITATTN_OFFLINE", "1")
    best = Classifier("hf-hub:owner/cats", engine="torch").predict(SAMPLE)
    assert [p["label"] for p in result["predictions"]] == [p.label for p in best]


def test_nothing_is_replaced_before_everything_is_known_to_be_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(network(), tmp_path, metadata=METADATA)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(*_: object, **__: object) -> str:
        raise InputError("no")

    other = create_model("resnest14", num_classes=len(CLASSES))
    for text in ("to_config", "card_text"):
        with monkeypatch.context() as patch:
            patch.setattr(pretrained, text, refuse)
            with pytest.raises(InputError, match=r"^no$"):
                save_pretrained(other, tmp_path, metadata=METADATA)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
