"""Data sets of annotated images with odd but mostly readable annotations.

Those that are read are then augmented, drawn as masks, and scored.
"""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from splitattn.data.loading import random_stream
from splitattn.dense.annotated import AnnotatedImages, read_image, with_outlines
from splitattn.dense.found import FoundObjects
from splitattn.dense.loading import DenseAugmentation, augmented
from splitattn.dense.mask_loading import MaskAugmentation
from splitattn.dense.mask_loading import augmented as augmented_mask
from splitattn.dense.masks import IGNORED, open_masked, read_masked
from splitattn.dense.open import open_annotated
from splitattn.dense.outlines import to_run_lengths
from splitattn.dense.resizing import Sides
from splitattn.dense.scoring import score
from splitattn.errors import DataError
from tests.dense.datasets import bndbox, voc

SIZE = (24, 16)
CLASSES = ("blue", "green", "red")
# Values in place of a number.
_ODD: tuple[Any, ...] = (-1, 0, 0.5, 1e-9, -1e7, 1e8, 10**6, True, None, "3", [], float("nan"))


def annotated_seeds() -> list[bytes]:
    """One data set of each format, described as JSON."""
    return [_described(kind, random.Random(0)) for kind in ("coco", "yolo", "voc", "masks")]


def annotated_set(seeds: Sequence[bytes], dice: random.Random) -> bytes:
    """A data set of one to three images, as JSON of its format and the content of its files."""
    return _described(json.loads(dice.choice(seeds))["kind"], dice)


def _described(kind: str, dice: random.Random) -> bytes:
    make = {"coco": _coco, "yolo": _yolo, "voc": _voc, "masks": _masks}[kind]
    return json.dumps({"kind": kind, "files": make(dice)}).encode()


def _number(dice: random.Random, most: float, odd: float = 0.03) -> Any:
    if dice.random() < odd:
        return dice.choice(_ODD)
    return dice.choice((dice.uniform(-0.2, 1.2) * most, round(dice.uniform(0, 1) * most)))


def _coco(dice: random.Random) -> dict[str, str]:
    width, height = SIZE
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number in range(dice.randint(1, 3)):
        images.append({"id": number, "file_name": f"{number}.png"})
        if dice.random() < 0.8:
            images[-1] |= {"width": width, "height": height}
        for _ in range(dice.randint(0, 4)):
            row = {
                "id": len(rows),
                "image_id": number if dice.random() < 0.97 else 99,
                "category_id": 10 * dice.randint(1, 3),
                "bbox": [_number(dice, side, 0.01) for side in SIZE * 2],
                "area": _number(dice, 200),
                "iscrowd": int(dice.random() < 0.15),
                "segmentation": _segmentation(dice),
            }
            for key in ("area", "iscrowd", "segmentation", "bbox"):
                if dice.random() < 0.05:
                    del row[key]
            rows.append(row)
    categories = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": rows, "categories": categories}
    return {"train.json": json.dumps(content)}


def _segmentation(dice: random.Random) -> Any:
    width, height = SIZE
    kind = dice.randrange(6)
    if kind < 3:
        points = [_number(dice, dice.choice(SIZE), 0.005) for _ in range(2 * dice.randint(1, 6))]
        return [points] * dice.randint(1, 2)
    if kind == 3:
        mask = np.zeros((height, width), bool)
        mask[dice.randrange(height) :, dice.randrange(width) :] = True
        return to_run_lengths(mask).to_coco()
    if kind == 4:
        counts = [dice.randrange(60) for _ in range(dice.randint(1, 6))]
        total = dice.choice((width * height, sum(counts)))
        counts.append(max(total - sum(counts), 0))
        return {"size": dice.choice(([height, width], [1, sum(counts)])), "counts": counts}
    return []


def _yolo(dice: random.Random) -> dict[str, str]:
    files = {"classes.txt": "\n".join(CLASSES)}
    for number in range(dice.randint(1, 3)):
        lines = []
        for _ in range(dice.randint(0, 4)):
            count = dice.choice((4, 4, 6, 8, 10))
            shares = [dice.uniform(-0.2, 1.2) for _ in range(count)]
            if dice.random() < 0.1:
                shares[0] = dice.choice((0.0, 1.0, 2.9, 3.1, 1e-12))
            lines.append(" ".join(map(str, (dice.randrange(3), *shares))))
        files[f"labels/train/{number}.txt"] = dice.choice(("\n", "\n\n", "\r\n")).join(lines)
    return files


def _voc(dice: random.Random) -> dict[str, str]:
    files = {}
    for number in range(dice.randint(1, 3)):
        objects = [
            (
                dice.choice(CLASSES),
                f"<difficult>{int(dice.random() < 0.2)}</difficult>"
                + bndbox(*(_number(dice, side, 0.005) for side in SIZE * 2)),
            )
            for _ in range(dice.randint(0, 4))
        ]
        size = dice.choice((SIZE, SIZE, None, (0, 0)))
        files[f"train/{number}.xml"] = voc(f"{number}.png", size, objects)
    return files


def _masks(dice: random.Random) -> dict[str, Any]:
    width, height = dice.choice((SIZE, SIZE, SIZE, (16, 16)))
    most = dice.choice((2, 2, 2, 3))
    files: dict[str, Any] = {"classes.txt": "\n".join(CLASSES)}
    for number in range(dice.randint(1, 3)):
        values = [[dice.choice((dice.randint(0, most), IGNORED)) for _ in range(width)]] * height
        files[f"train/masks/{number}.png"] = values
    return files


def read_annotated(content: bytes, folder: Path) -> None:
    """Open a data set and use it as training and evaluation do."""
    described = json.loads(content)
    root = folder / "set"
    shutil.rmtree(root, ignore_errors=True)
    where = {"coco": "images", "yolo": "images/train", "voc": "train", "masks": "train/images"}
    for number in range(3):
        path = root / where[described["kind"]] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((SIZE[1], SIZE[0], 3), 80 * number, np.uint8)
        Image.fromarray(pixels).save(path)
    for name, text in described["files"].items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, str):
            path.write_text(text, encoding="utf-8")
        else:
            Image.fromarray(np.array(text, np.uint8)).save(path)
    if described["kind"] == "masks":
        _use_masks(root)
    else:
        _use_boxes(open_annotated(root, "train"))


def _use_masks(root: Path) -> None:
    data = open_masked(root, "train")
    augmentation = MaskAugmentation(
        sides=Sides(short=32, long=64), crop=32, fill=(0, 0, 0), zoom=1.5
    )
    for index in range(len(data)):
        with random_stream(index):
            image, mask = augmented_mask(*read_masked(data, index), augmentation)
        assert image.shape == (3, 32, 32)
        assert mask.shape == (32, 32)
        assert ((mask < len(CLASSES)) | (mask == IGNORED)).all()


def _use_boxes(data: AnnotatedImages) -> None:
    found = []
    try:
        outlined: AnnotatedImages | None = with_outlines(data)
    except DataError:
        outlined = None  # it has only boxes
    augmentation = DenseAugmentation(sides=Sides(short=32, long=64), zoom=1.5)
    for index, objects in enumerate(data.objects):
        left, top, right, bottom = objects.boxes.T
        assert ((left >= 0) & (top >= 0) & (left < right) & (top < bottom)).all()
        assert ((right <= SIZE[0]) & (bottom <= SIZE[1])).all()
        assert (objects.labels < len(data.classes)).all()
        image = read_image(data, index)
        with random_stream(index):
            plain = augmented(image, objects, augmentation)
        height, width = plain.pixels.shape[1:]
        assert (plain.boxes >= 0).all()
        assert (plain.boxes[:, 2:] <= torch.tensor([width, height])).all()
        if outlined is not None:
            with random_stream(index):
                whole = augmented(image, outlined.objects[index], augmentation, masks=True)
            assert whole.masks is not None
            assert whole.masks.shape == (len(whole.labels), *whole.pixels.shape[1:])
        found.append(
            FoundObjects(
                boxes=objects.boxes.astype(np.float32),
                labels=objects.labels,
                scores=np.linspace(1, 0.5, len(objects), dtype=np.float32),
                masks=None if outlined is None else np.ones((len(objects), 28, 28), np.float32),
            )
        )
    scored = score(data if outlined is None else outlined, found)
    assert all(0 <= value <= 100 + 1e-9 for value in scored.figures.values())
    plain_found = [replace(each, masks=None) for each in found]
    assert score(data, plain_found).objects == data.count()
