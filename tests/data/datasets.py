"""Small data sets on disk, in each layout that DATA may have."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("blue", "green", "red")
_COLORS = ((40, 60, 220), (40, 200, 60), (220, 50, 40))


def picture(label: int, index: int, size: int = 40) -> Image.Image:
    """The color of the class plus noise, which differs for every index."""
    noise = np.random.default_rng((label, index)).normal(0, 40, (size, size, 3))
    return Image.fromarray((np.array(_COLORS[label]) + noise).clip(0, 255).astype(np.uint8))


def encoded(label: int, index: int) -> bytes:
    stream = io.BytesIO()
    picture(label, index).save(stream, "PNG")
    return stream.getvalue()


def write_class_folders(root: Path, per_class: int, *, offset: int = 0) -> Path:
    for label, name in enumerate(CLASSES):
        folder = root / name
        folder.mkdir(parents=True)
        for index in range(per_class):
            picture(label, offset + index).save(folder / f"{index}.png")
    return root


def write_image_folder(root: Path, *, train: int = 16, val: int = 5) -> Path:
    """Write ImageFolder layout, with `train` and `val` images of each of three classes."""
    write_class_folders(root / "train", train)
    write_class_folders(root / "val", val, offset=1000)
    return root


def write_shard(path: Path, images: list[bytes], labels: list[int]) -> Path:
    """Write one Parquet shard in the Hugging Face image layout."""
    features = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "label": pa.array(labels, pa.int64()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def marked_picture(classes: Sequence[int], index: int) -> Image.Image:
    """Gray noise with one square for each class, of its color and in its own corner."""
    pixels = np.random.default_rng((9, index)).normal(128, 20, (40, 40, 3))
    for label in classes:
        top, left = 22 * (label // 2), 22 * (label % 2)
        pixels[top : top + 18, left : left + 18] = _COLORS[label]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_marked_pictures(root: Path, *, train: int, val: int) -> Path:
    """Write pictures of zero to three classes, and a CSV file with labels separated by "|"."""
    root.mkdir(parents=True)
    lines = ["path,labels,split"]
    for index in range(train + val):
        classes = [label for label in range(3) if index >> label & 1]
        marked_picture(classes, index).save(root / f"{index}.png")
        names = "|".join(CLASSES[label] for label in classes)
        lines.append(f"{index}.png,{names},{'train' if index < train else 'val'}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root / "labels.csv"
