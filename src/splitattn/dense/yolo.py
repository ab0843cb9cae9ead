"""YOLO's text files: one for each image, with a line for each box or polygon.

A line is `class x y width height`, the center and size of a box, or `class x y x y x y ...`, a
polygon. Coordinates are shares of the image's width and height.
"""

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitattn.dense.annotated import FoundImage, FoundObject
from splitattn.dense.outlines import MalformedError, area, bounds, is_number
from splitattn.errors import DataError, ImageError
from splitattn.images.decode import read_size
from splitattn.libraries import require

_MOST_BYTES = 2**24
_MOST_BYTES_OF_NAMES = 2**20
_BOX = 5  # numbers in a line; a polygon has at least 7
# Larger numbers are pixels and not shares.
_LARGEST_SHARE = 3.0


def read_yolo(path: Path | None, image: Path, classes: Sequence[str]) -> FoundImage:
    """The image that a text file describes. An image without such a file has no objects.

    Raises:
        DataError: the file is too large, or not in YOLO's format.
    """
    try:
        lines = _lines(path) if path is not None else []
        try:
            size = read_size(image) if image.is_file() else None
        except ImageError:  # reported when it is left out
            size = None
        width, height = size or (1, 1)
        objects = [_object(line, len(classes), width, height) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must be in YOLO's format: {error}") from error
    return FoundImage(path=image, name=image.name, size=size, objects=objects)


def _lines(path: Path) -> list[str]:
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise MalformedError(f"it may have at most {_MOST_BYTES:,} bytes, got {size:,}")
    return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _object(line: str, classes: int, width: int, height: int) -> FoundObject:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        values = []
    shares = values[1:]
    if (
        len(values) < _BOX
        or len(values) % 2 == 0
        or not all(map(is_number, values))
        or max(map(abs, shares)) > _LARGEST_SHARE
    ):
        raise MalformedError(
            "a line must be a class and the coordinates of a box (4) or polygon (6 or more), as "
            f"shares of the image's width and height from 0 to 1, got {line!r:.60}"
        )
    if values[0] != int(values[0]) or not 0 <= values[0] < classes:
        raise MalformedError(f"a class must be 0 to {classes - 1}, got {line.split()[0]!r:.20}")
    label, scale = int(values[0]), np.array([width, height], dtype=np.float64)
    if len(values) == _BOX:
        x, y, box_width, box_height = np.array(shares) * np.tile(scale, 2)
        left, top = float(x - box_width / 2), float(y - box_height / 2)
        box = (left, top, left + float(box_width), top + float(box_height))
        return FoundObject(box=box, label=label)
    polygon = np.array(shares).reshape(-1, 2) * scale
    return FoundObject(box=bounds([polygon]), label=label, area=area(polygon), outline=(polygon,))


def read_names(path: Path) -> tuple[str, ...]:
    """Names of the classes: one a line, or `names` in a YAML file as a list or a mapping from 0 on.

    Raises:
        DataError: the file has no names, or some of them twice.
    """
    try:
        if (size := path.stat().st_size) > _MOST_BYTES_OF_NAMES:
            raise MalformedError(
                f"it may have at most {_MOST_BYTES_OF_NAMES:,} bytes, got {size:,}"
            )
        text = path.read_text(encoding="utf-8-sig")
        yaml = path.suffix in (".yaml", ".yml")
        names = _yaml_names(text) if yaml else [line.strip() for line in text.rstrip().splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} must name the classes: {error}") from error
    if "" in names:
        # A line left out would give every later class another number.
        raise DataError(f"{path} must name a class on each line, got none on {names.index('') + 1}")
    if not names or len(set(names)) < len(names):
        raise DataError(f"{path} must name each class once, got {names!r:.60}")
    return tuple(names)


def _yaml_names(text: str) -> list[str]:
    require("reading a YAML file", "yaml")
    import yaml

    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise MalformedError(" ".join(str(error).split())) from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(n, str | int | float) for n in names):
        # Shortened by reprlib: with aliases, a short YAML file can hold a list of a billion items.
        raise MalformedError(
            f"names must be a list, or a mapping from 0 on, got {reprlib.repr(names):.60}"
        )
    return [str(name) for name in names]
