"""Draw the pictures of docs/howto/detect.md and docs/howto/segment.md.

usage: python scripts/howto_pictures.py [detect] [segment]

Both are drawn by default; each takes six to ten minutes on one core. Shapes are drawn on crops of
the package's photographs. A detector and a segmenter are trained on them with the commands of the
pages, and the pictures show their predictions for other images. Look at the results.
"""

import json
import math
import random
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageDraw
from readme_pictures import PICTURES, draw_asked_for, splitattn

from splitattn.images.crop import cropped
from splitattn.images.decode import decode
from splitattn.images.samples import sample_photographs

CLASSES = ("disk", "square", "triangle")
SIZE = (400, 300)  # of an image, in pixels
COUNTS = {"train": 64, "val": 4, "test": 2}
SMOOTH = 3  # shapes are drawn this many times larger, then reduced
TRAINING = ("train_size=128", "test_size=128", "epochs=14", "batch_size=4", "ema_decay=0.95")
TURN = 0.3  # largest rotation of a shape to either side, in radians
GAP = 8  # between pictures, in pixels

Outline = list[tuple[float, float]]


def detect() -> None:
    """Two images with the boxes that a detector finds."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_boxes(folder / "boxes")
        train(folder, "boxes")
        seen = sorted((folder / "boxes" / "test").iterdir())
        names = [str(path) for path in seen]
        draw = ("--score", "0.5", "--draw", "drawn")
        splitattn("predict", *names, "--weights", "run", *draw, folder=folder)
        save("detect.jpg", sorted((folder / "drawn").iterdir()))


def segment() -> None:
    """An image, and beside it the classes that a segmenter predicts for its pixels."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_masks(folder / "shapes")
        train(folder, "shapes", "first_train_size=96")
        seen = min((folder / "shapes" / "test" / "images").iterdir())
        splitattn("predict", str(seen), "--weights", "run", "--draw", "drawn", folder=folder)
        save("segment.jpg", [seen, *(folder / "drawn").iterdir()])


def train(folder: Path, data: str, *more: str) -> None:
    settings = [argument for setting in (*TRAINING, *more) for argument in ("--set", setting)]
    splitattn("train", data, "--output", "run", "--workers", "0", *settings, folder=folder)


def write_boxes(root: Path) -> None:
    """Write a COCO data set: `SPLIT.json`, and images in `SPLIT/`."""
    generator = random.Random(0)
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    for split, count in COUNTS.items():
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            image, shapes = scene(generator)
            image.save(root / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png"})
            images[-1] |= {"width": image.width, "height": image.height}
            for label, outline in shapes:
                (left, right), (top, bottom) = (
                    (min(s), max(s)) for s in zip(*outline, strict=True)
                )
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": label + 1,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": 0,
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def write_masks(root: Path) -> None:
    """Write `SPLIT/images/` and `SPLIT/masks/`; class 0 is the background."""
    generator = random.Random(0)
    for split, count in COUNTS.items():
        for name in ("images", "masks"):
            (root / split / name).mkdir(parents=True)
        for number in range(count):
            image, shapes = scene(generator)
            mask = Image.new("L", image.size)
            for label, outline in shapes:
                ImageDraw.Draw(mask).polygon(outline, fill=label + 1)
            image.save(root / split / "images" / f"{number}.png")
            mask.save(root / split / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(("background", *CLASSES)), encoding="utf-8")


def scene(generator: random.Random) -> tuple[Image.Image, list[tuple[int, Outline]]]:
    """Shapes of random colors, which do not overlap, on a crop of a photograph."""
    photograph = decode(generator.choice(sample_photographs()))
    width = generator.randint(min(photograph.size) // 2, min(photograph.size))
    height = width * SIZE[1] // SIZE[0]
    left = generator.randint(0, photograph.width - width)
    top = generator.randint(0, photograph.height - height)
    ground = cropped(photograph, (left, top, left + width, top + height)).resize(SIZE)
    large = ground.resize((SIZE[0] * SMOOTH, SIZE[1] * SMOOTH))
    pen = ImageDraw.Draw(large)
    shapes: list[tuple[int, Outline]] = []
    places: list[tuple[float, float, float]] = []
    wanted = generator.randint(3, 5)
    while len(shapes) < wanted:
        radius = generator.uniform(28, 55)
        x = generator.uniform(radius, SIZE[0] - radius)
        y = generator.uniform(radius, SIZE[1] - radius)
        if any(math.dist((x, y), other[:2]) < radius + other[2] for other in places):
            continue
        places.append((x, y, radius))
        label = generator.randrange(len(CLASSES))
        outline = around(x, y, radius, CLASSES[label], generator.uniform(-TURN, TURN))
        color = tuple(generator.randrange(256) for _ in range(3))
        pen.polygon([(SMOOTH * a, SMOOTH * b) for a, b in outline], fill=color)
        shapes.append((label, outline))
    return large.resize(SIZE, Image.Resampling.BOX), shapes


def around(x: float, y: float, radius: float, name: str, turn: float) -> Outline:
    """The corners of a shape that is rotated by `turn` around its center."""
    count = {"disk": 48, "square": 4, "triangle": 3}[name]
    # Without rotation, triangles and squares stand on a side.
    first = math.tau / 8 if name == "square" else -math.tau / 4
    angles = (first + turn + math.tau * i / count for i in range(count))
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def save(name: str, paths: list[Path]) -> None:
    """Save the pictures side by side as one."""
    pictures = [Image.open(path).convert("RGB") for path in paths]
    width = sum(each.width for each in pictures) + GAP * (len(pictures) - 1)
    together = Image.new("RGB", (width, max(each.height for each in pictures)), "white")
    left = 0
    for each in pictures:
        together.paste(each, (left, 0))
        left += each.width + GAP
    together.save(PICTURES / name, quality=85)


DRAWN = {"detect": detect, "segment": segment}


if __name__ == "__main__":
    draw_asked_for(DRAWN)
