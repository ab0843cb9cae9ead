"""Small annotated data sets on disk, in each format: colored rectangles on gray noise."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from splitattn.dense.outlines import to_run_lengths

CLASSES = ("blue", "green", "red")
_COLORS = ((40, 60, 220), (40, 200, 60), (220, 50, 40))

# Left, top, right, bottom and label of the rectangles of one image.
Rectangle = tuple[int, int, int, int, int]


def picture(rectangles: Sequence[Rectangle], size: tuple[int, int], seed: int = 0) -> Image.Image:
    """An image of colored rectangles on noise; `size` is width and height."""
    width, height = size
    pixels = np.random.default_rng(seed).normal(128, 12, (height, width, 3))
    for left, top, right, bottom, label in rectangles:
        pixels[top:bottom, left:right] = _COLORS[label]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def scene(seed: int, size: tuple[int, int] = (64, 64)) -> list[Rectangle]:
    """One or two rectangles that do not overlap, for an image of `size`."""
    random = np.random.default_rng((7, seed))
    width, height = size
    count, half = int(random.integers(1, 3)), width // 2
    found: list[Rectangle] = []
    for i in range(count):
        w, h = (int(v) for v in random.integers(16, 28, 2))
        left = i * half + int(random.integers(0, half - w + 1))
        top = int(random.integers(0, height - h + 1))
        found.append((left, top, left + w, top + h, int(random.integers(0, len(CLASSES)))))
    return found


def coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of a COCO file. Category ids have gaps and are listed in reverse order."""
    categories = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories[::-1]}


def outline(rectangle: Rectangle, size: tuple[int, int], number: int) -> Any:
    """A rectangle as COCO's segmentation: a polygon for odd numbers, else run lengths."""
    left, top, right, bottom, _ = rectangle
    if number % 2:
        return [[left, top, right, top, right, bottom, left, bottom]]
    mask = np.zeros(size[::-1], dtype=bool)
    mask[top:bottom, left:right] = True
    return to_run_lengths(mask).to_coco()


def write_coco(
    root: Path,
    split: str,
    count: int,
    *,
    first: int = 0,
    size: tuple[int, int] = (64, 64),
    outlines: bool = False,
) -> Path:
    """Write `count` images into `root`/images/ and their boxes into `root`/{split}.json."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(first, first + count):
        name = f"{number}.png"
        rectangles = scene(number, size)
        picture(rectangles, size, number).save(root / "images" / name)
        images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        for left, top, right, bottom, label in rectangles:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 10 * (label + 1),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
            if outlines:
                rectangle = (left, top, right, bottom, label)
                annotations[-1]["segmentation"] = outline(rectangle, size, len(annotations))
    path = root / f"{split}.json"
    path.write_text(json.dumps(coco(images, annotations)))
    return path


def write_splits(root: Path, *, train: int = 8, val: int = 4, outlines: bool = False) -> Path:
    """Write a COCO data set with the splits train and val."""
    write_coco(root, "train", train, outlines=outlines)
    write_coco(root, "val", val, first=1000, outlines=outlines)
    return root


def voc(filename: str, size: tuple[int, int] | None, objects: Sequence[tuple[str, str]]) -> str:
    """A VOC file. Each object is its class and the XML after its name, which includes the box."""
    inside = f"<filename>{filename}</filename>"
    if size:
        inside += f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    for name, elements in objects:
        inside += f"<object><name>{name}</name>{elements}</object>"
    return f"<annotation>{inside}</annotation>"


def bndbox(left: object, top: object, right: object, bottom: object) -> str:
    """The XML of a box in VOC format."""
    sides = zip(("xmin", "ymin", "xmax", "ymax"), (left, top, right, bottom), strict=True)
    return f"<bndbox>{''.join(f'<{side}>{value}</{side}>' for side, value in sides)}</bndbox>"


MASK_CLASSES = ("background", *CLASSES)
VOID = 255


def class_mask(rectangles: Sequence[Rectangle], size: tuple[int, int]) -> np.ndarray:
    """The class of each pixel of `picture`: 0 for noise; 255, no class, in the last row."""
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    for left, top, right, bottom, label in rectangles:
        mask[top:bottom, left:right] = label + 1
    mask[-1] = VOID
    return mask


def write_masked(
    root: Path, split: str, count: int, *, first: int = 0, size: tuple[int, int] = (64, 64)
) -> Path:
    """Write `count` images and masks into `root`/{split}/images and `root`/{split}/masks."""
    folder = root / split
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(MASK_CLASSES))
    for number in range(first, first + count):
        rectangles = scene(number, size)
        picture(rectangles, size, number).save(folder / "images" / f"{number}.png")
        mask = Image.fromarray(class_mask(rectangles, size))
        mask.save(folder / "masks" / f"{number}.png")
    return root


def write_masked_splits(root: Path, *, train: int = 8, val: int = 4) -> Path:
    """Write images with masks in the splits train and val."""
    write_masked(root, "train", train)
    write_masked(root, "val", val, first=1000)
    return root
