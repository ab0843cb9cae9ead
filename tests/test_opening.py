"""Files, folders and exports open the same network; weights that do not fit are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from splitattn.create import create_model
from splitattn.errors import InputError, WeightsError
from splitattn.features import FeatureExtractor
from splitattn.images.preprocess import load_pixels, normalize
from splitattn.images.samples import sample_photographs
from splitattn.opening import open_network, open_weights
from splitattn.preprocessing import InputSizeWarning
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata
from splitattn.workflows import export
from tests.cli.networks import CLASSES, PREPROCESSING, network, write_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same weights as safetensors, as a plain checkpoint and as ONNX."""
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / "model.safetensors")
    torch.save({"state_dict": network().state_dict()}, folder / "plain.pth")
    export(folder / "net.onnx", weights=folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "", "net.onnx"])
def test_a_file_a_folder_and_an_export_open_alike(name: str, folder: Path) -> None:
    opened = open_network(weights=folder / name, engine="onnxruntime", device="cpu")
    assert (opened.model, opened.classes) == ("resnest14", CLASSES)
    assert opened.preprocessing == PREPROCESSING
    assert opened.metadata.task == "classification"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    images = torch.from_numpy(normalize(pixels, PREPROCESSING))
    with torch.inference_mode():
        expected = network()(images).numpy()
    outputs = opened.engine.run(pixels, opened.preprocessing)
    np.testing.assert_allclose(outputs, expected, atol=1e-5 * abs(expected).max(), rtol=0)


def test_weights_without_metadata_need_a_model(folder: Path) -> None:
    with pytest.raises(WeightsError, match="does not say which model"):
        open_weights(weights=folder / "plain.pth")
    trained = open_weights("resnest14", folder / "plain.pth")
    assert trained.metadata.classes == ("0", "1", "2", "3", "4", "5")


def test_without_a_name_the_embedded_model_opens() -> None:
    trained = open_weights()
    assert trained.metadata.model.startswith("resnest")
    assert len(trained.metadata.classes) == len(trained.tensors["fc.bias"])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"in_chans": 4}, "takes images of 4 channels, but"),
        ({"num_classes": 0}, "has no classifier"),
        ({"num_classes": 5}, "must name each of its 5 classes, it names 6"),
        ({"num_classes": 1}, "has one output, whose softmax is always 1: train two classes, or"),
    ],
)
def test_weights_that_cannot_label_photographs_are_refused(
    changes: dict[str, int], complaint: str, tmp_path: Path
) -> None:
    model = create_model("resnest14", **{"num_classes": 6} | changes)
    path = tmp_path / "odd.safetensors"
    metadata = ModelMetadata(model="resnest14", classes=CLASSES, preprocessing=PREPROCESSING)
    write_checkpoint(path, model.state_dict(), metadata)
    for use in (open_weights, open_network):
        with pytest.raises(WeightsError, match=complaint) as raised:
            use(weights=path)
        assert str(raised.value).isprintable()


@pytest.mark.parametrize("num_classes", [0, 1, 5])
def test_features_need_no_classifier_that_labels(num_classes: int, tmp_path: Path) -> None:
    model = create_model("resnest14", num_classes=num_classes).eval()
    path = tmp_path / "odd.safetensors"
    metadata = ModelMetadata(model="resnest14", classes=CLASSES, preprocessing=PREPROCESSING)
    write_checkpoint(path, model.state_dict(), metadata)
    extractor = FeatureExtractor(weights=path, engine="onnxruntime")
    pixels = load_pixels(sample_photographs()[0], PREPROCESSING)[None]
    with torch.no_grad():
        images = torch.from_numpy(normalize(pixels, PREPROCESSING))
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    (found,) = extractor.features(pixels)
    np.testing.assert_allclose(found, expected[0], atol=1e-5)


def test_one_output_with_a_sigmoid_labels_photographs(tmp_path: Path) -> None:
    model = create_model("resnest14", num_classes=1)
    metadata = ModelMetadata(
        model="resnest14", classes=("cat",), preprocessing=PREPROCESSING, activation="sigmoid"
    )
    write_checkpoint(tmp_path / "a.safetensors", model.state_dict(), metadata)
    assert open_weights(weights=tmp_path / "a.safetensors").metadata.classes == ("cat",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conv1.0.weight", float("nan")),
        ("fc.bias", float("inf")),
        ("conv1.1.running_var", -1.0),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_invalid_numbers_are_refused(key: str, value: float, suffix: str, tmp_path: Path) -> None:
    state = {name: each.clone() for name, each in network().state_dict().items()}
    state[key].view(-1)[0] = value
    path = tmp_path / f"model{suffix}"
    write_checkpoint(path, state) if suffix == ".safetensors" else torch.save(state, path)
    for use in (open_weights, lambda model, weights: create_model(model, weights=weights)):
        with pytest.raises(
            WeightsError, match=rf"has invalid numbers in {key} .* earlier checkpoint"
        ):
            use("resnest14", path)


def test_another_size_warns_and_an_exported_file_refuses_it(folder: Path) -> None:
    with pytest.warns(InputSizeWarning):
        opened = open_network(weights=folder, size=48, engine="onnxruntime")
    assert opened.preprocessing.size == 48
    with pytest.raises(InputError, match="takes images of 32 pixels, got --size 48"):
        open_network(weights=folder / "net.onnx", size=48)


def test_an_exported_file_of_dynamic_size_takes_another_size(folder: Path, tmp_path: Path) -> None:
    export(tmp_path / "net.onnx", weights=folder / "model.safetensors", dynamic_size=True)
    with pytest.warns(InputSizeWarning):
        opened = open_network(weights=tmp_path / "net.onnx", size=48)
    pixels = np.zeros((1, 3, 48, 48), np.uint8)
    assert opened.engine.run(pixels, opened.preprocessing).shape == (1, len(CLASSES))


def test_an_unknown_engine_fails_before_anything_is_read(folder: Path) -> None:
    with pytest.raises(InputError, match="engine must be one of"):
        open_network(weights=folder / "missing.safetensors", engine="steam")


@pytest.mark.parametrize("device", ["gpu", "0", "cuda:x", ""])
def test_unknown_devices_are_refused_before_any_library_is_asked_for(device: str) -> None:
    with pytest.raises(InputError, match=f"device '{device}' cannot be used: it must be auto, cpu"):
        open_network(device=device)
