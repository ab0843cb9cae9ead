"""Detectors with other heads: RetinaNet, two-stage detectors, and masks of objects."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from splitattn import launch
from splitattn.architectures import ARCHITECTURES
from splitattn.dense.annotated import with_outlines
from splitattn.dense.detector import Detector, TrainedDetector
from splitattn.dense.detectors import DETECTION_HEADS, create_detector
from splitattn.dense.drawing import color, draw_boxes
from splitattn.dense.exporting import DetectorExport
from splitattn.dense.open import open_annotated
from splitattn.dense.outlines import read_run_lengths
from splitattn.dense.pasting import pasted
from splitattn.engines.engine import FileSettings
from splitattn.engines.table import find_engine
from splitattn.errors import DataError, InputError
from splitattn.training.loop import train
from splitattn.training.task import Measurement, Step
from splitattn.weights.catalogue import default_preprocessing
from splitattn.weights.checkpoint import read_by_own_keys, write_checkpoint
from splitattn.weights.metadata import ModelMetadata, read_metadata
from tests.dense.datasets import CLASSES, picture, write_coco, write_splits
from tests.dense.runs import ARCHITECTURE, CHANNELS, RECIPE, make_run, make_task, network
from tests.dense.test_detection import status

RECTANGLES = [(10, 16, 46, 54, 2), (76, 30, 114, 66, 0)]
MASK_RECIPE = replace(
    RECIPE, head="mask_rcnn", epochs=2, batch_size=2, ema_decay=0.8, regions_per_image=16
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Measurement]]:
    """The output folder of a training of Mask R-CNN, and its last measurement."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
        task = make_task(folder, train=20, val=2, head="mask_rcnn")
        measured = train(network("mask_rcnn"), task, make_run(folder / "run", MASK_RECIPE))
        yield folder / "run", measured


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    picture(RECTANGLES, (128, 96), 77).save(path)
    return path


def test_masks_are_learned_and_lie_on_their_objects(
    trained: tuple[Path, Measurement], photograph: Path
) -> None:
    run, measured = trained
    assert measured.figures["mask_ap50"] >= 40
    metadata = read_metadata(run / "best.safetensors")
    assert metadata is not None
    assert metadata.head["box_head"] == "2fc"
    assert metadata.head["masks"] is True
    detector = Detector(weights=run)
    assert detector.masks
    assert detector.engine == "torch"
    found = detector.predict(photograph, score=0.1)
    for left, top, right, bottom, label in RECTANGLES:
        truth = np.zeros((96, 128), bool)
        truth[top:bottom, left:right] = True
        masks = [each.mask.pixels() for each in found if each.index == label and each.mask]
        assert {mask.shape for mask in masks} == {truth.shape}
        # Which mask scores best depends on the number of threads in training.
        assert max((mask & truth).sum() / (mask | truth).sum() for mask in masks) > 0.3
    page = (run / "report.html").read_text()
    assert f"{measured.figures['mask_ap']:.2f}<small> %" in page
    assert "mask AP50 %" in page


def test_predictions_with_masks_are_written_drawn_and_scored_as_coco(
    trained: tuple[Path, Measurement],
    photograph: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, measured = trained
    data, drawn, output = run.parent / "data", tmp_path / "drawn", tmp_path / "found.json"
    options = ["--weights", str(run), "--score", "0.05"]
    assert (
        status(["predict", str(photograph), *options, "--format", "json", "--draw", str(drawn)])
        == 0
    )
    line = json.loads(capsys.readouterr().out)
    expected = Detector(weights=run).predict(photograph, score=0.05)
    assert [read_run_lengths(each["mask"]) for each in line["objects"]] == [
        each.mask for each in expected
    ]
    before, after = (Image.open(p) for p in (photograph, drawn / "a.jpg"))
    assert after.size == (3 * 128, 3 * 96)  # of at least 320 pixels
    before = before.resize(after.size)
    assert np.abs(np.asarray(after, int) - np.asarray(before, int)).max() > 60
    paths = [str(data / "images" / f"{1000 + i}.png") for i in range(2)]
    assert status(["predict", *paths, *options, "--format", "coco", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())
    truth = COCO(str(data / "val.json"))
    for row in rows:
        del row["bbox"]
    scored = COCOeval_faster(truth, truth.loadRes(rows), "segm", print_function=print)
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert 100 * scored.stats[0] == pytest.approx(measured.figures["mask_ap"], abs=1e-6)
    capsys.readouterr()
    assert status(["evaluate", str(data), "--weights", str(run), "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["mask_ap"] == pytest.approx(measured.figures["mask_ap"], abs=1e-6)
    assert {"ap", "ap50", "mask_ap", "mask_ap50"} <= line["classes"][0].keys()


def test_a_detector_of_two_stages_is_not_exported(
    trained: tuple[Path, Measurement], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["export", str(tmp_path / "a.onnx"), "--weights", str(trained[0])]
    assert status(call) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "with head mask_rcnn cannot be exported: the input of its second stage" in line
    assert status(["predict", "a.png", "--weights", str(trained[0]), "--engine", "openvino"]) == 2
    assert "with head mask_rcnn runs in engine torch, got 'openvino'" in capsys.readouterr().err


def test_a_stopped_training_of_masks_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def ended(name: str, stop: int | None) -> dict[str, Tensor]:
        def on_step(step: Step) -> None:
            if step.step == stop:
                raise TimeoutError

        task = make_task(tmp_path, train=2, val=1, head="mask_rcnn")
        recipe = replace(
            MASK_RECIPE,
            epochs=2,
            batch_size=1,
            train_size=32,
            box_head="4conv1fc",
            regions_per_image=8,
        )
        run = replace(make_run(tmp_path / name, recipe), checkpoint_minutes=0.0)
        if stop is not None:
            with pytest.raises(TimeoutError):
                train(network("mask_rcnn", "4conv1fc"), task, run, on_step=on_step)
        train(network("mask_rcnn", "4conv1fc"), task, run, resume=stop is not None)
        return read_by_own_keys(tmp_path / name / "model.safetensors")

    whole, resumed = ended("whole", None), ended("stopped", 2)
    for key, value in whole.items():
        np.testing.assert_array_equal(value, resumed[key], err_msg=key)
    reopened = Detector(weights=tmp_path / "stopped")
    assert reopened.predict(picture([], (64, 64)), score=0.0)


@pytest.mark.parametrize("head", ["fcos", "retinanet"])
def test_bfloat16_leaves_the_coarsest_levels_in_float32(head: str) -> None:
    """In bfloat16 PyTorch may compute their gradients from uninitialized memory."""
    detector: Any = network(head)
    coarser = detector.backbone.fpn.extra_blocks
    map_BCHW = torch.randn(2, coarser.p6.in_channels, 1, 1)
    gradients = []
    for enabled in (False, True):
        coarser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            levels, names = coarser([map_BCHW], [map_BCHW], ["0"])
        assert [level.shape[2:] for level in levels] == [(1, 1)] * 3
        assert names == ["0", "p6", "p7"]
        sum(level.sum() for level in levels).backward()
        gradients.append([parameter.grad.clone() for parameter in coarser.parameters()])
    for plain, mixed in zip(*gradients, strict=True):
        torch.testing.assert_close(mixed, plain, rtol=0, atol=0)


@pytest.mark.parametrize("head", ["retinanet", "faster_rcnn"])
def test_a_training_of_any_head_is_used_like_one_of_fcos(head: str, tmp_path: Path) -> None:
    data = write_splits(tmp_path / "data", train=2, val=1)
    changes = ("epochs=1", "warmup_epochs=0.5", "batch_size=2", "train_size=32", "test_size=32")
    changes += ("head_channels=64", "pretrained=false")
    changes += ("frozen_stages=0", "frozen_batch_norm=false")
    if DETECTION_HEADS[head].stages == 2:
        changes += ("regions_per_image=16",)
    result = launch.train(
        data, tmp_path / "run", model="small", head=head, overrides=changes, workers=0, device="cpu"
    )
    metadata = read_metadata(result.weights)
    assert metadata is not None
    assert metadata.head["name"] == head
    found = Detector(weights=result.output, engine="torch").predict(
        data / "images" / "1000.png", score=0.0
    )
    assert len(found) > 10
    assert {each.index for each in found} <= {0, 1, 2}
    for left, top, right, bottom in (each.box for each in found):
        assert 0 <= left <= right <= 64
        assert 0 <= top <= bottom <= 64


def test_the_recipe_of_the_paper_trains_both_heads_of_two_stages(tmp_path: Path) -> None:
    """Their batch norms learn, and a one-stage head is refused."""
    data = write_splits(tmp_path / "data", train=1, val=1)
    changes = ("epochs=1", "batch_size=1", "train_size=32", "test_size=32", "head_channels=64")
    options: dict[str, Any] = {
        "model": "small",
        "recipe": "paper_coco",
        "overrides": [*changes, "pretrained=false", "frozen_stages=0", "regions_per_image=8"],
        "workers": 0,
        "device": "cpu",
    }
    result = launch.train(data, tmp_path / "run", **options)
    metadata = read_metadata(result.weights)
    assert metadata is not None
    assert metadata.head["name"] == "faster_rcnn"
    assert metadata.head["box_head"] == "4conv1fc"
    assert metadata.recipe["schedule"] == "step"
    tensors = read_by_own_keys(result.weights)
    assert tensors["roi_heads.box_head.0.1.running_mean"].any()
    one_stage = "box_head does nothing for detection, got '4conv1fc': head fcos has one stage; use "
    with pytest.raises(InputError, match=f"{one_stage}faster_rcnn or mask_rcnn, or set it to 2fc"):
        launch.train(data, tmp_path / "fcos", head="fcos", **options)


@pytest.mark.parametrize("head", DETECTION_HEADS)
def test_every_layer_of_every_head_learns(head: str) -> None:
    detector: Any = network(head)
    if DETECTION_HEADS[head].stages == 2:
        detector.roi_heads.fg_bg_sampler.batch_size_per_image = 16
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, :, :32] = masks[1, :, 32:] = 1
    target = {
        "boxes": torch.tensor([[0.0, 0, 32, 64], [32, 0, 64, 64]]),
        "labels": torch.tensor([0, 2]) + DETECTION_HEADS[head].first_label,
        "masks": masks,
    }
    sum(detector([torch.rand(3, 64, 64)], [target]).values()).backward()
    assert not [name for name, p in detector.named_parameters() if p.grad is None]
    detector.eval()
    with torch.inference_mode():
        (found,) = detector([torch.rand(3, 64, 64)])
    assert ("masks" in found) == DETECTION_HEADS[head].masks
    if "masks" in found:
        assert found["masks"].shape[1:] == (1, 28, 28)


def test_retinanet_finds_the_same_in_every_engine_and_file(tmp_path: Path) -> None:
    """The last layers get random weights, so that scores and boxes differ from the initial ones."""
    detector: Any = network("retinanet")
    nn.init.normal_(detector.head.classification_head.cls_logits.weight, std=0.05)
    nn.init.normal_(detector.head.regression_head.bbox_reg.weight, std=0.02)
    metadata = ModelMetadata(
        model="small",
        classes=CLASSES,
        preprocessing=RECIPE.preprocessing,
        head={"name": "retinanet", "channels": CHANNELS, "short_side": 64, "long_side": 96},
        task="detection",
    )
    weights = tmp_path / "a.safetensors"
    write_checkpoint(weights, detector.state_dict(), metadata)
    image = picture(RECTANGLES, (128, 96), 77)
    plain = Detector(weights, engine="torch").find(image, 0.05)
    assert len(plain) > 20
    trained = TrainedDetector.read(weights)
    files = []
    for name in ("onnxruntime", "openvino"):
        row = find_engine(name)
        files.append(tmp_path / f"net{row.suffix}")
        settings = FileSettings(metadata=metadata, dynamic_size=True)
        exported = DetectorExport(trained).network(row.form)
        row.load_file_module().write(exported, files[-1], settings)
    others = [Detector(weights, engine="onnxruntime"), *map(Detector, files)]
    for other in others:
        found = other.find(image, 0.05)
        np.testing.assert_array_equal(found.labels, plain.labels)
        np.testing.assert_allclose(found.scores, plain.scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes, plain.boxes, atol=1e-2)


def test_images_without_objects_give_mask_heads_finite_gradients() -> None:
    """Without regions the mask head's batch norms get empty input."""
    detector = network("mask_rcnn", "4conv1fc")
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
    }
    losses = detector([torch.rand(3, 64, 64)], [empty])
    sum(losses.values()).backward()
    assert losses["loss_mask"] == 0
    for name, value in detector.named_parameters():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
    assert all(value.isfinite().all() for value in detector.state_dict().values())


def test_weights_that_describe_their_head_give_its_settings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = network("mask_rcnn", "4conv1fc").state_dict()
    settings = {"name": "mask_rcnn", "channels": CHANNELS, "box_head": "4conv1fc"}
    metadata = ModelMetadata(
        model="small",
        task="detection",
        classes=CLASSES,
        preprocessing=default_preprocessing("resnest50"),
        head=settings,
    )
    write_checkpoint(tmp_path / "a.safetensors", first, metadata)
    asked = {"num_classes": len(CLASSES), "weights": tmp_path / "a.safetensors"}
    same = create_detector("small", head="mask_rcnn", **asked).state_dict()
    assert all(torch.equal(value, same[key]) for key, value in first.items())
    assert "the head, with its pyramid, is loaded too" in caplog.text
    other = create_detector("small", head="fcos", **asked)  # another head: the usual channels
    assert other.backbone.out_channels == 256
    # What the caller says comes first.
    other = create_detector("small", head="mask_rcnn", channels=96, **asked)
    assert other.backbone.out_channels == 96
    assert "roi_heads.box_head.fc6.weight" not in other.state_dict()
    other = create_detector("small", head="mask_rcnn", box_head="2fc", **asked)
    assert other.backbone.out_channels == CHANNELS
    assert "roi_heads.box_head.fc6.weight" in other.state_dict()
    # A file of another program may say anything.
    odd = replace(metadata, head={**settings, "channels": str(CHANNELS)})
    write_checkpoint(tmp_path / "a.safetensors", first, odd)
    with pytest.raises(InputError, match=f"channels must be a multiple of 32 .* '{CHANNELS}'"):
        create_detector("small", head="mask_rcnn", **asked)


@pytest.mark.parametrize("head", ["fcos", "mask_rcnn"])
def test_weights_of_a_detector_fill_its_head_too(
    head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = network(head).state_dict()
    write_checkpoint(tmp_path / "a.safetensors", first)
    asked = {"head": head, "channels": CHANNELS, "weights": tmp_path / "a.safetensors"}
    same = create_detector("small", num_classes=len(CLASSES), **asked).state_dict()
    assert all(torch.equal(value, same[key]) for key, value in first.items())
    assert "the head, with its pyramid, is loaded too" in caplog.text
    assert "loading the backbone without" not in caplog.text
    caplog.clear()
    for options in ({"num_classes": 7}, {"num_classes": len(CLASSES), "new_head": True}):
        other = create_detector("small", **asked, **options).state_dict()
        differing = {key for key in first if not torch.equal(first[key], other[key])}
        assert any(key.startswith("backbone.fpn.") for key in differing)
        assert not any(key.startswith("backbone.body.") for key in differing)
    assert caplog.text.count("the head, with its pyramid, is new and untrained") == 1
    assert caplog.text.count("loading the backbone without") == 2


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"head": "faster_rcnn", "box_head": "4conv"}, "did you mean '4conv1fc'"),
        ({"head": "retinanet", "box_head": "4conv1fc"}, "head retinanet has no box head"),
    ],
)
def test_impossible_box_heads_are_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        create_detector(ARCHITECTURE, num_classes=3, **options)


def test_the_box_head_of_the_paper_has_batch_norms_in_all_heads() -> None:
    detector = network("mask_rcnn", "4conv1fc")
    count = {
        name: sum(isinstance(m, nn.BatchNorm2d) for m in detector.get_submodule(name).modules())
        for name in ("backbone.fpn", "roi_heads.box_head", "roi_heads.mask_head")
    }
    assert count == {"backbone.fpn": 8, "roi_heads.box_head": 4, "roi_heads.mask_head": 4}
    plain = network("mask_rcnn")
    heads = (plain.get_submodule("backbone.fpn"), plain.get_submodule("roi_heads"))
    assert not any(isinstance(m, nn.BatchNorm2d) for head in heads for m in head.modules())


def test_objects_without_an_outline_count_as_crowds_and_data_without_any_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_coco(tmp_path, "train", 4, outlines=True)
    content = json.loads(path.read_text())
    del content["annotations"][0]["segmentation"]
    path.write_text(json.dumps(content))
    data = open_annotated(tmp_path, "train")
    outlined = with_outlines(data)
    assert outlined.count() == data.count() - 1
    assert outlined.objects[0].crowd[0]
    assert outlined.notes[-1] == "objects without an outline, taken as crowds: 1, such as in 0.png"
    assert outlined.notes[-1] in caplog.text
    with pytest.raises(DataError, match=f"got {data.count()} boxes without: use another head"):
        with_outlines(
            replace(data, objects=[replace(o, outlines=(None,) * len(o)) for o in data.objects])
        )


def test_masks_are_pasted_as_torchvision_pastes_them() -> None:
    """The random boxes begin at whole pixels, because torchvision truncates boxes to them."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:28, :28]
    for _ in range(20):
        away = np.hypot(rows - random.uniform(10, 18), columns - random.uniform(10, 18))
        mask = (1 / (1 + np.exp(away - 9))).astype(np.float32)
        left, top = random.integers(0, 60, 2)
        right, bottom = np.array([left, top]) + random.integers(28, 90, 2)
        box = np.array([left, top, right, bottom], np.float32)
        size = (int(random.integers(90, 150)), int(random.integers(90, 150)))
        box = box.clip(0, [*size, *size]).astype(np.float32)
        found = pasted(mask, box, size)
        assert sum(found.counts) == size[0] * size[1]
        inputs = torch.from_numpy(mask)[None, None], torch.from_numpy(box)[None], size[::-1]
        expected = (paste_masks_in_image(*inputs)[0, 0] > 0.5).numpy()
        pixels = found.pixels()
        assert (pixels & expected).sum() / (pixels | expected).sum() > 0.85


@pytest.mark.parametrize(
    ("box", "columns", "rows"),
    [
        ((3, 2, 9, 7), (3, 9), (2, 7)),
        ((2.6, 2, 9.4, 7), (3, 9), (2, 7)),
        ((2.4, 2, 9.6, 7), (2, 10), (2, 7)),
        ((-4, -3, 5, 20), (0, 5), (0, 10)),
        ((0, 0, 12, 10), (0, 12), (0, 10)),
        ((5, 5, 5, 9), (0, 0), (0, 0)),
        ((20, 2, 30, 7), (0, 0), (0, 0)),
    ],
)
def test_a_whole_mask_covers_the_pixels_whose_centers_are_in_its_box(
    box: tuple[float, ...], columns: tuple[int, int], rows: tuple[int, int]
) -> None:
    expected = np.zeros((10, 12), bool)
    expected[slice(*rows), slice(*columns)] = True
    found = pasted(np.ones((28, 28), np.float32), np.array(box, np.float32), (12, 10))
    np.testing.assert_array_equal(found.pixels(), expected)
    assert read_run_lengths(found.to_coco()) == found


def test_masks_of_neighbors_are_separated_by_an_outline() -> None:
    masks = np.zeros((2, 40, 60), bool)
    masks[0, 5:35, 5:30] = masks[1, 5:35, 28:55] = True
    plain = Image.new("RGB", (60, 40), (128, 128, 128))
    boxes = [[5, 5, 30, 35], [28, 5, 55, 35]]
    drawn = np.asarray(draw_boxes(plain, boxes, [1, 1], ["", ""], masks))
    assert (drawn[20, 29] == 255).all()  # the outline of the first mask, drawn over the second
    assert (drawn[20, 4] == 255).all()
    np.testing.assert_array_equal(drawn[2, 2], (128, 128, 128))
    expected = 128 + 0.55 * (np.array(color(1)) - 128)
    np.testing.assert_allclose(drawn[20, 15], expected, atol=1)
    np.testing.assert_allclose(drawn[20, 45], expected, atol=1)
