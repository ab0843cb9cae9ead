"""Several labels per image, from a CSV file through training and export to predictions."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import splitattn
from splitattn import exporting
from splitattn.architectures import ARCHITECTURES
from splitattn.cli import main
from splitattn.data.calibration import package_photographs
from splitattn.data.sources import open_data
from splitattn.engines.engine import FileSettings
from splitattn.errors import DataError, InputError
from splitattn.opening import open_weights
from splitattn.teachers import open_teacher
from splitattn.training.multi_label import MultiLabel
from splitattn.training.recipe_files import load_recipe
from splitattn.training.recipes import Recipe
from splitattn.weights.metadata import ModelMetadata, read_metadata
from splitattn.workflows import NetworkLabelScores
from tests.data.datasets import CLASSES, marked_picture, write_image_folder, write_marked_pictures
from tests.training.runs import ARCHITECTURE

SETTINGS = (
    *("train_size=32", "test_size=32", "batch_size=16", "epochs=6", "warmup_epochs=1"),
    *("mixup_alpha=0", "crop_scale=0.9", "learning_rate=1.0"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    return write_marked_pictures(folder / "data", train=64, val=16)


@pytest.fixture(scope="module", autouse=True)
def small() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
        yield


@pytest.fixture(scope="module")
def run(data: Path, folder: Path) -> splitattn.TrainingResult:
    return splitattn.train(
        data, folder / "run", model="small", recipe="plain", overrides=SETTINGS, workers=0
    )


def verb(*arguments: object) -> int:
    try:
        main([*map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_training_learns_each_class_and_the_file_says_so(run: splitattn.TrainingResult) -> None:
    assert set(run.figures) == {"loss", "map", "f1"}
    assert run.figures["map"] > 95
    assert run.figures["f1"] > 85
    assert run.summary.startswith(f"mAP {run.figures['map']:.2f} %, F1 ")
    metadata = read_metadata(run.weights)
    assert metadata is not None
    assert (metadata.task, metadata.activation) == ("classification", "sigmoid")
    assert metadata.metrics == {**run.figures, "n": 16}
    report = run.report.read_text()
    assert "binary cross-entropy" in report
    assert all(f"<td>{name}</td>" in report or name in report for name in CLASSES)
    with pytest.raises(InputError, match="activation must be one of softmax, sigmoid, got 'tanh'"):
        replace(metadata, activation="tanh")
    assert ModelMetadata.from_json(metadata.to_json()) == metadata


def test_every_label_above_the_threshold_is_predicted(
    run: splitattn.TrainingResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = splitattn.Classifier(weights=run.output)
    assert classifier.activation == "sigmoid"
    every = classifier.predict(marked_picture([0, 2], 500), threshold=0)
    assert {each.label for each in every} == set(CLASSES)
    given = classifier.predict(marked_picture([0, 2], 500))
    assert {each.label for each in given} == {"blue", "red"}
    assert sum(each.probability for each in given) > 1
    assert [each.probability for each in given] == [each.probability for each in every[:2]]
    assert classifier.predict(marked_picture([], 501), threshold=1) == []
    assert len(classifier.predict(marked_picture([0, 1, 2], 502), topk=1)) == 1
    explained = classifier.explain(marked_picture([0, 2], 500), given[1].label)
    assert explained.probability == pytest.approx(given[1].probability, abs=1e-4)

    marked_picture([0, 2], 500).save(tmp_path / "two.png")
    marked_picture([], 501).save(tmp_path / "none.png")
    paths = (tmp_path / "two.png", tmp_path / "none.png")
    assert verb("predict", *paths, "--weights", run.output, "--draw", tmp_path / "drawn") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(paths[0])
    assert {line.split("%")[1].strip() for line in lines[1:3]} == {"blue", "red"}
    assert lines[3:] == [f"{paths[1]}  (no label)"]
    assert len(list((tmp_path / "drawn").iterdir())) == 2
    for how in ("json", "csv"):
        assert verb("predict", *paths, "--weights", run.output, "--format", how) == 0
        lines = capsys.readouterr().out.splitlines()
        if how == "json":
            assert [len(json.loads(line)["predictions"]) for line in lines] == [2, 0]
        else:
            rows = [*csv.DictReader(lines)]
            assert [Path(row["path"]).stem for row in rows] == ["two", "two", "none"]
            assert rows[2]["label"] == rows[2]["error"] == ""
    assert verb("predict", paths[0], "--threshold", 0.5) == 2
    assert "a threshold is for weights that give several labels" in capsys.readouterr().err


def test_evaluate_gives_the_same_figures_for_the_run_and_its_export(
    run: splitattn.TrainingResult,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = tmp_path / "answers.csv"
    arguments = ("--workers", 1, "--json", "--answers", answers)
    assert verb("evaluate", data, "--weights", run.output, *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 16
    for name in ("map", "f1", "loss"):
        assert found[name] == pytest.approx(run.figures[name], rel=1e-4)
    with answers.open(newline="") as file:
        rows = {Path(row["image"]).stem: row for row in csv.DictReader(file)}
    assert rows["64"]["labels"] == ""
    assert rows["71"]["labels"] == "blue|green|red"
    assert len(rows["71"]["probabilities"].split("|")) == len(rows["71"]["guesses"].split("|"))

    exported = tmp_path / "net.onnx"
    assert verb("export", exported, "--weights", run.output) == 0
    capsys.readouterr()
    assert verb("evaluate", data, "--weights", exported, "--workers", 1, "--threshold", 0.9) == 0
    out = capsys.readouterr().out
    assert f"mAP {found['map']:.2f} %" in out
    assert "(at 0.9)" in out
    measured = splitattn.evaluate(str(data), weights=exported)
    assert isinstance(measured, NetworkLabelScores)
    assert measured.guessed.tolist() == [
        sum(name in row["guesses"].split("|") for row in rows.values()) for name in CLASSES
    ]


def test_parity_is_that_of_sigmoids(run: splitattn.TrainingResult) -> None:
    network = open_weights(weights=run.output)
    engine = network.load("onnxruntime", "cpu")

    class Shifted(type(engine)):  # type: ignore[misc]
        def logits(self, images_BCHW: Any) -> Any:
            return super().logits(images_BCHW) + 1  # an offset changes no softmax, but all sigmoids

    settings, images = FileSettings(metadata=network.metadata), package_photographs(3)
    assert exporting._parity(network, engine, images, settings).absolute < 1e-5
    engine.__class__ = Shifted
    assert exporting._parity(network, engine, images, settings).absolute > 0.05


def test_single_label_and_multi_label_data_and_settings_are_not_mixed(
    run: splitattn.TrainingResult, data: Path, tmp_path: Path
) -> None:
    folders = write_image_folder(tmp_path / "folders", train=2, val=1)
    with pytest.raises(DataError, match=r"which is several labels, got one in .*folders"):
        splitattn.evaluate(str(folders), weights=run.output)
    with pytest.raises(InputError, match="a teacher must give each image one label"):
        open_teacher(str(run.output), imitation="logits", device="cpu")
    for setting in ("label_smoothing=0.1", "class_weights=balanced", "sampling=balanced"):
        with pytest.raises(InputError, match=rf"{setting.split('=')[0]} must be .* several labels"):
            splitattn.train(data, tmp_path / "new", overrides=[setting])
    with pytest.raises(DataError, match=r"got classification for .* with several labels"):
        splitattn.train(data, tmp_path / "new", overrides=["task=classification"])
    with pytest.raises(DataError, match="which is one label, got several in "):
        splitattn.evaluate(str(data), model="small", weights=_plain(tmp_path, folders))


def _plain(folder: Path, data: Path) -> Path:
    small = ("train_size=32", "test_size=32", "batch_size=4", "epochs=1", "warmup_epochs=0")
    return splitattn.train(
        data, folder / "plain", model="small", recipe="plain", overrides=small, workers=0
    ).output


@pytest.mark.parametrize("name", ["plain", "modern", "finetune", "tiny"])
def test_presets_do_not_smooth_several_labels(name: str) -> None:
    recipe = load_recipe(name, task="multi-label", model="resnest50")
    assert (recipe.task, recipe.label_smoothing) == ("multi-label", 0)
    one = load_recipe(name, model="resnest50")
    assert replace(one, task="multi-label", label_smoothing=0) == recipe


def test_the_loss_is_summed_over_classes_and_counts_give_f1(data: Path) -> None:
    images = open_data(str(data), "train")
    task = MultiLabel(model="small", train=images, val=images)
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3), (torch.rand(5, 3) > 0.4).float()
    probabilities = logits.sigmoid()
    expected = -(targets * probabilities.log() + (1 - targets) * (1 - probabilities).log())
    loss = task.loss(logits, targets, Recipe(task="multi-label", label_smoothing=0.0))
    torch.testing.assert_close(loss, expected.sum(1).mean())
    guessing = task.loss(torch.zeros(5, 3), targets, Recipe(label_smoothing=0.0))
    assert guessing.item() == pytest.approx(task.loss_of_guessing)
    counts = {name: float(value) for name, value in task.counts(logits, targets).items()}
    taken = F.threshold(logits, 0, 0) > 0
    found = (taken & (targets > 0)).sum()
    means = task.means({**counts, "loss": 10.0}, 5)
    assert means["loss"] == 2
    assert means["f1"] == pytest.approx(float(200 * found / (taken.sum() + targets.sum())))
