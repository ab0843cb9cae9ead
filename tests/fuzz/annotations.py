"""Annotations of objects in every format, and masks, for fuzzing."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from splitattn.dense.annotated import Notes, annotated_images
from splitattn.dense.coco import read_coco
from splitattn.dense.voc import read_voc
from splitattn.dense.yolo import read_names, read_yolo
from splitattn.errors import InputError
from splitattn.images.decode import decode_indices
from tests.dense.datasets import bndbox, coco, picture, voc

CLASSES = ("blue", "green", "red")


def annotation_seeds() -> list[bytes]:
    row = {"id": 1, "image_id": 7, "category_id": 10, "iscrowd": 0, "area": 12.5}
    outlines = (
        [[4, 6, 20, 6, 20.5, 30, 4, 30], [1, 2, 3, 4]],
        {"size": [16, 16], "counts": [40, 100, 116]},
        {"size": [16, 16], "counts": "X1T3T3"},
        [],
    )
    rows = [
        {**row, "id": i, "bbox": [4, 6, 16.0, -1], "segmentation": outline}
        for i, outline in enumerate(outlines)
    ]
    image = {"id": 7, "file_name": "a.png", "width": 16, "height": 16}
    box = f"<difficult>1</difficult>{bndbox(1, 2.5, 9, 1e3)}"
    return [
        json.dumps(coco([image], rows)).encode(),
        json.dumps(coco([{"id": 7, "file_name": "a.png"}], rows[:1])).encode(),
        voc("a.png", (16, 16), [("red", box), ("blue", bndbox(3, 3, 4, 4))]).encode(),
        b'<!DOCTYPE a [<!ENTITY b "c">]><annotation><filename>&b;</filename></annotation>',
        b"0 0.5 0.5 0.25 0.1\n2 0.1 0.1 0.9 0.1 0.9 0.9\n",
        b"path: .\nnames:\n  0: blue\n  1: green\n",
        b"names: [blue, green, red]\n",
        b"blue\ngreen\n",
        *mask_seeds(),
    ]


def mask_seeds() -> list[bytes]:
    """PNG masks: gray, palette, 1 bit, 16 bits, and gray with alpha."""
    numbers = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    palette = numbers.copy()
    palette.putpalette([*range(72)])
    kinds = (numbers, palette, numbers.convert("1"), numbers.convert("I;16"), numbers.convert("LA"))
    return [encoded(kind) for kind in kinds]


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def read_annotations(content: bytes, folder: Path) -> None:
    """Give `content` to the readers of all formats, and raise the first refusal."""
    image = folder / "a.png"
    if not image.exists():
        picture([], (16, 16)).save(image)
    path = folder / "annotations"
    path.write_bytes(content)
    names = folder / "data.yaml"
    names.write_bytes(content)

    def as_coco() -> None:
        notes = Notes()
        classes, found = read_coco(path, [folder], notes)
        annotated_images(path, tuple(classes.values()), found, notes)

    refusals = []
    for read in (
        as_coco,
        lambda: read_voc(path),
        lambda: annotated_images(path, CLASSES, [read_yolo(path, image, CLASSES)], Notes()),
        lambda: read_names(path),
        lambda: read_names(names),
        lambda: decode_indices(path),
    ):
        try:
            read()
        except InputError as error:
            refusals.append(error)
    # Nearly any text is a valid list of names, so to be read by one reader means little.
    if refusals:
        raise refusals[0]
