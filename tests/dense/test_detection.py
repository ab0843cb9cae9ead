"""A detector learns, resumes bit for bit, and needs only its file to find objects."""

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image

from splitattn import launch
from splitattn.architectures import ARCHITECTURES
from splitattn.classifier import Classifier
from splitattn.cli import main
from splitattn.create import create_backbone
from splitattn.dense.detector import Detector
from splitattn.dense.detectors import create_detector
from splitattn.dense.finding import find
from splitattn.dense.heads import load_head
from splitattn.dense.resizing import Sides
from splitattn.dense.torch_finding import TorchFinder
from splitattn.engines.pytorch import full_precision
from splitattn.errors import DataError, ImageError, InputError, WeightsError
from splitattn.training.loop import train
from splitattn.training.recipe_files import load_recipe
from splitattn.training.task import Measurement, Step
from splitattn.weights.checkpoint import read_by_own_keys, write_checkpoint
from splitattn.weights.metadata import read_metadata
from splitattn.workflows import evaluate
from tests.dense.datasets import CLASSES, picture, write_splits
from tests.dense.runs import ARCHITECTURE, CHANNELS, RECIPE, make_run, make_task, network, spoil
from tests.examples import blocks

# Rectangles that do not overlap, in an image of another size than the training images.
RECTANGLES = [(10, 16, 46, 54, 2), (76, 30, 114, 66, 0)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Measurement]]:
    """The output folder of a training, and its last measurement."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
        task = make_task(folder, train=48)
        measured = train(network(), task, make_run(folder / "run"))
        yield folder / "run", measured


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "a [b].png"
    picture(RECTANGLES, (128, 96), 77).save(path)
    return path


def test_training_learns_and_its_file_finds_objects_alone(
    trained: tuple[Path, Measurement], photograph: Path
) -> None:
    run, measured = trained
    assert measured.figures["ap50"] >= 60
    metadata = read_metadata(run / "model.safetensors")
    assert metadata is not None
    assert metadata.classes == CLASSES
    assert metadata.metrics == {**measured.figures, "n": 4}
    assert metadata.recipe == json.loads(json.dumps(asdict(RECIPE)))
    assert metadata.head == {
        "name": "fcos",
        "category_ids": [10, 20, 30],
        "channels": CHANNELS,
        "short_side": 64,
        "long_side": 107,
    }
    found = Detector(weights=run).predict(photograph, score=0.2)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    for left, top, right, bottom, label in RECTANGLES:
        best = next(each for each in found if each.index == label)
        assert best.label == CLASSES[label]
        sides = [
            min(best.box[i + 2], far) - max(best.box[i], near)
            for i, near, far in ((0, left, right), (1, top, bottom))
        ]
        assert min(sides) > 0
        assert sides[0] * sides[1] > 0.5 * (right - left) * (bottom - top)


def test_the_log_has_every_loss_and_figure(trained: tuple[Path, Measurement]) -> None:
    run, _ = trained
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert len(epochs) == 2
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"]
    parts = ("classification", "bbox_regression", "bbox_ctrness")
    total = sum(epochs[0][f"train_loss_{name}"] for name in parts)
    assert total == pytest.approx(epochs[0]["train_loss"], rel=1e-5)
    assert {"val_ap", "val_ap50", "val_ap75", "val_ap_small", "size"} <= epochs[0].keys()


def test_the_report_shows_classes_and_the_worst_images(trained: tuple[Path, Measurement]) -> None:
    run, measured = trained
    page = (run / "report.html").read_text()
    keys = re.findall(r'class="key[^>]*>(\w+)</span></span></figcaption>', page)
    assert keys == ["training", "validation", "validation", "training"]  # loss, AP, AP50, rate
    assert f"{measured.figures['ap']:.2f}<small> %" in page
    for name in CLASSES:
        assert f'<td class="name" title="{name}">' in page
    assert page.count("<meter") >= 2
    assert "Worst images" in page
    assert page.count('<img class="picture"') % 2 == 0
    encoded = re.findall(r'class="picture".*?;base64,(.*?)"', page)
    assert encoded
    for each in encoded:
        with Image.open(BytesIO(b64decode(each))) as picture:
            assert max(picture.size) == 320  # the images are smaller


def test_weights_of_a_detector_label_no_images(trained: tuple[Path, Measurement]) -> None:
    with pytest.raises(WeightsError, match=r"is for detection.*use splitattn predict"):
        Classifier(weights=trained[0])


def test_weights_of_a_classifier_find_no_objects() -> None:
    from splitattn.weights.cache import local_path
    from splitattn.weights.catalogue import embedded_entry

    path = local_path(embedded_entry())
    assert path is not None
    with pytest.raises(
        WeightsError, match=r"detector's weights, it is for classification: use splitattn\.Class"
    ):
        Detector(weights=path)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"name": "yolo"}, "head must be one of fcos"),
        ({"name": 1}, "must name its head"),
        ({"channels": 96}, "does not fit its own metadata"),
        ({"channels": 65}, "does not fit its own metadata"),
        ({"short_side": None}, "must have whole numbers as short_side"),
        ({"short_side": 9999}, "the short side must be"),
        ({"category_ids": [10]}, "category_ids must be 3 whole numbers"),
        ({"category_ids": [1, 2, "3"]}, "category_ids must be 3 whole numbers"),
    ],
)
def test_malformed_heads_are_refused(
    trained: tuple[Path, Measurement], change: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    path = trained[0] / "model.safetensors"
    metadata = read_metadata(path)
    assert metadata is not None
    metadata = replace(metadata, head={**metadata.head, **change})
    write_checkpoint(tmp_path / "a.safetensors", read_by_own_keys(path), metadata)
    with pytest.raises(InputError, match=rule):
        Detector(weights=tmp_path / "a.safetensors")


def test_scores_and_overlaps_are_limited(
    trained: tuple[Path, Measurement], photograph: Path
) -> None:
    detector = Detector(weights=trained[0], engine="torch")
    few, many = detector.predict(photograph, score=0.4), detector.predict(photograph, score=0.01)
    assert len(few) < len(many)
    assert few == many[: len(few)]
    assert all(each.score > 0.4 for each in few)
    strict = Detector(weights=trained[0], engine="torch", iou=0.1).predict(photograph, score=0.01)
    assert len(strict) < len(many)
    for options in ({"score": 1.5}, {"score": -0.1}):
        with pytest.raises(InputError, match="score must be 0 to 1"):
            detector.predict(photograph, **options)
    with pytest.raises(InputError, match="iou must be 0 to 1"):
        Detector(weights=trained[0], iou=2)


def test_a_broken_image_has_an_error_and_the_others_their_objects(
    trained: tuple[Path, Measurement], photograph: Path
) -> None:
    detector = Detector(weights=trained[0], engine="torch")
    first, broken, last = detector.predict_stream([photograph, b"no image", photograph], score=0.2)
    assert isinstance(broken, ImageError)
    assert first == last == detector.predict([photograph], score=0.2)[0]
    with pytest.raises(ImageError):
        detector.predict([photograph, b"no image"])


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_outputs_that_are_not_finite_are_an_error_and_not_an_empty_image(
    engine: str, trained: tuple[Path, Measurement], photograph: Path, tmp_path: Path
) -> None:
    spoil(trained[0] / "model.safetensors", "bbox_reg.weight", tmp_path / "nan.safetensors")
    detector = Detector(weights=tmp_path / "nan.safetensors", engine=engine)
    (found,) = detector.predict_stream([photograph])
    assert isinstance(found, ImageError)
    assert str(found).startswith(f"{photograph}: the network gives NaN or infinite numbers")


@pytest.mark.parametrize("key", ["backbone.body.bn1.running_mean", "cls_logits.weight"])
def test_weights_that_are_not_finite_are_refused(
    key: str, trained: tuple[Path, Measurement], tmp_path: Path
) -> None:
    """ONNX Runtime's ReLU would turn NaN into zeros, from which it would compute boxes."""
    weights = tmp_path / "nan.safetensors"
    spoil(trained[0] / "model.safetensors", key, weights, np.nan)
    refused = rf"has invalid numbers in \S*{key}"
    for engine in ("torch", "onnxruntime"):
        with pytest.raises(WeightsError, match=refused):
            Detector(weights=weights, engine=engine)
    tensors = read_by_own_keys(weights)
    with pytest.raises(WeightsError, match=refused):
        load_head("head", tensors, tensors, weights)


def test_threads_have_thresholds_of_their_own(
    trained: tuple[Path, Measurement], photograph: Path
) -> None:
    detector = Detector(weights=trained[0], engine="torch")
    scores = [0.0, 0.95] * 8
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda s: len(detector.predict(photograph, score=s)), scores))
    assert found[0] > found[1]
    assert found == found[:2] * 8


def status(arguments: list[str]) -> object:
    """Run the command line; returns its exit status."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code or 0


@pytest.mark.parametrize("option", ["--topk=3", "--threshold=0.5", "--white-level=4095"])
def test_options_of_classification_are_refused(
    option: str,
    trained: tuple[Path, Measurement],
    photograph: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = f"--weights={trained[0]}"
    assert status(["predict", str(photograph), weights, option]) == 2
    rule = f"error: {option.partition('=')[0]} is for classification, {trained[0]} is for detection"
    assert capsys.readouterr().err.startswith(rule)
    with pytest.raises(InputError, match="white_level is for classification: leave it out"):
        evaluate("data", weights=trained[0], white_level=255)


def test_predict_writes_boxes_in_every_format_and_draws_them(
    trained: tuple[Path, Measurement],
    photograph: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, drawn = str(trained[0]), tmp_path / "drawn"
    expected = Detector(weights=run, engine="torch").predict(photograph, score=0.2)
    options = ["--weights", run, "--score", "0.2", "--engine", "torch"]
    (tmp_path / "broken.png").write_bytes(b"no image")
    paths = [str(tmp_path / "broken.png"), str(photograph)]
    assert status(["predict", *paths, *options, "--format", "json", "--draw", str(drawn)]) == 1
    streams = capsys.readouterr()
    assert f"{drawn}: 1 picture\n" in streams.err
    broken, answer = map(json.loads, streams.out.splitlines())
    assert "objects" not in broken
    assert "broken.png" in broken["error"]
    assert answer["path"] == str(photograph)
    assert answer["model"] == "small"
    rows = [
        {"label": each.label, "index": each.index, "score": each.score, "box": [*each.box]}
        for each in expected
    ]
    assert answer["objects"] == rows
    picture = Image.open(drawn / "a [b].jpg")
    assert picture.size == (3 * 128, 3 * 96)  # of at least 320 pixels
    source = Image.open(photograph).resize(picture.size)
    assert np.abs(np.asarray(picture, int) - np.asarray(source, int)).max() > 60
    assert [path.name for path in drawn.iterdir()] == ["a [b].jpg"]
    assert status(["predict", str(photograph), *options]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == str(photograph)
    assert len(table) == 1 + len(expected)
    assert f"{expected[0].score:.2f}  {expected[0].label}  " in table[1]
    assert status(["predict", str(photograph), *options, "--format", "csv"]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert rows[0][4:9] == ["score", "left", "top", "right", "bottom"]
    assert [float(value) for value in rows[1][5:9]] == [*expected[0].box]
    assert (
        status(["predict", str(photograph), *options[:2], "--score", "1", "--engine", "torch"]) == 0
    )
    assert "nothing found" in capsys.readouterr().out
    assert status(["predict", str(photograph), *options, "--model", "resnest50"]) == 2
    assert "--model is for classification" in capsys.readouterr().err
    assert status(["predict", str(photograph), *options, "--engine", "compile"]) == 2
    assert "runs in engine openvino or onnxruntime or torch" in capsys.readouterr().err
    assert status(["predict", str(photograph), "--format", "coco"]) == 2
    assert "format must be one of table, json, csv" in capsys.readouterr().err
    assert status(["predict", str(photograph), "--score", "0.5"]) == 2
    assert "need a detector's weights" in capsys.readouterr().err


def test_coco_results_load_and_score_as_evaluate_scores(
    trained: tuple[Path, Measurement], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images are named by their ids, as COCO's are."""
    run, measured = trained
    data = run.parent / "data"
    (tmp_path / "broken.png").write_bytes(b"no image")
    paths = [tmp_path / "broken.png", *(data / "images" / f"{1000 + i}.png" for i in range(4))]
    output = tmp_path / "found.json"
    options = ["--weights", str(run), "--engine", "torch", "--score", "0.05", "--format", "coco"]
    call = ["predict", *map(str, paths), *options, "--output", str(output)]
    assert status(call) == 1
    assert "broken.png" in capsys.readouterr().err
    truth = COCO(str(data / "val.json"))
    scored = COCOeval_faster(truth, truth.loadRes(str(output)), "bbox", print_function=print)
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert 100 * scored.stats[0] == pytest.approx(measured.figures["ap"], abs=1e-9)
    assert status(["evaluate", str(data), "--weights", str(run), "--engine", "torch"]) == 0
    table = capsys.readouterr().out
    assert f"AP {measured.figures['ap']:.2f} %  AP50" in table
    assert status(["evaluate", str(data), "--weights", str(run), "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["ap"] == pytest.approx(measured.figures["ap"], abs=0.5)
    assert [each["label"] for each in line["classes"]] == [*CLASSES]
    rows = json.loads(output.read_text())
    assert {row["image_id"] for row in rows} == {1000, 1001, 1002, 1003}
    assert rows[0]["file_name"] == str(paths[1])
    assert status([*call[:1], str(paths[0]), *options]) == 1
    assert json.loads(capsys.readouterr().out) == []


def test_the_example_of_the_page_prints_boxes(
    trained: tuple[Path, Measurement],
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "boxes" / "val").mkdir(parents=True)
    photograph.rename(tmp_path / "boxes" / "val" / "00.png")
    (tmp_path / "detector").symlink_to(trained[0])
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "howto" / "detect.md"
    example, *_ = blocks(page.read_text(encoding="utf-8"), "py")
    exec(compile(example, "detect.md", "exec"), {})
    first = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r"0\.\d\d  (blue|green|red)  \[\d+, \d+, \d+, \d+\]", first)


def test_a_stopped_training_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    task = make_task(tmp_path, train=8, val=2)
    train(network(), task, make_run(tmp_path / "whole"))

    def stop(step: Step) -> None:
        if step.step == 2:
            raise TimeoutError

    run = replace(make_run(tmp_path / "stopped"), checkpoint_minutes=0.0)
    with pytest.raises(TimeoutError):
        train(network(), make_task(tmp_path), run, on_step=stop)
    train(network(), make_task(tmp_path), run, resume=True)
    whole, resumed = (tmp_path / name / "model.safetensors" for name in ("whole", "stopped"))
    assert read_metadata(whole) == read_metadata(resumed)
    tensors = read_by_own_keys(resumed)
    for key, value in read_by_own_keys(whole).items():
        np.testing.assert_array_equal(value, tensors[key], err_msg=key)


def test_a_detector_learns_for_more_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    task, run = make_task(tmp_path, train=8, val=2), make_run(tmp_path)
    train(network(), task, run)
    more = run.recipe.epochs + 1
    train(network(), task, replace(run, recipe=replace(run.recipe, epochs=more)), resume=True)
    lines = [json.loads(line) for line in (run.output / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == list(range(more))


def test_one_command_trains_a_detector_from_weights(tmp_path: Path) -> None:
    """Annotations select the task; frozen layers keep their weights."""
    data = write_splits(tmp_path / "data", train=2, val=1)
    result = launch.train(
        data,
        tmp_path / "run",
        model="resnest26_tiny",
        overrides=[
            "epochs=1",
            "warmup_epochs=0.5",
            "batch_size=2",
            "train_size=32",
            "test_size=32",
            "head_channels=64",
        ],
        device="cpu",
        workers=0,
    )
    assert {"ap", "ap50"} <= result.figures.keys()
    assert result.summary.startswith("AP ")
    start = create_backbone("resnest26_tiny", weights="distilled_in1k").state_dict()
    tensors = read_by_own_keys(result.weights)
    moved = {
        key
        for key, value in start.items()
        if not np.array_equal(value.numpy(), tensors[f"backbone.body.{key}"])
    }
    assert {key.split(".")[0] for key in moved} == {"layer2", "layer3", "layer4"}
    norms = [key for key in start if "running" in key]
    assert norms
    assert not moved & {*norms}
    metadata = read_metadata(result.weights)
    assert metadata is not None
    assert metadata.recipe["head"] == "fcos"


def test_normalization_is_that_of_the_weights(tmp_path: Path) -> None:
    recipe = replace(RECIPE, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    detector: Any = network()
    make_task(tmp_path, train=4, val=1).prepare(detector, recipe)
    image = torch.rand(3, 40, 70)
    images, _ = detector.transform([image])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    torch.testing.assert_close(images.tensors[0, :, :40, :70], (image - mean) / std)
    assert images.tensors.shape == (1, 3, 64, 96)
    assert not images.tensors[0, :, 40:].any()


def test_boxes_come_back_in_the_pixels_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes are scaled back from half the size; on CUDA, TF32 is off."""
    on_cuda = full_precision(torch.device("cuda"))
    monkeypatch.setattr("splitattn.dense.torch_finding.full_precision", lambda _: on_cuda)

    class Half(torch.nn.Module):
        head = torch.nn.Identity()

        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            assert not torch.backends.cudnn.allow_tf32
            assert images[0].shape == (3, 32, 48)
            box = torch.tensor([[1.0, 2.0, 30.0, 32.0]])
            return [{"boxes": box, "labels": torch.tensor([4]), "scores": torch.tensor([0.5])}]

    finder = TorchFinder(Half(), torch.device("cpu"), 1)
    found = find(finder, Image.new("RGB", (96, 64)), Sides(short=32, long=64), iou=0.5)
    np.testing.assert_allclose(found.boxes, [[2, 4, 60, 64]])
    assert found.labels.tolist() == [3]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (320, 240)),
        ((480, 640), (240, 320)),
        ((1000, 100), (400, 40)),
        ((1, 9), (44, 400)),
    ],
)
def test_images_are_resized_to_their_shorter_side_or_their_longer(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert Sides(short=240, long=400).size(*size) == expected


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"head": "fcoss"}, "did you mean 'fcos'"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"channels": 100}, "channels must be a multiple of 32"),
        ({"channels": 32}, "from 64"),
    ],
)
def test_impossible_detectors_are_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        create_detector(ARCHITECTURE, **{"num_classes": 3, **options})


def test_data_that_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    task = make_task(tmp_path, train=4, val=1)
    run = make_run(tmp_path / "run")
    with pytest.raises(DataError, match="must be different images"):
        replace(task, val=task.train).check(run)
    empty = replace(
        task.val,
        objects=[
            task.val.objects[0].__class__(
                boxes=np.zeros((0, 4)),
                labels=np.zeros(0, int),
                crowd=np.zeros(0, bool),
                areas=np.zeros(0),
                outlines=(),
            )
        ],
    )
    with pytest.raises(DataError, match="val must have objects"):
        replace(task, val=empty).check(run)
    with pytest.raises(InputError, match="in_chans must be 3"):
        task.check(make_run(tmp_path / "run", replace(RECIPE, in_chans=1)))
    with pytest.raises(InputError, match="sampling must be 'uniform' for detection, got 'bal"):
        task.check(make_run(tmp_path / "run", replace(RECIPE, sampling="balanced")))
    unread: dict[str, Any] = {"mixup_alpha": 0.4, "drop_path": 0.2, "class_weights": "balanced"}
    unread["teacher"] = "run"
    for name, value in unread.items():
        with pytest.raises(InputError, match=f"{name} does nothing for detection, got {value!r}"):
            task.check(make_run(tmp_path / "run", replace(RECIPE, **{name: value})))


def test_recipes_for_detection_are_named() -> None:
    assert load_recipe("finetune", task="detection").frozen_batch_norm
    with pytest.raises(InputError, match="must be finetune, plain or paper_coco, got modern"):
        load_recipe("modern", task="detection")
    with pytest.raises(InputError, match=r"for segmentation it must be .* got paper_coco"):
        load_recipe("paper_coco", task="segmentation")
    assert load_recipe("paper_coco").task == "detection"
    assert load_recipe("paper_ade20k", model="resnest50").epochs == 120
    assert load_recipe("paper_ade20k", model="resnest101").epochs == 180
