"""Images with annotated objects: the form to which every annotation format is converted.

Boxes are left, top, right and bottom in pixels of the upright image, from its upper left corner.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.data.class_names import check_same
from splitattn.dense.outlines import Outline, RunLengths, clipped
from splitattn.errors import DataError, ImageError
from splitattn.files import as_on_disk, is_file
from splitattn.images.decode import decode, read_size

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]

# Rounding in other tools moves a side by up to a pixel.
_TOLERANCE = 1.0


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The objects in one image.

    Attributes:
        boxes: (N, 4) float64, inside the image, of positive width and height.
        labels: (N,) int64, index into the classes.
        crowd: (N,) bool: groups of objects, and objects that are marked as difficult. They are not
            trained on, and scoring ignores what is found there.
        areas: (N,) float64, in square pixels. Scoring sorts objects by these into small, medium
            and large.
        outlines: of each object, where the annotations have them.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    outlines: tuple[Outline | None, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class AnnotatedImages:
    """One split of a data set.

    Attributes:
        origin: where the images were found; two splits with the same origin are the same images.
        classes: names, by label.
        images: paths. Nothing is decoded yet.
        names: how reports and errors call each image.
        sizes: width and height in pixels of each upright image, to which its boxes refer.
        objects: of each image.
        notes: what was left out or changed, one line for each rule.
        category_ids: COCO's id of each class, in the order of `classes`; empty for other formats.
    """

    origin: str
    classes: tuple[str, ...]
    images: Sequence[Path]
    names: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    objects: Sequence[Objects]
    notes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def count(self) -> int:
        """Objects in all images, crowds left out."""
        return sum(int((~objects.crowd).sum()) for objects in self.objects)


@dataclass(frozen=True, kw_only=True)
class FoundObject:
    """An object as a file describes it.

    Attributes:
        box: see the module.
        label, crowd, area, outline: see `Objects`; an area of None is that of the box.
    """

    box: Box
    label: int
    crowd: bool = False
    area: float | None = None
    outline: Outline | None = None


@dataclass(frozen=True, kw_only=True)
class FoundImage:
    """An image as a file describes it.

    Attributes:
        path: of the image, which need not exist.
        name: how messages call it.
        size: width and height, or None to read them from the image.
        objects: in it.
    """

    path: Path
    name: str
    size: tuple[int, int] | None
    objects: Sequence[FoundObject]


@dataclass(frozen=True, kw_only=True)
class Notes:
    """How often each rule was applied, and where first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, rule: str, where: str) -> None:
        """`rule` was applied to `where`."""
        self.counts[rule] += 1
        self.first.setdefault(rule, where)

    def lines(self) -> tuple[str, ...]:
        """A line for each rule that was applied."""
        return tuple(
            f"{rule}: {count:,}, such as {self.first[rule]}" for rule, count in self.counts.items()
        )


def annotated_images(
    origin: str | Path, classes: tuple[str, ...], found: Iterable[FoundImage], notes: Notes
) -> AnnotatedImages:
    """Apply the rules for images and boxes, and warn once for each rule that was applied.

    - An image whose file is missing or cannot be read is left out.
    - A box that reaches out of its image by more than a pixel is cut.
    - A box without width or height, also after it was cut, is left out.
    - An image without objects stays: all of it is background.

    Args:
        origin: the file or folder that names the images, and the split where it has several.
        notes: what the reader of the format noted.

    Raises:
        DataError: no image is left, or boxes are not in pixels.
    """
    images = [*found]
    kept: list[tuple[FoundImage, tuple[int, int]]] = []
    for image in images:
        image = replace(image, path=as_on_disk(image.path))
        if not is_file(image.path):
            notes.add("images whose file is missing, left out", str(image.path))
            continue
        try:
            kept.append((image, image.size or read_size(image.path)))
        except ImageError as error:
            notes.add("images that cannot be read, left out", str(error))
    if not kept:
        first = f", such as {notes.first[rule]}" if (rule := next(iter(notes.first), None)) else ""
        raise DataError(
            f"{origin} must name images that exist, got none of {len(images)}{first}; move the "
            "images there, or mend their names"
        )
    _check_in_pixels(origin, [found for image, _ in kept for found in image.objects])
    objects = [_objects(image, size, notes) for image, size in kept]
    for (image, _), those in zip(kept, objects, strict=True):
        if not len(those):
            notes.add("images without objects, all background", image.name)
    for line in notes.lines():
        logger.warning("%s: %s", origin, line)
    return AnnotatedImages(
        origin=str(origin),
        classes=classes,
        images=[image.path for image, _ in kept],
        names=[image.name for image, _ in kept],
        sizes=[size for _, size in kept],
        objects=objects,
        notes=notes.lines(),
    )


def _check_in_pixels(origin: object, found: Sequence[FoundObject]) -> None:
    """Raise if all boxes lie within the first pixel: these are shares of the image's size."""
    sized = [box for box in (each.box for each in found) if box[2] > box[0] and box[3] > box[1]]
    if sized and max(map(max, sized)) <= 1:
        raise DataError(
            f"boxes in {origin} must be in pixels, got shares of the image, such as "
            f"{_text(sized[0])}: multiply them by its width and height"
        )


def _objects(image: FoundImage, size: tuple[int, int], notes: Notes) -> Objects:
    kept: list[tuple[FoundObject, Box]] = []
    for found in image.objects:
        box = _inside(found.box, size)
        left, top, right, bottom = box
        where = f"{_text(found.box)} in {image.name}"
        if not (right > left and bottom > top):
            degenerate = found.box[2] <= found.box[0] or found.box[3] <= found.box[1]
            rule = "without width or height" if degenerate else "outside their image"
            notes.add(f"boxes {rule}, left out", where)
            continue
        if max(abs(a - b) for a, b in zip(box, found.box, strict=True)) > _TOLERANCE:
            notes.add("boxes that reach out of their image, cut", where)
        kept.append((found, box))
    return Objects(
        boxes=np.array([box for _, box in kept], dtype=np.float64).reshape(-1, 4),
        labels=np.array([found.label for found, _ in kept], dtype=np.int64),
        crowd=np.array([found.crowd for found, _ in kept], dtype=bool),
        areas=np.array([_area(found, box) for found, box in kept], dtype=np.float64),
        outlines=tuple(_outline(found, image, size, notes) for found, _ in kept),
    )


def _outline(
    found: FoundObject, image: FoundImage, size: tuple[int, int], notes: Notes
) -> Outline | None:
    outline = found.outline
    if isinstance(outline, RunLengths) and (outline.width, outline.height) != size:
        where = f"{outline.width} x {outline.height} in {image.name}"
        notes.add("run lengths of another size than their image, left out", where)
        return None
    return clipped(outline, size)


def _inside(box: Box, size: tuple[int, int]) -> Box:
    width, height = size
    left, right = (min(max(value, 0.0), float(width)) for value in box[::2])
    top, bottom = (min(max(value, 0.0), float(height)) for value in box[1::2])
    return left, top, right, bottom


def _area(found: FoundObject, box: Box) -> float:
    left, top, right, bottom = box
    return (right - left) * (bottom - top) if found.area is None else found.area


def _text(box: Box) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"


def read_image(data: AnnotatedImages, index: int) -> Image.Image:
    """Decode an image, and check that it has the size that its annotations state.

    Raises:
        ImageError: it cannot be decoded, or has another size.
    """
    image = decode(data.images[index])
    if image.size != data.sizes[index]:
        (width, height), name = data.sizes[index], data.images[index]
        raise ImageError(
            f"{name} must be of {width} x {height} pixels, as its annotations say, got "
            f"{image.width} x {image.height} upright"
        )
    return image


def with_outlines(data: AnnotatedImages) -> AnnotatedImages:
    """`data` for learning masks: objects without an outline become crowds.

    Crowds are neither trained on nor scored. A warning says how many there are.

    Raises:
        DataError: no object has an outline.
    """
    bare = [
        np.array([outline is None for outline in each.outlines], dtype=bool) & ~each.crowd
        for each in data.objects
    ]
    count = sum(int(each.sum()) for each in bare)
    if count == data.count():
        raise DataError(
            f"{data.origin} must have polygons or run lengths to learn masks, got {count} boxes "
            "without: use another head, such as fcos"
        )
    if not count:
        return data
    first = next(name for name, each in zip(data.names, bare, strict=True) if each.any())
    line = f"objects without an outline, taken as crowds: {count:,}, such as in {first}"
    logger.warning("%s: %s", data.origin, line)
    objects = [
        replace(each, crowd=each.crowd | without)
        for each, without in zip(data.objects, bare, strict=True)
    ]
    return replace(data, objects=objects, notes=(*data.notes, line))


def check_same_classes(train: AnnotatedImages, val: AnnotatedImages) -> AnnotatedImages:
    """`val` with its labels renumbered in the order of `train.classes`.

    Raises:
        DataError: the classes differ.
    """
    check_same(train.classes, val.classes, "list all classes in the annotations of both")
    return _relabeled(val, train.classes)


def with_classes(data: AnnotatedImages, classes: tuple[str, ...]) -> AnnotatedImages:
    """`data` with its labels renumbered in the order of a detector's classes.

    Raises:
        DataError: the data has a class that the detector does not have.
    """
    unknown = sorted({*data.classes} - {*classes})
    if unknown:
        raise DataError(
            f"{data.origin} must have the detector's classes, got {len(unknown)} others: "
            f"{', '.join(unknown[:5])}"
        )
    return _relabeled(data, classes)


def _relabeled(data: AnnotatedImages, classes: tuple[str, ...]) -> AnnotatedImages:
    order = np.array([classes.index(name) for name in data.classes], dtype=np.int64)
    objects = [replace(each, labels=order[each.labels]) for each in data.objects]
    return replace(data, classes=classes, objects=objects)
