"""`splitattn.train`: the choice of model and weights, and the result."""

from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from torch import nn

import splitattn
from splitattn import launch
from splitattn.architectures import ARCHITECTURES
from splitattn.convert import convert
from splitattn.data.folds import Fold, split_off
from splitattn.data.sources import open_data
from splitattn.dense.detectors import DETECTION_HEADS
from splitattn.dense.masks import open_masked
from splitattn.dense.open import open_annotated
from splitattn.dense.segmenters import SEGMENTATION_HEADS
from splitattn.errors import DataError, InputError, WeightsError
from splitattn.opening import open_weights
from splitattn.preprocessing import Preprocessing, center_crop
from splitattn.training import classification, loop
from splitattn.training.log import WeightsAndBiases
from splitattn.training.recipes import DetectionHeadName, SegmentationHeadName, TaskName
from splitattn.training.run import Run
from splitattn.training.task import Measurement, Task
from splitattn.weights.catalogue import embedded_entry
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import read_metadata
from splitattn.workflows import NetworkEvaluation
from tests.data.datasets import write_image_folder
from tests.dense.datasets import write_coco, write_masked_splits, write_splits
from tests.training.runs import ARCHITECTURE

SMALL = ("train_size=32", "test_size=32", "batch_size=4", "epochs=1", "warmup_epochs=0")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "data", train=2, val=1)


def test_one_call_trains_and_the_next_starts_from_its_folder(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    checked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        classification, "check_classes_have_images", lambda *given: checked.append(given[1:])
    )
    texts: list[str] = []
    run = splitattn.train(
        data,
        tmp_path / "run",
        model="small",
        recipe="plain",
        overrides=SMALL,
        workers=0,
        batch_per_device=2,
        on_epoch=lambda epoch: texts.append(epoch.text),
    )
    assert isinstance(run, splitattn.TrainingResult)
    assert checked == [(3, None)], "each class is decoded once, with the recipe's white level"
    assert run.weights == tmp_path / "run" / "model.safetensors"
    for path in (run.weights, run.best_weights, run.report):
        assert path.is_file()
    assert set(run.figures) == {"loss", "top1", "top5"}
    assert run.details.n == 3
    assert run.summary == f"top-1 {run.figures['top1']:.2f} %, top-5 100.00 % of 3 images"
    assert texts[0].startswith("32 px  loss ")
    assert "batch_per_device = 2\n" in (tmp_path / "run" / "recipe.toml").read_text()
    metadata = read_metadata(run.weights)
    assert metadata is not None
    assert metadata.metrics == {**run.figures, "n": 3}
    # Both the run's folder and its checkpoint can be opened as weights.
    for weights in (run.output, run.output / "last.pt"):
        opened = open_weights(weights=weights)
        assert opened.metadata.classes == metadata.classes
        assert set(opened.tensors) == set(ARCHITECTURE.shapes(3))
    converted = convert(run.output, tmp_path / "backbone.pth", to="mmdet")
    assert converted.models == ("small",)

    # The weights name their model.
    tuned = splitattn.train(
        data, tmp_path / "tuned", weights=run.weights, overrides=SMALL, workers=0
    )
    metadata = read_metadata(tuned.weights)
    assert metadata is not None
    assert metadata.model == "small"
    assert metadata.recipe["pretrained"]
    # Resuming looks for no weights.
    again = splitattn.train(
        data, tmp_path / "tuned", model="small", overrides=SMALL, workers=0, resume=True
    )
    assert again.figures == tuned.figures


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Task[Any], Run]]:
    """Replaces training by a list of its arguments: the network, the task and the run."""
    seen: list[tuple[Any, Task[Any], Run]] = []

    def stop(network: nn.Module, task: Task[Any], run: Run, **_: object) -> Measurement:
        seen.append((network, task, run))
        return Measurement(figures={"loss": 0.0}, details=type("Evaluation", (), {"n": 0}))

    monkeypatch.setattr(loop, "train", stop)
    return seen


def test_fine_tuning_starts_from_the_embedded_weights_unless_something_is_named(
    tmp_path: Path, data: Path, started: list[tuple[Any, Any, Run]]
) -> None:
    splitattn.train(data, tmp_path / "run", overrides=["batch_size=4"])
    [(network, task, run)] = started
    entry = embedded_entry()
    assert task.model == entry.model
    assert run.recipe.pretrained
    trained = splitattn.create_model(entry.model, weights=entry.tag)
    assert torch.equal(network.layer4[0].conv1.weight, trained.layer4[0].conv1.weight)
    assert network.num_classes == 3


def test_other_recipes_start_at_random_and_with_resnest50(
    tmp_path: Path, data: Path, started: list[tuple[Any, Any, Run]]
) -> None:
    overrides = ["batch_size=4", "batch_per_device=2"]
    splitattn.train(data, tmp_path / "run", recipe="plain", overrides=overrides)
    [(network, task, run)] = started
    assert task.model == "resnest50"
    assert run.batch_per_device == 2
    assert not run.recipe.pretrained
    assert not network.layer4[0].bn3.weight.any()  # zero, as initialized


def test_a_file_may_say_that_training_starts_from_weights(
    tmp_path: Path, data: Path, started: list[tuple[Any, Any, Run]]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("pretrained = true\nbatch_size = 4\n")
    splitattn.train(data, tmp_path / "run", recipe=str(path))
    [(network, task, _)] = started
    assert task.model == embedded_entry().model
    assert network.layer4[0].bn3.weight.any()


def test_training_prepares_images_as_the_weights_expect(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    arguments: dict[str, Any] = {"recipe": "plain", "workers": 0}
    own = ("test_crop_fraction=0.8", "test_order=resize-crop", "test_interpolation=bilinear")
    own += ("mean=[0.5, 0.5, 0.5]", "std=[0.25, 0.5, 1]")
    first = splitattn.train(
        data, tmp_path / "first", model="small", overrides=(*SMALL, *own), **arguments
    )
    again: dict[str, Any] = {"weights": first.output, "overrides": SMALL, **arguments}
    tuned = splitattn.train(data, tmp_path / "tuned", **again)
    found = [read_metadata(run.weights) for run in (first, tuned)]
    expected = Preprocessing(
        size=32,
        crop_fraction=0.8,
        interpolation="bilinear",
        order="resize-crop",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.5, 1.0),
    )
    assert [metadata.preprocessing for metadata in found if metadata] == [expected, expected]
    # Resuming needs neither the weights nor these settings.
    done = splitattn.train(
        data, tmp_path / "tuned", model="small", overrides=SMALL, resume=True, **arguments
    )
    assert done.figures == tuned.figures


@pytest.mark.parametrize(
    ("trained", "warning"),
    [
        (("blue", "green", "red"), ""),
        (("blue, azure", "green", "red"), ""),
        (("0", "1", "2"), ""),
        (("cat", "dog"), ""),  # that the classifier is new is expected
        (("cat", "dog", "cow"), "('cat', the data set has 'blue'): it is kept as a start"),
        (("blue", "red", "green"), "('red', the data set has 'green'): it is kept as a start"),
    ],
)
def test_a_classifier_of_other_classes_is_not_kept_without_a_word(
    tmp_path: Path,
    data: Path,
    started: list[tuple[Any, Any, Run]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trained: tuple[str, ...],
    warning: str,
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    first = splitattn.ResNeSt(ARCHITECTURE, num_classes=len(trained))
    nn.init.ones_(first.fc.weight)
    metadata = splitattn.ModelMetadata(
        model="small", classes=trained, preprocessing=center_crop(32)
    )
    splitattn.save_pretrained(first, tmp_path / "first", metadata=metadata)
    arguments: dict[str, Any] = {"weights": tmp_path / "first", "recipe": "plain"}
    splitattn.train(data, tmp_path / "run", overrides=SMALL, **arguments)
    said = [record.message for record in caplog.records if "classifier" in record.message]
    assert len(said) == bool(warning)
    assert all(warning in line for line in said)
    caplog.clear()
    splitattn.train(data, tmp_path / "run", overrides=SMALL, new_classifier=True, **arguments)
    assert not any("kept" in record.message for record in caplog.records)
    kept, new = (torch.equal(network.fc.weight, first.fc.weight) for network, _, _ in started)
    assert kept == (len(trained) == 3)
    assert not new


def test_a_detectors_classes_are_not_compared_with_those_of_a_classifier(
    tmp_path: Path,
    data: Path,
    started: list[tuple[Any, Any, Run]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Weights give a detector only its backbone, so no classifier is kept."""
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    metadata = splitattn.ModelMetadata(
        model="small",
        classes=("red", "green", "blue"),
        preprocessing=center_crop(32),
        task="detection",
    )
    first = splitattn.ResNeSt(ARCHITECTURE, num_classes=0)
    path = tmp_path / "detector.safetensors"
    write_checkpoint(path, {f"backbone.{k}": v for k, v in first.state_dict().items()}, metadata)
    splitattn.train(data, tmp_path / "run", weights=path, recipe="plain", overrides=SMALL)
    assert not any("kept" in record.message for record in caplog.records)
    assert len(started) == 1


def test_without_a_validation_split_a_fifth_of_each_class_is_held_out(
    tmp_path: Path,
    started: list[tuple[Any, Any, Run]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    data = write_image_folder(tmp_path / "data", train=10, val=1)
    arguments: dict[str, Any] = {"model": "small", "recipe": "plain", "overrides": SMALL}
    splitattn.train(data / "train", tmp_path / "run", **arguments)
    assert "validating on a fifth of each class" in caplog.text
    splitattn.train(data, tmp_path / "run", fold="1/5", **arguments)
    splitattn.train(data, tmp_path / "run", fold="2/5", **arguments)
    alone, first, second = (task for _, task, _ in started)
    for task in (alone, first, second):
        assert Counter(task.train.labels) == {0: 8, 1: 8, 2: 8}
        assert Counter(task.val.labels) == {0: 2, 1: 2, 2: 2}
        assert {*task.train.names}.isdisjoint(task.val.names)
    assert [*alone.val.names] == [*first.val.names]
    assert {*first.val.names}.isdisjoint(second.val.names)
    with pytest.raises(InputError, match="a fold must be K/N, such as 1/5, got '5'"):
        splitattn.train(data, tmp_path / "run", fold="5", **arguments)


def test_a_run_is_evaluated_on_the_images_that_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    data = write_image_folder(tmp_path / "data", train=10, val=1)
    run = splitattn.train(
        data,
        tmp_path / "run",
        model="small",
        recipe="plain",
        overrides=[*SMALL, "seed=3"],
        fold="2/5",
        workers=0,
    )
    _, kept = split_off(open_data(str(data), "train"), Fold(number=2, of=5), seed=3)
    names: list[str] = []
    measured = splitattn.evaluate(
        str(data), weights=run.output, held_out=True, on_answer=lambda each: names.append(each.name)
    )
    assert names == [*kept.names]
    assert isinstance(measured, NetworkEvaluation)
    assert measured.split == "fold 2/5"
    assert (measured.n, measured.top1) == (6, run.figures["top1"])
    assert "trained on" not in caplog.text
    # The run has not seen this validation split.
    splitattn.evaluate(str(data), weights=run.output)
    assert "trained on" not in caplog.text
    splitattn.evaluate(data / "train", weights=run.output)
    assert "most of these images were trained on; --held-out measures" in caplog.text

    moved = data.rename(tmp_path / "moved")
    again = splitattn.evaluate(str(moved), weights=run.best_weights, held_out=True)
    assert isinstance(again, NetworkEvaluation)
    assert again.confusion.tolist() == measured.confusion.tolist()
    with pytest.raises(InputError, match="leave out --split test"):
        splitattn.evaluate(str(moved), weights=run.output, held_out=True, split="test")
    next((moved / "train").glob("*/*")).unlink()
    with pytest.raises(DataError, match=r"got others in .*moved/train \(29 images\)"):
        splitattn.evaluate(str(moved), weights=run.output, held_out=True)
    plain = splitattn.train(
        moved, tmp_path / "plain", model="small", recipe="plain", overrides=SMALL, workers=0
    )
    with pytest.raises(DataError, match="these weights record none: use --split"):
        splitattn.evaluate(str(moved), weights=plain.output, held_out=True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"output": 5}, "output must be a name or a path, got 5"),
        ({"recipe": {"epochs": 1}}, "recipe must be a name or a path, got {'epochs': 1}"),
        ({"overrides": [("epochs", 1)]}, r"overrides must be like 'epochs=2', got \('epochs', 1"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"workers": "2"}, "workers must be a whole number, got '2'"),
        ({"device": 0}, "device must be a name, got 0; did you mean 'cuda:0'"),
        ({"weights": 5}, "weights must be a name or a path, got 5"),
        ({"fold": 5}, "a fold must be K/N, such as 1/5, got 5"),
        ({"on_epoch": 5}, "on_epoch must be a function, got 5"),
        ({"loggers": 5}, "loggers must be a list of objects with add and close, got 5"),
        ({"loggers": [WeightsAndBiases]}, r"got the class WeightsAndBiases: call it, as in Weig"),
        ({"loggers": ["mlflow"]}, r"objects with add and close, got \['mlflow'\]"),
    ],
)
def test_arguments_of_other_types_are_reported_in_one_line(
    tmp_path: Path, data: Path, arguments: dict[str, Any], complaint: str
) -> None:
    given: dict[str, Any] = {"output": tmp_path / "run", "overrides": SMALL} | arguments
    with pytest.raises(InputError, match=complaint):
        splitattn.train(data, **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("teacher=run", "teacher does nothing for classification, got 'run': add --recipe distill"),
        ("label_weight=0.3", r"label_weight does nothing for .* got 0\.3: add --recipe distill"),
        ("mosaic=0.5", r"mosaic does nothing for classification, got 0\.5: leave it out"),
        ("head=fpn", "head does nothing for classification, got 'fpn': leave it out"),
    ],
)
def test_fields_that_the_task_does_not_read_are_refused(
    tmp_path: Path, data: Path, override: str, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        splitattn.train(data, tmp_path / "run", overrides=[*SMALL, override])
    assert not (tmp_path / "run").exists()


def test_the_output_is_no_part_of_the_data_set(data: Path) -> None:
    flat = data / "train"  # class folders without splits
    label = next(flat.iterdir())
    for given, output in (
        *((data, data), (flat, flat), (flat, flat / "run"), (data, flat / "run")),
        *(
            (flat, label / "run"),
            (data, label / "new" / "run"),
            (data, data / "val" / "run"),
            (data, data / "Test"),
        ),
    ):
        with pytest.raises(InputError, match="output must be a folder outside the data set"):
            splitattn.train(given, output, overrides=SMALL)
    assert {path.name for path in flat.iterdir()} == set(open_data(str(data), "train").classes)


def test_the_output_is_no_part_of_annotated_or_unlabeled_images(tmp_path: Path) -> None:
    boxes = write_splits(tmp_path / "boxes", train=1, val=1)
    masks = write_masked_splits(tmp_path / "masks", train=1, val=1)
    folders = {
        "boxes": open_annotated(boxes, "val").images[0].parent,
        "masks": open_masked(masks, "train").images[0].parent,
    }
    for data, output in (
        *((boxes, boxes), (boxes, folders["boxes"] / "run")),
        *((masks, masks), (masks, folders["masks"] / "a" / "run")),
    ):
        with pytest.raises(InputError, match="output must be a folder outside the data set"):
            splitattn.train(data, output)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (40, 40)).save(pictures / f"{name}.png")
    teacher = ["teacher=resnest26_tiny"]
    with pytest.raises(InputError, match="output must be a folder outside the data set"):
        splitattn.train(pictures, pictures / "a" / "run", recipe="distill", overrides=teacher)
    for folder in (boxes, masks, pictures):
        assert not list(folder.glob("**/run"))


def test_folds_are_for_classification(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data", "train", 1)
    with pytest.raises(InputError, match="--fold is for classification, got 1/5 for detection"):
        splitattn.train(data, tmp_path / "run", fold="1/5")


def test_the_network_is_built_as_the_recipe_says(
    tmp_path: Path, data: Path, started: list[tuple[Any, Any, Run]]
) -> None:
    overrides = ["batch_size=4", "drop_path=0.2", "dropout=0.5"]
    splitattn.train(data, tmp_path / "run", model="resnest14", recipe="plain", overrides=overrides)
    [(network, _, _)] = started
    assert network.drop.p == 0.5
    assert network.layer4[-1].drop_path.p == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            {"model": "resnest50_fast_0s1x64d"},
            WeightsError,
            "no weights of resnest50_fast_0s1x64d are published",
        ),
        (
            {"recipe": "plain", "overrides": ["frozen_stages=1"]},
            InputError,
            "frozen_stages must be 0 without weights, got 1",
        ),
        ({"model": "resnet50"}, InputError, "did you mean 'resnest50'"),
        ({"recipe": "finetun"}, InputError, "did you mean 'finetune'"),
        ({"device": "quantum"}, InputError, "device 'quantum' cannot be used"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, data: Path, arguments: dict[str, Any], kind: type[InputError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        splitattn.train(data, tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_every_task_that_a_recipe_may_name_is_in_the_table() -> None:
    assert set(launch.TASKS) == set(get_args(TaskName))


def test_every_head_that_a_recipe_may_name_is_in_a_table() -> None:
    assert tuple(DETECTION_HEADS) == get_args(DetectionHeadName)
    assert tuple(SEGMENTATION_HEADS) == get_args(SegmentationHeadName)
