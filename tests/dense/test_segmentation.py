"""A segmenter learns, resumes bit for bit, and needs only its file to find classes."""

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import splitattn
from splitattn import launch
from splitattn.architectures import ARCHITECTURES
from splitattn.classifier import Classifier
from splitattn.create import create_backbone
from splitattn.data.normalization import normalize
from splitattn.dense.detector import Detector
from splitattn.dense.drawing import color
from splitattn.dense.mask_loading import MaskBatch
from splitattn.dense.masks import IGNORED
from splitattn.dense.outlines import read_run_lengths, to_mask
from splitattn.dense.resizing import Sides
from splitattn.dense.segment import segment
from splitattn.dense.segmenter import Segmenter
from splitattn.dense.segmenter_evaluating import SegmentationEvaluation
from splitattn.dense.segmenters import SEGMENTATION_HEADS, create_segmenter
from splitattn.dense.task import sides
from splitattn.dense.torch_segment import torch_logits
from splitattn.engines.pytorch import full_precision
from splitattn.errors import DataError, ImageError, InputError, WeightsError
from splitattn.graph.segmentation import MULTIPLE
from splitattn.images.decode import decode_indices
from splitattn.training.loop import train
from splitattn.training.recipe_files import load_recipe
from splitattn.training.task import Measurement, Step
from splitattn.weights.checkpoint import read_by_own_keys, write_checkpoint
from splitattn.weights.metadata import read_metadata
from splitattn.workflows import export
from tests.dense.datasets import (
    MASK_CLASSES,
    VOID,
    class_mask,
    picture,
    write_masked,
    write_masked_splits,
)
from tests.dense.runs import (
    ARCHITECTURE,
    CHANNELS,
    MASK_RECIPE,
    make_mask_task,
    make_run,
    mask_network,
    spoil,
)
from tests.dense.test_detection import status
from tests.examples import blocks

# Rectangles that do not overlap, in an image of another size than the training images.
RECTANGLES = [(10, 16, 46, 54, 2), (76, 30, 114, 66, 0)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Measurement]]:
    """The output folder of a training, and its last measurement."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
        task = make_mask_task(folder, train=48)
        measured = train(mask_network(), task, make_run(folder / "run", MASK_RECIPE))
        yield folder / "run", measured


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "a [b].png"
    picture(RECTANGLES, (128, 96), 77).save(path)
    return path


def test_training_learns_and_its_file_tells_classes_alone(
    trained: tuple[Path, Measurement], photograph: Path
) -> None:
    run, measured = trained
    assert measured.figures["miou"] >= 50
    assert measured.figures["mean_accuracy"] >= 85
    metadata = read_metadata(run / "model.safetensors")
    assert metadata is not None
    assert metadata.task == "segmentation"
    assert metadata.classes == MASK_CLASSES
    assert metadata.metrics == {**measured.figures, "n": 4}
    assert metadata.recipe == json.loads(json.dumps(asdict(MASK_RECIPE)))
    assert metadata.head == {
        "name": "fpn",
        "channels": CHANNELS,
        "output_stride": 32,
        "short_side": 64,
        "long_side": 256,
    }
    found = Segmenter(weights=run).predict(photograph)
    assert found.class_map.shape == (96, 128)
    assert found.class_map.dtype == np.uint8
    truth = class_mask(RECTANGLES, (128, 96))
    assert (found.class_map == truth)[truth != VOID].mean() > 0.75
    for left, top, right, bottom, label in RECTANGLES:
        inside = found.class_map[top + 4 : bottom - 4, left + 4 : right - 4]
        assert (inside == label + 1).mean() > 0.8
    shares = found.shares
    assert shares[0].label == "background"
    assert sum(each.share for each in shares) == pytest.approx(1)
    assert [each.share for each in shares] == sorted((e.share for e in shares), reverse=True)
    assert all((found.class_map == each.index).mean() == each.share for each in shares)


def test_the_log_and_the_report_show_figures_classes_and_the_worst_images(
    trained: tuple[Path, Measurement],
) -> None:
    run, measured = trained
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["size"] for line in epochs] == [32, 48]
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"]
    assert epochs[1]["train_accuracy"] > epochs[0]["train_accuracy"]
    assert {"val_miou", "val_accuracy", "val_mean_accuracy"} <= epochs[0].keys()
    page = (run / "report.html").read_text()
    assert f"{measured.figures['miou']:.2f}<small> %" in page
    for name in MASK_CLASSES:
        assert f'<td class="name" title="{name}">' in page
    assert page.count("<meter") == 2 * len(MASK_CLASSES)
    assert "Worst images" in page
    assert page.count('<img class="picture"') == 2 * 4
    for encoded in re.findall(r'class="picture".*?;base64,(.*?)"', page):
        with Image.open(BytesIO(b64decode(encoded))) as picture:
            assert picture.width == 320  # images are 128 x 96
            assert picture.height > 240  # with a legend


def test_training_measures_what_evaluate_measures(trained: tuple[Path, Measurement]) -> None:
    """`evaluate` gives the figures that training measured."""
    run, measured = trained
    data = str(run.parent / "data")
    again = splitattn.evaluate(data, weights=run, engine="torch")
    assert isinstance(again, SegmentationEvaluation)
    assert again.figures == measured.figures
    assert again.images == 4
    np.testing.assert_array_equal(again.confusion, measured.details.scores.confusion)


def test_evaluate_prints_and_writes_every_class(
    trained: tuple[Path, Measurement], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, measured = trained
    data, output = run.parent / "data", tmp_path / "measured.json"
    assert status(["evaluate", str(data), "--weights", str(run), "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert f"mIoU {measured.figures['miou']:.2f} %" in text
    content = json.loads(output.read_text())
    assert content["miou"] == measured.figures["miou"]
    assert [each["label"] for each in content["classes"]] == [*MASK_CLASSES]
    assert content["n"] == 4
    assert np.trace(content["confusion"]) / np.sum(content["confusion"]) == pytest.approx(
        content["accuracy"] / 100
    )
    for option in (["--size", "64"], ["--model", "resnest14"]):
        assert status(["evaluate", str(data), "--weights", str(run), *option]) == 2
        said = f"{option[0].removeprefix('--')} is for classification: leave it out for"
        assert said in capsys.readouterr().err
    answers = ["--answers", str(tmp_path / "a.csv")]
    assert status(["evaluate", str(data), "--weights", str(run), *answers]) == 2
    assert "--answers is for classification" in capsys.readouterr().err
    (data / "classes.txt").write_text("a\nb\nc\nd")
    try:
        assert status(["evaluate", str(data), "--weights", str(run)]) == 2
    finally:
        (data / "classes.txt").write_text("\n".join(MASK_CLASSES))
    assert "must have the classes of the weights" in capsys.readouterr().err


def test_evaluate_and_data_show_warn_of_masks_with_one_class(
    trained: tuple[Path, Measurement],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Otherwise the IoU of the background alone would be taken for the network's."""
    data = write_masked_splits(tmp_path / "data", train=2, val=2)
    evaluate = ["evaluate", str(data), "--weights", str(trained[0])]
    show = ["data", "show", str(data), "--output", str(tmp_path / "sheet.png"), "--images", "2"]
    said = r"must have pixels of two classes or more, got only 'background' in 2 masks; 255 is no"
    for one_class in (False, True):
        if one_class:
            for path in data.glob("*/masks/*.png"):
                mask = np.array(Image.open(path))
                Image.fromarray(np.where(mask == VOID, VOID, 0).astype(np.uint8)).save(path)
        assert status(evaluate) == 0
        assert (said in caplog.text) == one_class
        capsys.readouterr()
        assert status(show) == 0
        assert (said in capsys.readouterr().err) == one_class


def test_predict_writes_class_maps_in_every_format_and_draws_them(
    trained: tuple[Path, Measurement],
    photograph: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, drawn = str(trained[0]), tmp_path / "drawn"
    expected = Segmenter(weights=run).predict(photograph)
    options = ["--weights", run]
    (tmp_path / "broken.png").write_bytes(b"no image")
    paths = [str(tmp_path / "broken.png"), str(photograph)]
    assert status(["predict", *paths, *options, "--format", "json", "--draw", str(drawn)]) == 1
    broken, answer = map(json.loads, capsys.readouterr().out.splitlines())
    assert "classes" not in broken
    assert "broken.png" in broken["error"]
    assert answer["path"] == str(photograph)
    assert answer["model"] == "small"
    for each, share in zip(answer["classes"], expected.shares, strict=True):
        mask = to_mask(read_run_lengths(each.pop("mask")), (128, 96))
        np.testing.assert_array_equal(mask, expected.class_map == share.index)
        assert each == asdict(share)
    whole = Image.open(drawn / "a [b].jpg")
    assert whole.width == 320
    assert whole.height > 96
    picture = np.asarray(whole.crop((96, 0, 224, 96)), int)
    source = np.asarray(Image.open(photograph), int)
    assert np.abs(picture - source).max() > 60
    assert status(["predict", str(photograph), *options]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == str(photograph)
    first = expected.shares[0]
    assert table[1] == f"{100 * first.share:8.2f} %  background"
    assert len(table) == 1 + len(expected.shares)
    assert status(["predict", str(photograph), *options, "--format", "csv"]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert rows[0][2:5] == ["label", "index", "share"]
    assert [float(row[4]) for row in rows[1:]] == [each.share for each in expected.shares]
    assert status(["predict", str(photograph), *options, "--model", "resnest50"]) == 2
    assert "--model is for classification" in capsys.readouterr().err
    assert status(["predict", str(photograph), *options, "--score", "0.5"]) == 2
    assert "need a detector's weights" in capsys.readouterr().err
    maps = tmp_path / "maps"
    assert status(["predict", *paths, *options, "--class-maps", str(maps)]) == 1
    assert f"{maps}: 1 picture\n" in capsys.readouterr().err
    assert [path.name for path in maps.iterdir()] == ["a [b].png"]
    np.testing.assert_array_equal(decode_indices(maps / "a [b].png"), expected.class_map)
    colored = np.asarray(Image.open(maps / "a [b].png").convert("RGB"))
    assert tuple(colored[0, 0]) == color(int(expected.class_map[0, 0]))
    assert status(["predict", str(photograph), *options, "--class-maps", str(maps)]) == 2
    assert "--class-maps must be a new or empty folder" in capsys.readouterr().err
    assert status(["predict", str(photograph), "--class-maps", str(tmp_path / "b")]) == 2
    assert "--class-maps needs a segmenter's weights" in capsys.readouterr().err


def test_a_broken_image_has_an_error_and_the_others_their_classes(
    trained: tuple[Path, Measurement], photograph: Path
) -> None:
    segmenter = Segmenter(weights=trained[0])
    first, broken, last = segmenter.predict_stream([photograph, b"no image", photograph])
    assert isinstance(broken, ImageError)
    assert not isinstance(first, ImageError)
    assert not isinstance(last, ImageError)
    (again,) = segmenter.predict([photograph])
    for each in (last, again):
        np.testing.assert_array_equal(first.class_map, each.class_map)
    with pytest.raises(ImageError):
        segmenter.predict([photograph, b"no image"])


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_outputs_that_are_not_finite_are_an_error_and_no_class(
    engine: str, trained: tuple[Path, Measurement], photograph: Path, tmp_path: Path
) -> None:
    spoil(trained[0] / "model.safetensors", "classifier.weight", tmp_path / "nan.safetensors")
    segmenter = Segmenter(weights=tmp_path / "nan.safetensors", engine=engine)
    (found,) = segmenter.predict_stream([photograph])
    assert isinstance(found, ImageError)
    assert str(found).startswith(f"{photograph}: the network gives NaN or infinite numbers")
    with pytest.raises(ImageError, match="gives NaN or infinite numbers"):
        export(tmp_path / "nan.onnx", weights=tmp_path / "nan.safetensors")
    assert not (tmp_path / "nan.onnx").exists()


def test_weights_of_another_task_are_refused(trained: tuple[Path, Measurement]) -> None:
    from splitattn.weights.cache import local_path
    from splitattn.weights.catalogue import embedded_entry

    with pytest.raises(WeightsError, match=r"is for segmentation.*splitattn\.Segmenter"):
        Classifier(weights=trained[0])
    with pytest.raises(
        WeightsError, match=r"detector's weights, it is for segmentation: use splitattn\.Segm"
    ):
        Detector(weights=trained[0])
    path = local_path(embedded_entry())
    assert path is not None
    with pytest.raises(WeightsError, match="must be a segmenter's weights"):
        Segmenter(weights=path)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"name": "unet"}, "head must be one of fpn, deeplabv3, fcn"),
        ({"name": 1}, "must name its head"),
        ({"channels": 96}, "does not fit its own metadata"),
        ({"channels": 8}, "does not fit its own metadata"),
        ({"short_side": None}, "must have whole numbers as short_side"),
        ({"output_stride": 16}, "output stride must be 32 for head fpn, got 16"),
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
        Segmenter(weights=tmp_path / "a.safetensors")


def test_a_stopped_training_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    task = make_mask_task(tmp_path, train=8, val=1)
    recipe = replace(MASK_RECIPE, auxiliary_weight=0.4)
    train(mask_network(auxiliary=True), task, make_run(tmp_path / "whole", recipe))

    def stop(step: Step) -> None:
        if step.step == 2:
            raise TimeoutError

    run = replace(make_run(tmp_path / "stopped", recipe), checkpoint_minutes=0.0)
    with pytest.raises(TimeoutError):
        train(mask_network(auxiliary=True), make_mask_task(tmp_path), run, on_step=stop)
    train(mask_network(auxiliary=True), make_mask_task(tmp_path), run, resume=True)
    whole, resumed = (tmp_path / name / "model.safetensors" for name in ("whole", "stopped"))
    assert read_metadata(whole) == read_metadata(resumed)
    tensors = read_by_own_keys(resumed)
    for key, value in read_by_own_keys(whole).items():
        np.testing.assert_array_equal(value, tensors[key], err_msg=key)
    # The auxiliary head is in the checkpoint, but not in the result.
    assert {key.split(".")[0] for key in tensors} == {"backbone", "head"}
    Segmenter(weights=tmp_path / "stopped")


def test_one_command_trains_a_segmenter_from_weights(tmp_path: Path) -> None:
    """Masks select the task; frozen layers keep their weights."""
    data = write_masked_splits(tmp_path / "data", train=2, val=1)
    result = launch.train(
        data,
        tmp_path / "run",
        model="resnest26_tiny",
        overrides=[
            "epochs=1",
            "warmup_epochs=0.5",
            "batch_size=2",
            "train_size=32",
            "first_train_size=32",
            "test_size=32",
            "head_channels=64",
        ],
        device="cpu",
        workers=0,
    )
    assert {"miou", "accuracy"} <= result.figures.keys()
    assert result.summary.startswith("mIoU ")
    start = create_backbone("resnest26_tiny", weights="distilled_in1k").state_dict()
    tensors = read_by_own_keys(result.weights)
    moved = {
        key
        for key, value in start.items()
        if not np.array_equal(value.numpy(), tensors[f"backbone.{key}"])
    }
    assert {key.split(".")[0] for key in moved} == {"layer2", "layer3", "layer4"}
    assert not moved & {key for key in start if "running" in key}
    # The head's batch norm is new, so it learns.
    assert tensors["head.fuse.1.running_mean"].any()
    metadata = read_metadata(result.weights)
    assert metadata is not None
    assert metadata.recipe["head"] == "fpn"


@pytest.mark.parametrize("head", SEGMENTATION_HEADS)
def test_the_auxiliary_loss_is_a_share_of_the_loss_in_training_only(
    head: str, tmp_path: Path
) -> None:
    recipe = replace(MASK_RECIPE, auxiliary_weight=0.25, class_weights="none")
    task, run = make_mask_task(tmp_path, train=2, val=1), make_run(tmp_path / "run", recipe)
    masks = torch.randint(0, 4, (2, 64, 64), dtype=torch.uint8)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    batch = MaskBatch(images=images, masks=masks, problems=())
    network: Any = mask_network(head, auxiliary=True)
    network.eval()
    x = normalize(images, recipe.preprocessing)
    maps = network.backbone(x)
    both = (network.head(maps), network.auxiliary(maps))
    torch.testing.assert_close(network(x), both[0])
    losses = [
        F.cross_entropy(F.interpolate(each, (64, 64), mode="bilinear"), masks.long())
        for each in both
    ]
    found = task.forward(lambda _: both, batch, run)
    torch.testing.assert_close(found.loss, losses[0] + 0.25 * losses[1])
    logits, auxiliary = network.train()(x)
    assert auxiliary.shape[1] == 4
    (logits.sum() + auxiliary.sum()).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]
    task.fold(network)
    assert isinstance(network(x), torch.Tensor)
    with pytest.raises(InputError, match="auxiliary_weight must be 0 for a network without"):
        replace(task, head=head).prepare(network, recipe)


def test_the_recipe_of_the_paper_trains_with_an_auxiliary_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    data = write_masked_splits(tmp_path / "data", train=2, val=1)
    changes = ("epochs=1", "batch_size=2", "train_size=32", "test_size=32", "head_channels=64")
    result = launch.train(
        data,
        tmp_path / "run",
        model="small",
        recipe="paper_ade20k",
        overrides=[*changes, "pretrained=false"],
        device="cpu",
        workers=0,
    )
    metadata = read_metadata(result.weights)
    assert metadata is not None
    assert metadata.head["name"] == "deeplabv3"
    assert metadata.recipe["schedule"] == "poly"
    tensors = read_by_own_keys(tmp_path / "run" / "last.pt")
    assert any(".auxiliary." in f".{key}" for key in tensors)


def test_the_loss_is_the_mean_over_pixels_of_a_class(tmp_path: Path) -> None:
    """The reference sums pixel by pixel, weighted by 1 / sqrt(share of the class)."""
    recipe = replace(MASK_RECIPE, class_weights="balanced", label_smoothing=0.1)
    task, run = make_mask_task(tmp_path), make_run(tmp_path / "run", recipe)
    masks = torch.randint(0, 4, (2, 16, 16), dtype=torch.uint8)
    masks[0, :3] = IGNORED
    batch = MaskBatch(
        images=torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8), masks=masks, problems=()
    )
    logits = torch.randn(2, 4, 4, 4)

    def network(images: torch.Tensor) -> torch.Tensor:
        torch.testing.assert_close(images, normalize(batch.images, recipe.preprocessing))
        return logits

    step = task.forward(network, batch, run)
    shares = task.train.pixels.sum(0) / task.train.pixels.sum()
    weights = 1 / np.sqrt(shares)
    weights /= (weights * shares).sum()
    large = F.interpolate(logits, size=(16, 16), mode="bilinear").log_softmax(1)
    total = right = 0.0
    for image, row, column in torch.nonzero(masks != IGNORED).tolist():
        label = int(masks[image, row, column])
        here = large[image, :, row, column]
        total -= 0.9 * weights[label] * here[label].item()
        total -= 0.1 / 4 * float((weights * here.numpy()).sum())
        right += (int(here.argmax()) == label) / float((masks[image] != IGNORED).sum())
    assert step.loss.item() == pytest.approx(total / (masks != IGNORED).sum().item(), rel=1e-4)
    assert float(step.sums["accuracy"]) == pytest.approx(100 * right, rel=1e-4)
    nothing = replace(batch, masks=torch.full_like(masks, IGNORED))
    assert task.forward(network, nothing, run).loss.item() == 0


@pytest.mark.parametrize("head", [*SEGMENTATION_HEADS])
@pytest.mark.parametrize("size", [(64, 96), (33, 47)])
def test_every_head_gives_logits_at_its_stride_and_gradients_everywhere(
    head: str, size: tuple[int, int]
) -> None:
    network = mask_network(head)
    logits = network(torch.randn(1, 3, *size))
    stride = 4 if head == "fpn" else 8
    assert logits.shape == (1, len(MASK_CLASSES), *(-(-side // stride) for side in size))
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name


def test_heads_of_torchvision_have_its_keys() -> None:
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead
    from torchvision.models.segmentation.fcn import FCNHead

    wide = ARCHITECTURE.stage_channels[-1]
    deeplab = create_segmenter(ARCHITECTURE, num_classes=5, head="deeplabv3").head
    fcn = create_segmenter(ARCHITECTURE, num_classes=5, head="fcn", channels=wide // 4).head
    maps = [torch.randn(2, wide, 9, 7)]
    for ours, theirs in (
        (deeplab, DeepLabHead(wide, 5, (12, 24, 36))),
        (fcn, FCNHead(wide, 5)),
    ):
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours.eval()(maps), theirs.eval()(maps[0]))


def test_an_image_is_seen_resized_and_answered_in_its_own_pixels() -> None:
    def left_half(images: np.ndarray) -> np.ndarray:
        assert images.shape == (1, 3, 64, 96)
        logits = np.zeros((1, 2, 16, 24), np.float32)
        logits[:, 1, :, :12] = 1
        logits[:, 0, :, 12:] = 1
        return logits

    found = segment(
        left_half,
        Image.new("RGB", (200, 150)),
        sides(MASK_RECIPE, 64, MULTIPLE),
        MASK_RECIPE.preprocessing,
    )
    assert found.shape == (150, 200)
    assert (found[:, :98] == 1).all()
    assert (found[:, 102:] == 0).all()


def test_segmenters_compute_without_tf32_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cuda = full_precision(torch.device("cuda"))
    monkeypatch.setattr("splitattn.dense.torch_segment.full_precision", lambda _: on_cuda)

    class Network(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images + torch.backends.cudnn.allow_tf32

    found = torch_logits(Network(), torch.device("cpu"))(np.zeros((1, 3, 2, 2), np.float32))
    assert not found.any()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"head": "fpnn"}, "did you mean 'fpn'"),
        ({"num_classes": 0}, "num_classes must be 1 to 255"),
        ({"num_classes": 256}, "num_classes must be 1 to 255"),
        ({"channels": 8}, "channels must be 64 to 1024"),
        ({"output_stride": 8}, "output_stride must be 32 for head fpn, got 8"),
        ({"head": "fcn", "output_stride": 32}, "output_stride must be 8 or 16 for head fcn"),
    ],
)
def test_impossible_segmenters_are_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        create_segmenter(ARCHITECTURE, **{"num_classes": 3, **options})


def test_data_that_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    task = make_mask_task(tmp_path, train=4, val=1)
    run = make_run(tmp_path / "run", MASK_RECIPE)
    with pytest.raises(DataError, match="must be different images"):
        replace(task, val=task.train).check(run)
    for change in ({"mosaic": 0.5}, {"multi_scale": 0.8}):
        (name,) = change
        recipe = replace(MASK_RECIPE, **change)  # type: ignore[arg-type]
        with pytest.raises(
            InputError, match=f"{name} does nothing for segmentation, got .*: use zoom"
        ):
            task.check(make_run(tmp_path / "run", recipe))
    unread = make_run(tmp_path / "run", replace(MASK_RECIPE, random_erasing=0.5))
    with pytest.raises(InputError, match=r"random_erasing does nothing for segmentation, got 0\.5"):
        task.check(unread)
    with pytest.raises(InputError, match="in_chans must be 3 for segmentation"):
        task.check(replace(run, recipe=replace(MASK_RECIPE, in_chans=1)))
    pixels = np.zeros_like(task.train.pixels)
    pixels[:, 0] = 9
    alone = replace(task, train=replace(task.train, pixels=pixels))
    with pytest.raises(DataError, match=r"got only 'background' in 4 masks; 255 is no .* write 1"):
        alone.check(run)


def test_a_file_keeps_its_output_stride_and_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The tensors do not show the output stride, on which the result depends."""
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    how: dict[str, Any] = {
        "head": "deeplabv3",
        "num_classes": len(MASK_CLASSES),
        "channels": CHANNELS,
    }
    network = create_segmenter("small", output_stride=16, **how)
    task = replace(make_mask_task(tmp_path, train=4, val=1), head="deeplabv3")
    with pytest.raises(InputError, match=r"stride 8, .* got 16: pass output_stride=16"):
        task.prepare(network, MASK_RECIPE)
    with pytest.raises(InputError, match="output_stride must be 8 or 16 for head deeplabv3, got 4"):
        replace(task, output_stride=4).prepare(network, MASK_RECIPE)
    recipe = replace(MASK_RECIPE, head="deeplabv3", epochs=1)
    train(network, replace(task, output_stride=16), make_run(tmp_path / "run", recipe))
    image = picture(RECTANGLES, (128, 96), 77)
    expected = segment(
        torch_logits(network.eval(), torch.device("cpu")),
        image,
        sides(recipe, recipe.test_size, MULTIPLE),
        recipe.preprocessing,
    )
    segmenter = Segmenter(tmp_path / "run")
    np.testing.assert_array_equal(segmenter.segment(image), expected)
    path = tmp_path / "run" / "model.safetensors"
    del how["channels"]
    again = create_segmenter("small", weights=path, **how)
    assert again.backbone.output_stride == 16
    assert "the head is loaded too" in caplog.text
    assert (
        create_segmenter("small", weights=path, output_stride=8, **how).backbone.output_stride == 8
    )
    classifier = "head.4.weight"  # (classes, channels, 1, 1)
    assert again.state_dict()[classifier].shape[1] == CHANNELS
    other = create_segmenter("small", weights=path, channels=96, **how)
    assert other.state_dict()[classifier].shape[1] == 96
    # A file of another program may say anything.
    metadata = read_metadata(path)
    assert metadata is not None
    odd = replace(metadata, head={**metadata.head, "channels": str(CHANNELS)})
    write_checkpoint(tmp_path / "odd.safetensors", again.state_dict(), odd)
    with pytest.raises(InputError, match=f"channels must be 64 to 1024, got '{CHANNELS}'"):
        create_segmenter("small", weights=tmp_path / "odd.safetensors", **how)


def test_heads_name_the_task(tmp_path: Path) -> None:
    data = write_masked_splits(tmp_path / "data", train=1, val=1)
    with pytest.raises(InputError, match=r"head must be one of fcos, .*fpn, .*did you mean 'fcn'"):
        launch.train(data, tmp_path / "run", head="fcnn")
    with pytest.raises(
        DataError, match=r"a detector needs annotated images .* choose a network for another task"
    ):
        launch.train(data, tmp_path / "run", head="fcos")
    assert load_recipe("plain", task="segmentation").frozen_batch_norm
    with pytest.raises(InputError, match="must be finetune, plain or paper_ade20k"):
        load_recipe("modern", task="segmentation")


def test_the_commands_and_the_example_of_the_page_run(
    trained: tuple[Path, Measurement],
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The page's commands that train are tested elsewhere: they would take too long."""
    below = write_masked(tmp_path / "street", "val", 2, first=2000) / "val"
    photograph.rename(below / "images" / "00.png")
    Image.fromarray(class_mask(RECTANGLES, (128, 96))).save(below / "masks" / "00.png")
    for name in ("segmenter-360", "segmenter"):
        (tmp_path / name).symlink_to(trained[0])
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/howto/segment.md").read_text(encoding="utf-8")
    commands = re.findall(r"^splitattn ((?:predict|evaluate) .*)$", page, re.MULTILINE)
    assert len(commands) == 7
    export = "export segmenter.onnx --weights segmenter"
    assert f"splitattn {export}\n" in page
    for command in (export, *commands):
        assert status(command.split()) == 0
    answers = [json.loads(line) for line in Path("classes.json").read_text().splitlines()]
    assert len(answers) == 3
    assert all(answer["classes"] for answer in answers)
    assert decode_indices("class-maps/00.png").shape == (96, 128)
    capsys.readouterr()
    example, *_ = blocks(page, "py")
    exec(compile(example, "segment.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r" *\d+\.\d%  background", lines[0])
    with Image.open("photo-classes.png") as classes:
        assert classes.size == (128, 96)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 360), (480, 352)),
        ((640, 480), (480, 352)),
        ((200, 3000), (96, 1440)),
    ],
)
def test_sides_are_multiples(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert Sides(short=360, long=1440, multiple=32).size(*size) == expected
