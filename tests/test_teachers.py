"""Teachers are our weights, exported files or timm's models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import splitattn
from splitattn import libraries, teachers
from splitattn.architectures import ARCHITECTURES
from splitattn.create import create_model
from splitattn.engines.pytorch import TorchEngine
from splitattn.errors import InputError, WeightsError
from splitattn.opening import open_weights
from splitattn.preprocessing import Preprocessing
from splitattn.teachers import open_teacher
from splitattn.training.teacher import Teacher
from splitattn.training_plan import plan_training
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata, read_metadata
from tests.data.datasets import CLASSES, write_class_folders
from tests.hub_server import Hub, stop_server
from tests.training.runs import ARCHITECTURE

LOOK = Preprocessing(size=40, crop_fraction=0.8, mean=(0.4, 0.5, 0.6))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = create_model(ARCHITECTURE, num_classes=3)
    path = tmp_path / "weights" / "mine.safetensors"
    path.parent.mkdir()
    metadata = ModelMetadata(model="small", classes=CLASSES, preprocessing=LOOK)
    write_checkpoint(path, network.state_dict(), metadata)
    return path


def logits(teacher: Teacher) -> np.ndarray[Any, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 40), np.uint8)
    return teacher.for_logits().run(pixels, teacher.preprocessing)


def test_our_weights_teach_with_logits_or_with_their_classifier(weights: Path) -> None:
    network = create_model("small", weights=weights).eval()
    expected = TorchEngine(network, torch.device("cpu"))
    answers = [open_teacher(str(weights), imitation=i) for i in ("logits", "features")]
    for teacher in answers:
        assert (teacher.name, teacher.classes) == ("small (mine.safetensors)", CLASSES)
        assert teacher.preprocessing == LOOK
        reference = Teacher(name="", classes=CLASSES, preprocessing=LOOK, engine=expected)
        np.testing.assert_allclose(logits(teacher), logits(reference), atol=1e-4)
    assert answers[0].classifier is None
    crops = torch.zeros(1, 3, 64, 64)
    assert answers[0].answer(crops).shape == (1, 3)
    assert answers[1].answer(crops).shape == (1, 512)  # the pooled features


def test_an_exported_file_teaches_with_logits_alone(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.onnx"
    splitattn.export(path, weights=weights)
    teacher = open_teacher(str(path))
    assert (teacher.name, teacher.classes, teacher.preprocessing) == ("mine.onnx", CLASSES, LOOK)
    np.testing.assert_allclose(logits(teacher), logits(open_teacher(str(weights))), atol=1e-4)
    with pytest.raises(InputError, match="got device 'mps'"):
        open_teacher(str(path), device="mps")
    with pytest.raises(InputError, match=r"exported file .* does not give; pass the weights"):
        open_teacher(str(path), imitation="features")


def write_timm_folder(folder: Path, name: str, *, count: int = 3, **config: Any) -> Any:
    """Write a folder in the layout of timm's repositories; returns its model."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=count).eval()
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    look = {"mean": [0.1, 0.2, 0.3], "std": [0.5] * 3, "crop_pct": 0.9, "crop_mode": "center"}
    look |= {"input_size": [3, 40, 40], "interpolation": "bilinear", "num_classes": count}
    described = {"architecture": name, "num_classes": count, "pretrained_cfg": look | config}
    (folder / "config.json").write_text(json.dumps(described))
    return model


def test_a_timm_model_teaches_as_its_configuration_says(tmp_path: Path) -> None:
    model = write_timm_folder(tmp_path / "folder", "resnet10t", label_names=["a", "b", "c"])
    name = f"timm:local-dir:{tmp_path / 'folder'}"
    plain, reused = (open_teacher(name, imitation=how) for how in ("logits", "features"))
    expected = Preprocessing(
        size=40,
        crop_fraction=0.9,
        interpolation="bilinear",
        order="resize-crop",
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.5, 0.5),
    )
    reference = TorchEngine(model, torch.device("cpu"))
    for teacher in (plain, reused):
        assert (teacher.classes, teacher.preprocessing) == (("a", "b", "c"), expected)
        same = replace(plain, engine=reference)
        np.testing.assert_allclose(logits(teacher), logits(same), atol=1e-4)
    assert reused.answer(torch.zeros(1, 3, 40, 40)).shape == (1, 512)


@pytest.mark.parametrize("name", ["resnet18", "resnet18.tv_in1k"])
def test_a_timm_model_that_exists_gets_no_other_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr(teachers, "fetch_repository", fail)
    with pytest.raises(InputError, match=r"cannot be had from timm: no network$"):
        open_teacher(f"timm:{name}")


@pytest.mark.parametrize("name", ["resnet10t", "resnet10t.c3_in1k", "hf-hub:owner/cats"])
def test_a_timm_model_comes_from_the_hub_or_its_cache_or_is_refused_at_once(
    name: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm itself would wait a minute for a hub that cannot be reached."""
    model = write_timm_folder(tmp_path / "own", "resnet10t", count=1000)
    files = {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir()}
    if not name.startswith("hf-hub:"):
        hub.add("timm/resnet10t.c3_in1k", {"model.safetensors": files["model.safetensors"]})
    hub.add("owner/cats", files)
    teacher = open_teacher(f"timm:{name}")
    expected = replace(teacher, engine=TorchEngine(model, torch.device("cpu")))
    np.testing.assert_allclose(logits(teacher), logits(expected), atol=1e-4)
    asked = len(hub.requests)
    stop_server(hub, monkeypatch)
    np.testing.assert_array_equal(logits(open_teacher(f"timm:{name}")), logits(teacher))
    assert len(hub.requests) == asked
    for other in ("resnet18", "hf-hub:owner/dogs"):
        with pytest.raises(WeightsError, match=r"^\S+ is not in the cache and its server cannot"):
            open_teacher(f"timm:{other}")


def test_a_timm_model_that_cannot_be_used_is_reported_in_one_line(tmp_path: Path) -> None:
    write_timm_folder(tmp_path / "squashed", "resnet10t", crop_mode="squash")
    with pytest.raises(InputError, match="crop_mode must be 'center', got 'squash'"):
        open_teacher(f"timm:local-dir:{tmp_path / 'squashed'}")
    # The classifier of dla46x_c is a convolution.
    write_timm_folder(tmp_path / "other", "dla46x_c", input_size=[3, 64, 64])
    with pytest.raises(InputError, match="one dense layer behind the teacher's pooled features"):
        open_teacher(f"timm:local-dir:{tmp_path / 'other'}", imitation="features")


def test_one_call_distills_and_leaves_an_ordinary_folder(weights: Path, tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    write_class_folders(photographs / "2024", 2)
    run = splitattn.train(
        photographs,
        tmp_path / "run",
        model="small",
        recipe="distill",
        overrides=[
            f"teacher={weights}",
            "imitation=features",
            *("pretrained=false", "epochs=1", "warmup_epochs=0", "batch_size=2"),
            *("train_size=32", "first_train_size=32", "test_size=32"),
        ],
        workers=0,
    )
    assert run.figures.keys() == {"agreement"}
    assert run.summary == f"agreement {run.figures['agreement']:.2f} % of 1 images"
    metadata = read_metadata(run.weights)
    assert metadata is not None
    assert metadata.preprocessing == replace(LOOK, size=32)
    assert metadata.classes == CLASSES
    assert metadata.origin == {
        "teacher": "small (mine.safetensors)",
        "data": "photographs, 5 images",
    }
    assert metadata.recipe["teacher"] == "small (mine.safetensors)"
    assert set(open_weights(weights=run.output).tensors) == set(ARCHITECTURE.shapes(3))


def test_a_teacher_of_timm_without_timm_is_refused_with_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folders(tmp_path / "data", 2)
    monkeypatch.setattr(libraries, "installed", lambda name: name != "timm")
    refused = pytest.raises(InputError, match=r"teacher of timm needs timm, .*: pip install timm")
    with refused:
        open_teacher("timm:resnet50")
    with refused:
        plan_training(
            tmp_path / "data",
            tmp_path / "run",
            recipe="distill",
            overrides=["teacher=timm:resnet50"],
        )


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (None, InputError, "needs a teacher, got none; add --set teacher="),
        ("resnest5000", WeightsError, "neither a tag"),
        ("nowhere/model.safetensors", WeightsError, "neither a tag"),
        ("timm:resnet5O", InputError, "cannot be had from timm: .*did you mean 'resnet50"),
    ],
)
def test_a_missing_teacher_is_reported_in_one_line(
    name: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        open_teacher(name)
    assert "\n" not in str(raised.value)
