"""Small data sets for trying commands, made from the photographs in the package."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from splitattn.errors import InputError, write_failure
from splitattn.images.crop import cropped
from splitattn.images.decode import decode
from splitattn.images.samples import sample_photographs

SIZE = 96
_COUNTS = {"train": 40, "val": 10}  # of each class
# Sides of a crop, as shares of the photograph's.
_SHARES = (0.4, 0.9)

SCENE = 160  # side of an image with objects, in pixels
SCENE_COUNTS = {"train": 60, "val": 20}
_MOST_OBJECTS = 3
_TRIES = 20  # places tried for an object before the image goes without it
_OBJECT = (44, 80)  # sides of an object, in pixels
_BLUR = 8  # radius for the background, in pixels
_GRAY = Image.new("RGB", (SCENE, SCENE), (128, 128, 128))

_Mask = NDArray[np.bool_]
# A photograph with the name of its class.
_Photographs = Mapping[str, Image.Image]


@dataclass(frozen=True, kw_only=True)
class _Object:
    """An object in an image: its class, and its pixels (H, W)."""

    label: int
    mask: _Mask


def write_toy_data(folder: Path, kind: str = "labels", *, seed: int = 0) -> int:
    """Write a data set of five classes, the package's photographs, and return how many images.

    Both splits come from the same photographs, so figures only show that training works.

    Args:
        folder: a new or empty folder.
        kind: one of

            - labels: crops in ImageFolder layout, of 96 x 96 pixels, 40 of each class for training
              and 10 for validation;
            - boxes: 60 images for training and 20 for validation, of 160 x 160 pixels, with up to
              three round crops on a blurred background, and COCO files with their boxes and masks;
            - masks: the same images with a mask each; class 0 is the background.
        seed: of all random choices.

    Raises:
        InputError: the folder is not empty or cannot be written, or there is no such kind.
    """
    if kind not in _WRITERS:
        raise InputError(f"kind must be {', '.join(_WRITERS)}, got {kind!r}")
    try:
        is_new = not folder.exists()
        if not is_new and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"the data set must be a new or empty folder, got {folder}")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(write_failure(folder, error)) from error
    try:
        photographs = {path.stem: decode(path) for path in sample_photographs()}
        return _WRITERS[kind](folder, photographs, random.Random(seed))
    except BaseException as error:  # also Ctrl-C: an incomplete data set would look complete
        with suppress(OSError):
            for path in folder.iterdir():
                rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
            if is_new:
                folder.rmdir()
        if isinstance(error, OSError):
            raise InputError(write_failure(folder, error)) from error
        raise


def _write_labels(folder: Path, photographs: _Photographs, generator: random.Random) -> int:
    for name, photograph in photographs.items():
        for split, count in _COUNTS.items():
            below = folder / split / name
            below.mkdir(parents=True)
            for index in range(count):
                crop = _crop(photograph, (SIZE, SIZE), generator)
                crop.save(below / f"{index:02}.jpg", quality=90)
    return len(photographs) * sum(_COUNTS.values())


def _write_boxes(folder: Path, photographs: _Photographs, generator: random.Random) -> int:
    """Write COCO's layout: `SPLIT.json`, and its images in `SPLIT/`."""
    categories = [{"id": number, "name": name} for number, name in enumerate(photographs, 1)]
    for split, count in SCENE_COUNTS.items():
        (folder / split).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (image, objects) in enumerate(_scenes(count, photographs, generator)):
            name = f"{number:02}.png"
            image.save(folder / split / name)
            images.append({"id": number, "file_name": name, "width": SCENE, "height": SCENE})
            for each in objects:
                ids = {"id": len(annotations) + 1, "image_id": number}
                annotations.append({**ids, "category_id": each.label + 1, **_coco(each.mask)})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return sum(SCENE_COUNTS.values())


def _write_masks(folder: Path, photographs: _Photographs, generator: random.Random) -> int:
    """Write `SPLIT/images/` and `SPLIT/masks/`."""
    for split, count in SCENE_COUNTS.items():
        for name in ("images", "masks"):
            (folder / split / name).mkdir(parents=True)
        for number, (image, objects) in enumerate(_scenes(count, photographs, generator)):
            classes = np.zeros((SCENE, SCENE), np.uint8)
            for each in objects:
                classes[each.mask] = each.label + 1
            image.save(folder / split / "images" / f"{number:02}.png")
            Image.fromarray(classes).save(folder / split / "masks" / f"{number:02}.png")
    lines = "\n".join(("background", *photographs))
    (folder / "classes.txt").write_text(f"{lines}\n", encoding="utf-8")
    return sum(SCENE_COUNTS.values())


_WRITERS: dict[str, Callable[[Path, _Photographs, random.Random], int]] = {
    "labels": _write_labels,
    "boxes": _write_boxes,
    "masks": _write_masks,
}


def _scenes(
    count: int, photographs: _Photographs, generator: random.Random
) -> Iterator[tuple[Image.Image, list[_Object]]]:
    for _ in range(count):
        yield _scene(list(photographs.values()), generator)


def _scene(
    photographs: list[Image.Image], generator: random.Random
) -> tuple[Image.Image, list[_Object]]:
    """Round crops of the photographs, which do not overlap, on a blurred and pale background."""
    ground = _crop(generator.choice(photographs), (SCENE, SCENE), generator)
    image = Image.blend(ground.filter(ImageFilter.GaussianBlur(_BLUR)), _GRAY, 0.5)
    objects: list[_Object] = []
    taken = np.zeros((SCENE, SCENE), bool)
    for _ in range(generator.randint(1, _MOST_OBJECTS)):
        width, height = generator.randint(*_OBJECT), generator.randint(*_OBJECT)
        for _ in range(_TRIES):
            left, top = generator.randint(0, SCENE - width), generator.randint(0, SCENE - height)
            place = Image.new("1", (SCENE, SCENE))
            ImageDraw.Draw(place).ellipse((left, top, left + width - 1, top + height - 1), fill=1)
            mask = np.asarray(place)
            if not (mask & taken).any():
                label = generator.randrange(len(photographs))
                crop = _crop(photographs[label], (width, height), generator)
                image.paste(crop, (left, top), place.crop((left, top, left + width, top + height)))
                objects.append(_Object(label=label, mask=mask))
                taken |= mask
                break
    return image, objects


def _coco(mask: _Mask) -> dict[str, Any]:
    """The box, area and run lengths of an object, as COCO writes them."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    left, top = int(columns[0]), int(rows[0])
    # Run lengths go down each column and begin with pixels outside.
    changes = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False))
    return {
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {
            "size": list(mask.shape),
            "counts": np.diff([0, *changes, mask.size]).tolist(),
        },
    }


def _crop(photograph: Image.Image, size: tuple[int, int], generator: random.Random) -> Image.Image:
    side = round(min(photograph.size) * generator.uniform(*_SHARES))
    left = generator.randint(0, photograph.width - side)
    top = generator.randint(0, photograph.height - side)
    crop = cropped(photograph, (left, top, left + side, top + side))
    crop = crop.resize(size, Image.Resampling.BICUBIC)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else crop
