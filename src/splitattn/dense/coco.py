"""COCO's JSON: boxes, polygons, run lengths, crowds. Ids may have gaps."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitattn.dense.annotated import FoundImage, FoundObject, Notes
from splitattn.dense.outlines import (
    MalformedError,
    Outline,
    bounds,
    is_number,
    read_polygon,
    read_run_lengths,
)
from splitattn.errors import DataError
from splitattn.files import as_on_disk, is_file

# COCO's own training annotations have 450 MB.
_MOST_BYTES = 2**30
_KEYS = ("images", "annotations", "categories")


def read_coco(
    path: Path, folders: Sequence[Path], notes: Notes
) -> tuple[dict[int, str], list[FoundImage]]:
    """Read COCO's JSON: the names of the categories by id, sorted by id, and the images.

    Args:
        path: the JSON file.
        folders: where its images may be. The first that has any of them is used for all.

    Raises:
        DataError: the file is too large, or not in COCO's format.
    """
    try:
        return _read(_load(path), folders, notes)
    except (MalformedError, RecursionError) as error:
        raise DataError(f"{path} must be in COCO's format: {error}") from error


def _load(path: Path) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise MalformedError(f"it may have at most {_MOST_BYTES:,} bytes, got {size:,}")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MalformedError(str(error)) from error
    if not isinstance(content, dict):
        raise MalformedError(f"it must be an object, got {type(content).__name__}")
    for key in _KEYS:
        rows = content.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise MalformedError(f"{key} must be a list of objects, got {rows!r:.60}")
    return content


def _read(
    content: dict[str, Any], folders: Sequence[Path], notes: Notes
) -> tuple[dict[int, str], list[FoundImage]]:
    categories = {_id(row, "category"): row.get("name") for row in content["categories"]}
    names = [categories[key] for key in sorted(categories)]
    if not names or len({*map(str, names)}) < len(content["categories"]):
        raise MalformedError("categories must have different ids and names, and be at least one")
    if not all(isinstance(name, str) for name in names):
        raise MalformedError(f"a category's name must be text, got {names!r:.60}")
    labels = {key: label for label, key in enumerate(sorted(categories))}
    images = {_id(row, "image"): row for row in content["images"]}
    if len(images) < len(content["images"]):
        raise MalformedError("images must have different ids")
    objects: dict[int, list[FoundObject]] = {key: [] for key in images}
    for row in content["annotations"]:
        number = _id(row, "annotation")
        if type(image := row.get("image_id")) not in (int, float):
            raise MalformedError(
                f"image_id of annotation {number} must be a number, got {image!r:.60}"
            )
        if image not in images:
            notes.add("annotations of images that are not listed, left out", f"{number}")
            continue
        objects[image].append(_object(row, number, labels, notes))
    file_names = {key: _file_name(row) for key, row in images.items()}
    folder = _folder(folders, [*file_names.values()])
    found = [
        FoundImage(path=folder / name, name=name, size=_size(images[key]), objects=objects[key])
        for key, name in file_names.items()
    ]
    return {key: str(categories[key]) for key in sorted(categories)}, found


def _id(row: dict[str, Any], kind: str) -> int:
    value = row.get("id")
    if type(value) is not int:
        raise MalformedError(f"the id of each {kind} must be a whole number, got {value!r:.60}")
    return value


def _file_name(row: dict[str, Any]) -> str:
    name = row.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise MalformedError(f"an image's file_name must be text, got {name!r:.60}")
    return name


def _size(row: dict[str, Any]) -> tuple[int, int] | None:
    width, height = row.get("width"), row.get("height")
    if width is None and height is None:
        return None
    if type(width) is not int or type(height) is not int or min(width, height) < 1:
        raise MalformedError(
            f"width and height of an image must be 1 or more, got {width!r:.30} and {height!r:.30}"
        )
    return width, height


def _object(row: dict[str, Any], number: int, labels: dict[int, int], notes: Notes) -> FoundObject:
    category = row.get("category_id")
    if type(category) is not int or category not in labels:
        raise MalformedError(
            f"annotation {number} must have one of the {len(labels)} categories, got "
            f"{category!r:.60}"
        )
    outline = _outline(row.get("segmentation"), number, notes)
    box = row.get("bbox")
    if box is None and isinstance(outline, tuple):
        left, top, right, bottom = bounds(outline)
    elif isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
        left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    else:
        raise MalformedError(f"bbox of annotation {number} must be four numbers, got {box!r:.60}")
    area = row.get("area")
    if area is not None and not is_number(area):
        raise MalformedError(f"area of annotation {number} must be a number, got {area!r:.60}")
    return FoundObject(
        box=(float(left), float(top), float(right), float(bottom)),
        label=labels[category],
        crowd=bool(row.get("iscrowd", 0)),
        area=None if area is None else float(area),
        outline=outline,
    )


def _outline(value: object, number: int, notes: Notes) -> Outline | None:
    if value is None or value == []:
        return None
    if isinstance(value, dict):
        return read_run_lengths(value)
    if not isinstance(value, list):
        raise MalformedError(
            f"segmentation of annotation {number} must be polygons or run lengths, got "
            f"{value!r:.60}"
        )
    polygons = [polygon for part in value if (polygon := read_polygon(part)) is not None]
    if len(polygons) < len(value):
        notes.add("polygons of fewer than three points, left out", f"in annotation {number}")
    return tuple(polygons) or None


def _folder(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """The first folder that has any of a sample of the images, or else the first of all."""
    few = names[:: max(len(names) // 20, 1)]
    has = (folder for folder in folders if any(is_file(as_on_disk(folder / name)) for name in few))
    return next(has, folders[0])
