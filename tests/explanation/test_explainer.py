"""Explanations add up to the logit, agree between engines and are drawn in the right place."""

import copy
import io
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from splitattn.classifier import Classifier
from splitattn.errors import ImageError, InputError, WeightsError
from splitattn.explanation import explanation, rise
from splitattn.explanation.explainer import Explainer
from splitattn.explanation.explanation import Explanation
from splitattn.images.heat import heat
from splitattn.images.preprocess import load_pixels, normalize
from splitattn.images.samples import sample_photographs
from splitattn.nn.attention_maps import attention_shares
from splitattn.nn.resnest import ResNeSt
from splitattn.opening import open_weights
from splitattn.preprocessing import Preprocessing
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata
from splitattn.workflows import export
from tests.cli.networks import CLASSES, network

ENGINES = ("onnxruntime", "openvino", "torch")
CAT = sample_photographs()[2]
# The maps after stages 2 to 4 are 6, 3 and 2 positions wide.
SMALL = Preprocessing(size=48, crop_fraction=0.8)
LABEL = 3


def written(path: Path, model: ResNeSt, preprocessing: Preprocessing = SMALL) -> Path:
    metadata = ModelMetadata(model="resnest14", classes=CLASSES, preprocessing=preprocessing)
    write_checkpoint(path, model.state_dict(), metadata)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("weights") / "small.safetensors", network())


@pytest.fixture(scope="module")
def explainer(weights: Path) -> Explainer:
    return Explainer(weights=weights, engine="onnxruntime")


@cache
def photograph() -> Tensor:
    return torch.from_numpy(normalize(load_pixels(CAT, SMALL)[None], SMALL))


def gradient_and_activation(layer: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The gradient of one logit at a layer, by autograd, and the activation of the layer."""
    kept: list[Tensor] = []
    hook = getattr(network(), layer).register_forward_hook(lambda *call: kept.append(call[2]))
    with torch.enable_grad():
        logits = network()(photograph().clone().requires_grad_())
        (gradient,) = torch.autograd.grad(logits[0, LABEL], kept)
    hook.remove()
    return gradient[0].numpy(), kept[0][0].detach().numpy()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cam_adds_up_to_the_logit_and_equals_grad_cam(weights: Path, engine: str) -> None:
    classifier = Classifier(weights=weights, engine=engine, device="cpu", decoding="exact")
    found = classifier.explain(CAT, CLASSES[LABEL], method="cam")
    plain = network()
    with torch.inference_mode():
        logits = plain(photograph())[0]
    assert (found.label, found.index, found.grid) == (CLASSES[LABEL], LABEL, (2, 2))
    assert found.logit == pytest.approx(float(logits[LABEL]), abs=1e-5)
    assert found.probability == pytest.approx(float(logits.softmax(0)[LABEL]), abs=1e-5)
    # Completeness: only the classifier's bias belongs to no position of the map.
    bias = float(plain.fc.bias.detach()[LABEL])
    assert found.bias == pytest.approx(bias, abs=1e-5)
    assert float(found.map.mean()) + bias == pytest.approx(float(logits[LABEL]), abs=1e-5)
    # Grad-CAM before its ReLU: channels weighted by their mean gradients.
    gradient, activation = gradient_and_activation("layer4")
    grad_cam = (gradient.mean((1, 2), keepdims=True) * activation).sum(0)
    np.testing.assert_allclose(found.map, grad_cam * grad_cam.size, atol=1e-5)
    assert found.map.std() > 1e-3, "a constant map would prove nothing"
    shares = attention_shares(plain, photograph())
    assert [f"{each.block}.conv2" for each in found.shares] == [*shares]
    for each, own in zip(found.shares, shares.values(), strict=True):
        np.testing.assert_allclose(each.shares, own[0].mean(1).numpy(), atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_layercam_equals_that_of_autograd(weights: Path, engine: str) -> None:
    found = Explainer(weights=weights, engine=engine, decoding="exact").explain(CAT, LABEL)
    assert (found.method, found.grid) == ("layercam", (6, 6))  # stage 3 has only 3 x 3 positions
    gradient, activation = gradient_and_activation("layer2")
    expected = (gradient.clip(0) * activation).sum(0) * 36
    np.testing.assert_allclose(found.map, expected, rtol=1e-3, atol=1e-5)
    assert found.map.max() > 1.5 * found.map.mean() > 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("net.onnx", {}),
        ("net.onnx", {"batch_size": 2, "precision": "fp16"}),
        ("net.xml", {"dynamic_size": True}),
    ],
    ids=str,
)
def test_exported_files_with_class_maps_give_the_same_map(
    weights: Path, explainer: Explainer, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    path = tmp_path / name
    export(path, weights=weights, class_maps=True, **options)
    exported = Classifier(weights=path)
    found, own = exported.explain(CAT, LABEL), explainer.explain(CAT, LABEL, "cam")
    tolerance = 1e-2 if options.get("precision") == "fp16" else 1e-4
    assert found.method == "cam"
    np.testing.assert_allclose(found.map, own.map, atol=tolerance)
    assert found.bias == pytest.approx(own.bias, abs=tolerance)
    assert exported.predict(CAT)[0].label == Classifier(weights=weights).predict(CAT)[0].label


def test_a_file_without_the_map_is_explained_by_rise_alone(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rise, "_MASKS", 32)
    export(tmp_path / "net.onnx", weights=weights)
    exported = Explainer(weights=tmp_path / "net.onnx")
    assert exported.explain(CAT).method == "rise"
    with pytest.raises(InputError, match=r"net\.onnx is an exported file without the maps"):
        exported.explain(CAT, method="cam")


def test_explanations_are_of_the_weights_that_predict(weights: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    shutil.copy(weights, own)
    before, after = (Classifier(weights=own, engine="onnxruntime") for _ in range(2))
    expected = before.explain(CAT, LABEL)
    written(tmp_path / "other.safetensors", network(), replace(SMALL, size=64)).replace(own)
    assert before.explain(CAT, LABEL).logit == expected.logit
    with pytest.raises(WeightsError, match="has changed since it was opened: open it again"):
        after.explain(CAT, LABEL)
    with pytest.raises(WeightsError, match="has changed since it was opened: open it again"):
        after.features(CAT)


def test_an_array_is_explained_as_the_same_picture_is(explainer: Explainer) -> None:
    picture = Image.open(CAT).convert("RGB")
    expected = explainer.explain(picture, LABEL)
    found = explainer.explain(np.asarray(picture), np.int64(LABEL))  # as `argmax` gives it
    assert found.logit == expected.logit
    assert np.array_equal(found.map, expected.map)


def test_an_exported_file_is_opened_once(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(path, weights=weights, class_maps=True)
    exported = Classifier(weights=path)
    path.unlink()
    assert exported.explain(CAT, LABEL).method == "cam"


def test_the_map_of_a_network_that_ignores_the_image_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rise, "_MASKS", 32)
    blind = copy.deepcopy(network())
    torch.nn.init.zeros_(blind.fc.weight)
    path = written(tmp_path / "blind.safetensors", blind)
    found = Explainer(weights=path, engine="onnxruntime").explain(CAT, LABEL, "rise")
    assert found.map.max() < found.highest / 2
    assert found.overlay().width == 640


def test_a_photograph_from_a_url_is_fetched_once(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    Image.open(CAT).resize((1200, 900)).save(stream, "JPEG")
    fetched: list[str] = []

    def fetch(url: str, **_: object) -> bytes:
        fetched.append(url)
        return stream.getvalue()

    monkeypatch.setattr("splitattn.images.fetch.fetch", fetch)
    found = explainer.explain("http://photos.example/cat.jpg", LABEL)
    assert fetched == ["http://photos.example/cat.jpg"]
    assert found.image.width == 1200 // 1  # decoded again in full, for the picture


def test_a_label_is_found_however_its_accents_are_composed(explainer: Explainer) -> None:
    assert explainer.explain(CAT, "cafe\u0301").index == CLASSES.index("caf\u00e9")


def test_an_index_of_many_digits_is_refused(explainer: Explainer) -> None:
    with pytest.raises(InputError, match="label must be one of the 6 classes or an index"):
        explainer.explain(CAT, "1" * 5000)


def test_large_images_are_explained_by_the_last_map(tmp_path: Path) -> None:
    large = written(tmp_path / "l.safetensors", network(), replace(SMALL, size=176))
    found = Explainer(weights=large, engine="onnxruntime").explain(CAT)
    assert (found.method, found.grid) == ("cam", (6, 6))


def test_other_weights_give_other_maps(tmp_path: Path) -> None:
    """A map that random weights do not change explains nothing (Adebayo, arXiv 1810.03292)."""
    rng = np.random.default_rng(0)
    own = open_weights()
    mixed = {
        key: torch.from_numpy(rng.permutation(value.ravel()).reshape(value.shape))
        if key.startswith(("layer3", "layer4", "fc")) and value.ndim > 1
        else torch.from_numpy(np.array(value))
        for key, value in own.tensors.items()
    }
    write_checkpoint(tmp_path / "mixed.safetensors", mixed, own.metadata)
    explainers = (None, tmp_path / "mixed.safetensors")
    for method in ("cam", "layercam"):
        one, two = (
            Explainer(weights=weights, engine="onnxruntime").explain(CAT, "tabby cat", method).map
            for weights in explainers
        )
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.5, method


def test_a_map_in_which_nothing_stands_out_has_no_colors() -> None:
    flat = np.full((3, 3), 0.01, np.float32)
    assert np.asarray(heat(flat, (30, 30), 1.0))[..., 3].max() <= 3
    alpha = np.asarray(heat(np.eye(3, dtype=np.float32) - 0.5, (30, 30), 0.5))[..., 3]
    assert alpha.max() > 150
    assert alpha[2, 27] == 0, "values below zero have no color"


@pytest.mark.parametrize("order", ["crop-resize", "resize-crop"])
def test_the_crop_is_mapped_back_onto_the_original(weights: Path, order: str) -> None:
    marked = np.zeros((200, 400, 3), np.uint8)
    marked[20:180, 120:280] = 255  # the center crop: four fifths of the shorter side
    explainer = Explainer(weights=weights, engine="onnxruntime")
    explainer.preprocessing = replace(SMALL, order=order)
    found = explainer.explain(Image.fromarray(marked))
    np.testing.assert_allclose(found.box, (120, 20, 280, 180), atol=0.1)
    pixels = np.asarray(replace(found, map=np.zeros((2, 2), np.float32)).overlay())
    assert pixels.shape[1] == 640
    seen = pixels[:320].max(2) > 128
    rows, columns = np.nonzero(seen)
    assert abs(rows.min() - 32) <= 1 <= 2 >= abs(columns.min() - 192)
    assert abs(rows.max() - 287) <= 1 <= 2 >= abs(columns.max() - 447)


def test_the_dark_rim_is_mentioned_only_if_there_is_one(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(explanation, "draw_heat", lambda *args: notes.append(args[3].notes[-1]))
    explainer = Explainer(weights=weights, engine="onnxruntime")
    for crop_fraction, width in ((1.0, 200), (1.0, 300), (0.8, 200)):
        explainer.preprocessing = replace(SMALL, crop_fraction=crop_fraction)
        explainer.explain(Image.new("RGB", (width, 200))).overlay()
    assert ["dark rim" in note for note in notes] == [False, True, True]


def test_a_reduced_photograph_has_its_crop_in_the_same_place(weights: Path) -> None:
    stream = io.BytesIO()
    Image.open(CAT).resize((1800, 1200)).save(stream, "JPEG")
    explainer = Explainer(weights=weights, engine="onnxruntime")
    found = explainer.explain(stream.getvalue())
    whole = Explainer(weights=weights, engine="onnxruntime", decoding="exact")
    exact = whole.explain(stream.getvalue())
    assert found.image.width < exact.image.width == 1800
    scale = found.image.width / 1800
    np.testing.assert_allclose(found.box, np.array(exact.box) * scale, rtol=1e-6)
    assert min(found.image.size) >= 480


@pytest.mark.parametrize(
    ("label", "method", "message"),
    [
        ("tabyb", "cam", "label must be one of the 6 classes or an index, got 'tabyb'; did you "),
        (6, "cam", "label must be a class or its index, 0 to 5, got 6"),
        (-1, "cam", "label must be a class or its index, 0 to 5, got -1"),
        (None, "gradcam", "method must be one of auto, cam, layercam, rise, got 'gradcam'"),
    ],
)
def test_impossible_explanations_are_refused_in_one_line(
    explainer: Explainer, label: str | int | None, method: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        explainer.explain(CAT, label, method)
    assert str(caught.value).startswith(message)


def test_an_image_that_cannot_be_read_is_named(explainer: Explainer) -> None:
    with pytest.raises(ImageError, match=r"missing\.jpg: no such file"):
        explainer.explain("missing.jpg")


def test_the_page_shows_all_and_needs_nothing(explainer: Explainer, tmp_path: Path) -> None:
    found: Explanation = explainer.explain(CAT, "1")
    assert found.label == CLASSES[1] == 'say "cheese", please'
    found.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "say &quot;cheese&quot;, please" in page
    assert page.count('<img src="data:image/jpeg;base64,') == 1
    assert "http" not in page
    with pytest.raises(InputError, match=r"cannot write .*nowhere"):
        found.save_html(tmp_path / "nowhere" / "page.html")
