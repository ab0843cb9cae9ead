import gc
import io
import itertools
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from splitattn.classifier import Classifier, Prediction
from splitattn.engines.engine import Engine
from splitattn.errors import ImageError, InputError, WeightsError
from splitattn.images.limits import Limits
from splitattn.images.preprocess import load_pixels, normalize
from splitattn.images.samples import sample_photographs
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata
from tests.cli.networks import CLASSES, PREPROCESSING, network, write_weights

PHOTOGRAPHS = [
    getattr(skimage.data, name)() for name in ("chelsea", "coffee", "astronaut", "rocket", "cat")
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture(scope="module")
def classifier(weights: Path) -> Classifier:
    return Classifier(weights=weights, device="cpu", engine="torch")


def probabilities(predictions: list[Prediction]) -> torch.Tensor:
    by_index = {prediction.index: prediction.probability for prediction in predictions}
    return torch.tensor([by_index[index] for index in range(len(CLASSES))])


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_features_are_what_the_classifier_of_the_plain_network_sees(
    weights: Path, engine: str
) -> None:
    classifier = Classifier(weights=weights, device="cpu", engine=engine)
    pixels = np.stack([load_pixels(image, PREPROCESSING) for image in PHOTOGRAPHS])
    images = torch.from_numpy(normalize(pixels, PREPROCESSING))
    plain = network()
    with torch.no_grad():
        expected = plain.forward_features(images).mean((2, 3)).numpy()
    found = classifier.features(PHOTOGRAPHS)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(classifier.features(PHOTOGRAPHS[0]), expected[0], atol=1e-4)
    logits = found @ plain.fc.weight.detach().numpy().T + plain.fc.bias.detach().numpy()
    guesses = [CLASSES[index] for index in logits.argmax(1)]
    assert guesses == [best.label for (best,) in classifier.predict(PHOTOGRAPHS, topk=1)]
    assert classifier.features([]).shape[0] == 0
    with pytest.raises(ImageError, match="missing"):
        classifier.features([PHOTOGRAPHS[0], "missing.jpg"])


def test_predictions_are_those_of_the_plain_network(classifier: Classifier) -> None:
    photograph = Image.fromarray(skimage.data.chelsea())
    # PREPROCESSING, written out by hand.
    side = photograph.height // 2
    left, top = round((photograph.width - side) / 2), round((photograph.height - side) / 2)
    cropped = photograph.crop((left, top, left + side, top + side))
    resized = np.array(cropped.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32)
    normalized = (resized / 255 - PREPROCESSING.mean) / PREPROCESSING.std
    with torch.no_grad():
        logits = network()(torch.tensor(normalized).float().permute(2, 0, 1)[None])
    expected = logits.softmax(1)[0]

    predictions = classifier.predict(photograph, topk=len(CLASSES))

    torch.testing.assert_close(probabilities(predictions), expected, atol=1e-5, rtol=0)
    assert predictions == sorted(predictions, key=lambda p: -p.probability)
    assert all(p.label == CLASSES[p.index] for p in predictions)
    assert 0.3 > expected.std() > 1e-3, "the network must distinguish the classes"


def test_a_path_bytes_array_and_pillow_image_are_labeled_alike(
    classifier: Classifier, tmp_path: Path
) -> None:
    path = tmp_path / "rocket.png"
    image = Image.fromarray(skimage.data.rocket())
    image.save(path)
    expected = classifier.predict(path)
    assert len(expected) == 5
    for source in (str(path), path.read_bytes(), np.asarray(image), image):
        assert classifier.predict(source) == expected


def test_a_list_gives_one_answer_each_in_order(classifier: Classifier) -> None:
    answers = classifier.predict(PHOTOGRAPHS, topk=2)
    assert [len(answer) for answer in answers] == [2] * len(PHOTOGRAPHS)
    for photograph, answer in zip(PHOTOGRAPHS, answers, strict=True):
        assert answer[0].index == classifier.predict(photograph)[0].index
    assert classifier.predict([]) == []


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_probabilities_do_not_depend_on_the_batch(classifier: Classifier, batch_size: int) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(6)]
    images = PHOTOGRAPHS + noise
    alone = [probabilities(classifier.predict(image, topk=99)) for image in images]
    together = list(classifier.predict_stream(images, topk=99, batch_size=batch_size))
    for one, other in zip(alone, together, strict=True):
        assert not isinstance(other, ImageError)
        torch.testing.assert_close(one, probabilities(other), atol=1e-5, rtol=0)


def test_an_image_that_fails_is_answered_in_its_place(classifier: Classifier) -> None:
    sources = [b"broken", PHOTOGRAPHS[0], "missing.jpg", PHOTOGRAPHS[1], b""]
    results = list(classifier.predict_stream(sources, batch_size=2))
    assert [isinstance(result, ImageError) for result in results] == [True, False] * 2 + [True]
    with pytest.raises(ImageError, match=r"missing\.jpg: no such file"):
        classifier.predict(["missing.jpg", PHOTOGRAPHS[0]])


def test_sources_are_read_two_batches_ahead_and_no_further(classifier: Classifier) -> None:
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield PHOTOGRAPHS[0]

    results = classifier.predict_stream(endless(), batch_size=3)
    assert read == 0
    next(results)
    assert read == 6
    results.close()


def test_closing_the_stream_ends_its_threads(classifier: Classifier) -> None:
    results = classifier.predict_stream(itertools.repeat(PHOTOGRAPHS[0]), batch_size=2, workers=2)
    next(results)
    results.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("splitattn-decode")]


def small_files(count: int) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        stream = io.BytesIO()
        color = tuple(rng.integers(0, 256, 3).tolist())
        Image.new("RGB", (32, 32), color).save(stream, "PNG")
        yield stream.getvalue() if color[0] > 20 else b"broken"


def grown(classifier: Classifier, count: int) -> int:
    """Growth of memory in bytes between the 300th image and the last of `count`."""
    results = classifier.predict_stream(small_files(count), topk=1, batch_size=16, workers=2)
    tracemalloc.start()
    try:
        for _ in itertools.islice(results, 300):
            pass
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in results:
            pass
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


class Indifferent(Engine):
    """An engine that computes nothing."""

    def _infer(self, images_BCHW: np.ndarray) -> np.ndarray:
        return np.zeros((len(images_BCHW), len(CLASSES)), np.float32)


def test_memory_stays_flat(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "engine", Indifferent("indifferent"))
    # The pixels of a small image are 3 kB, so keeping two thousand would take 6 MB.
    assert grown(classifier, 2_300) < 500_000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_stays_flat_over_ten_thousand_images(classifier: Classifier) -> None:
    assert grown(classifier, 10_300) < 500_000


def test_limits_apply(weights: Path) -> None:
    strict = Classifier(weights=weights, limits=Limits(max_pixels=1000))
    with pytest.raises(ImageError, match="1,000 pixels"):
        strict.predict(PHOTOGRAPHS[0])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"topk": 0}, "topk must be at least 1, got 0"),
        ({"topk": "3"}, "topk must be a whole number, got '3'"),
        ({"topk": 3.0}, "topk must be a whole number, got 3.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 1, got -1"),
    ],
)
def test_numbers_are_checked_at_once(
    classifier: Classifier, arguments: dict[str, int], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        classifier.predict_stream([], **arguments)


@pytest.mark.parametrize("image", ["photo.jpg", b"bytes", Path("photo.jpg")])
def test_a_stream_of_one_image_is_not_read_letter_by_letter(
    classifier: Classifier, image: Any
) -> None:
    with pytest.raises(InputError, match=r"needs several images, got .*: put it into a list"):
        classifier.predict_stream(image)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            {"model": 5},
            "a model must be a name, got an object of type int; pass a file",
        ),
        (
            {"model": Path("run")},
            "a model must be a name, got an object of type .*Path; pass",
        ),
        ({"model": __file__}, r"no model is called '.*; it is a file or folder: pass it as the w"),
        ({"weights": 5}, "weights must be a name or a path, got 5"),
        ({"weights": torch.nn.Identity()}, "weights must be a name or a path, got Identity"),
        ({"device": 0}, "device must be a name, got 0; did you mean 'cuda:0'"),
        ({"device": torch.device("cpu")}, "device must be a name, got .*; did you mean 'cpu'"),
        ({"engine": 5}, "engine must be one of .*, got 5$"),
    ],
)
def test_values_that_are_not_names_are_reported_in_one_line(
    arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        Classifier(**arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"device": "tpu9000", "engine": "torch"}, "device 'tpu9000' cannot be used"),
        ({"device": "cuda:99", "engine": "torch"}, "device 'cuda:99' cannot be used"),
        ({"engine": "steam"}, "engine must be one of auto, openvino, .*, got 'steam'"),
    ],
)
def test_a_device_or_engine_that_is_not_there_is_reported_in_one_line(
    weights: Path, arguments: dict[str, str], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as raised:
        Classifier(weights=weights, **arguments)
    assert str(raised.value).isprintable()


def test_weights_without_class_names_answer_with_indices(tmp_path: Path) -> None:
    path = tmp_path / "nameless.safetensors"
    write_checkpoint(path, network().state_dict())
    nameless = Classifier("resnest14", path)
    assert nameless.classes == ("0", "1", "2", "3", "4", "5")
    assert (nameless.model, nameless.weights) == ("resnest14", str(path))
    prediction = nameless.predict(PHOTOGRAPHS[0])[0]
    assert prediction.label == str(prediction.index)


def test_class_names_must_be_as_many_as_the_outputs(tmp_path: Path) -> None:
    path = tmp_path / "mislabeled.safetensors"
    metadata = ModelMetadata(model="resnest14", classes=("a", "b"), preprocessing=PREPROCESSING)
    write_checkpoint(path, network().state_dict(), metadata)
    with pytest.raises(WeightsError, match=r"each of its 6 classes, it names 2"):
        Classifier(weights=path)


def test_warming_up_changes_nothing(classifier: Classifier) -> None:
    before = classifier.predict(PHOTOGRAPHS[0])
    classifier.engine.warm_up(2, classifier.preprocessing)
    assert classifier.predict(PHOTOGRAPHS[0]) == before
    assert classifier.engine.name.startswith("torch ")


def test_an_image_whose_logits_are_not_finite_is_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier = Classifier(engine="onnxruntime")
    run = classifier.engine.run

    def faulty(*arguments: Any) -> Any:
        logits = run(*arguments)
        logits[1, 3] = np.inf
        logits[2, 0] = np.nan
        return logits

    monkeypatch.setattr(classifier.engine, "run", faulty)
    paths = [str(path) for path in sample_photographs()]
    results = list(classifier.predict_stream(paths, topk=1))
    for index in (1, 2):
        assert isinstance(results[index], ImageError)
        assert str(results[index]).startswith(f"{paths[index]}: the network gives NaN or infinite")
    labels = [results[index][0].label for index in (0, 3, 4)]
    monkeypatch.undo()
    assert labels == [classifier.predict(paths[index], topk=1)[0].label for index in (0, 3, 4)]
