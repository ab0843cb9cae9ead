"""COCO's figures are those of pycocotools."""

from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import encode

from splitattn.dense.annotated import AnnotatedImages, Objects
from splitattn.dense.found import FoundObjects
from splitattn.dense.outlines import Outline, RunLengths, to_mask, to_run_lengths
from splitattn.dense.scoring import score

SIZE = (640, 480)


def random_objects(random: np.random.Generator, count: int) -> Objects:
    """Random boxes of all sizes; one in ten is a crowd."""
    low = random.uniform(0, 300, (count, 2))
    sides = np.exp(random.uniform(np.log(6), np.log(170), (count, 2)))
    return Objects(
        boxes=np.concatenate([low, low + sides], 1),
        labels=random.integers(0, 4, count),
        crowd=random.random(count) < 0.1,
        areas=sides.prod(1) * random.uniform(0.5, 1.0, count),
        outlines=(None,) * count,
    )


def found_near(objects: Objects, random: np.random.Generator) -> FoundObjects:
    """Simulated detections: shifted, repeated and misclassified objects, and false positives."""
    again = random.integers(0, max(len(objects), 1), 2 * len(objects))
    boxes = objects.boxes[again] + random.normal(0, 4, (len(again), 4))
    boxes = np.concatenate([boxes, random_objects(random, 3).boxes])
    labels = np.concatenate([objects.labels[again], random.integers(0, 4, 3)])
    wrong = random.random(len(labels)) < 0.1
    scores = random.random(len(labels)).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    return FoundObjects(
        boxes=boxes.astype(np.float32)[order],
        labels=np.where(wrong, (labels + 1) % 4, labels)[order],
        scores=scores[order],
    )


def data_of(objects: list[Objects]) -> AnnotatedImages:
    return AnnotatedImages(
        origin="here",
        classes=("a", "b", "c", "d", "never"),
        images=[Path(f"{i}.jpg") for i in range(len(objects))],
        names=[str(i) for i in range(len(objects))],
        sizes=[SIZE] * len(objects),
        objects=objects,
    )


def by_pycocotools(
    data: AnnotatedImages, found: list[FoundObjects], kind: str = "bbox"
) -> COCOeval:
    """Score with pycocotools, with other ids of categories and images."""
    truth = COCO()
    rows = [
        {
            "image_id": 7 * image + 5,
            "category_id": 3 * int(label) + 2,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "area": area,
            "iscrowd": int(crowd),
            **({} if outline is None else {"segmentation": segmentation(outline)}),
        }
        for image, each in enumerate(data.objects)
        for box, label, crowd, area, outline in zip(
            each.boxes.tolist(),
            each.labels,
            each.crowd,
            each.areas.tolist(),
            each.outlines,
            strict=True,
        )
    ]
    truth.dataset = {
        "info": {},
        "images": [{"id": 7 * i + 5, "width": 640, "height": 480} for i in range(len(data))],
        "categories": [{"id": 3 * i + 2, "name": name} for i, name in enumerate(data.classes)],
        "annotations": [{"id": i + 1, **row} for i, row in enumerate(rows)],
    }
    results = [
        {
            "image_id": 7 * image + 5,
            "category_id": 3 * int(label) + 2,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": float(value),
        }
        for image, each in enumerate(found)
        for box, label, value in zip(each.boxes.tolist(), each.labels, each.scores, strict=True)
    ]
    if kind == "segm":
        masks = [each.pixels() for image in found for each in image.run_lengths(SIZE)]
        for row, mask in zip(results, masks, strict=True):
            del row["bbox"]
            row["segmentation"] = encode(np.asfortranarray(mask, np.uint8))
    with redirect_stdout(StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def test_figures_are_those_of_pycocotools_by_size_and_class() -> None:
    random = np.random.default_rng(0)
    objects = [random_objects(random, int(n)) for n in random.integers(0, 12, 20)]
    found = [found_near(each, random) for each in objects]
    data = data_of(objects)
    scores = score(data, found)
    expected = by_pycocotools(data, found)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert scores.figures == pytest.approx(
        {name: 100 * value for name, value in zip(names, expected.stats, strict=False)}, abs=1e-6
    )
    assert 5 < scores.figures["ap"] < 95
    precision = expected.eval["precision"][:, :, :, 0, -1]
    for label, each in enumerate(scores.by_class[:4]):
        assert each.ap == pytest.approx(100 * precision[:, :, label].mean(), abs=1e-6)
        assert each.ap50 == pytest.approx(100 * precision[0, :, label].mean(), abs=1e-6)
        assert each.objects == sum(int(((o.labels == label) & ~o.crowd).sum()) for o in objects)
    assert scores.by_class[4].ap is None
    assert scores.objects == data.count() == sum(each.objects for each in scores.by_class)


def segmentation(outline: Outline) -> object:
    if isinstance(outline, RunLengths):
        return encode(np.asfortranarray(outline.pixels(), np.uint8))
    return [polygon.ravel().tolist() for polygon in outline]


def with_shapes(objects: Objects) -> Objects:
    """Add outlines: a diamond in each box, as a polygon or as run lengths in turn."""
    outlines: list[Outline] = []
    for i, (left, top, right, bottom) in enumerate(objects.boxes):
        x, y = (left + right) / 2, (top + bottom) / 2
        diamond = (np.array([[x, top], [right, y], [x, bottom], [left, y]]),)
        outlines.append(to_run_lengths(to_mask(diamond, SIZE)) if i % 2 else diamond)
    return replace(objects, outlines=tuple(outlines))


def test_figures_of_masks_are_those_of_pycocotools() -> None:
    random = np.random.default_rng(3)
    objects = [with_shapes(random_objects(random, int(n))) for n in random.integers(0, 7, 6)]
    away = np.abs(np.mgrid[-1:1:28j, -1:1:28j]).sum(0)  # distance from the center of a diamond
    found = []
    for each in objects:
        near = found_near(each, random)
        noise = random.normal(0, 0.1, (len(near), 28, 28))
        found.append(replace(near, masks=(away < 1 + noise).astype(np.float32)))
    data = data_of(objects)
    scores = score(data, found)
    boxes = score(data, [replace(each, masks=None) for each in found])
    assert scores.figures.items() >= boxes.figures.items()
    stats = by_pycocotools(data, found, "segm").stats
    for name, value in zip(("ap", "ap50", "ap75", "ap_small", "ap_medium"), stats, strict=False):
        assert scores.figures[f"mask_{name}"] == pytest.approx(100 * value, abs=1e-6)
    assert 5 < scores.figures["mask_ap"] < 95
    assert scores.figures["mask_ap"] != scores.figures["ap"]
    assert scores.by_class[0].mask_ap50 is not None
    assert boxes.by_class[0].mask_ap50 is None


def test_the_annotations_themselves_score_full_marks() -> None:
    random = np.random.default_rng(1)
    objects = [replace(o, crowd=np.zeros(len(o), bool)) for o in [random_objects(random, 9)]]
    found = FoundObjects(
        boxes=objects[0].boxes.astype(np.float32),
        labels=objects[0].labels,
        scores=np.linspace(1, 0.5, 9, dtype=np.float32),
    )
    assert score(data_of(objects), [found]).figures["ap"] == pytest.approx(100)


def test_nothing_found_scores_nothing() -> None:
    objects = [random_objects(np.random.default_rng(2), 9)]
    nothing = replace(FoundObjects.none(), masks=np.zeros((0, 28, 28), np.float32))
    scores = score(data_of(objects), [nothing])
    assert scores.figures["mask_ap"] == 0
    assert scores.figures["ap"] == scores.figures["ap50"] == 0
    assert "ap_large" in scores.figures or len(scores.figures) >= 3
