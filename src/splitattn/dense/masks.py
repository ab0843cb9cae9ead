"""Images with a mask each: the class of every pixel, as numbers in a PNG file."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.dense.annotated import Notes
from splitattn.dense.layout import (
    chosen_split,
    hold_out,
    image_files,
    no_split,
    other_data,
    paired_folders,
    undivided_folders,
)
from splitattn.dense.yolo import read_names
from splitattn.errors import DataError, ImageError, counted
from splitattn.files import expanded, is_folder
from splitattn.images.decode import decode, decode_indices, read_size

logger = logging.getLogger(__name__)

Mask = NDArray[np.uint8]

# The number of pixels that belong to no class. They are neither trained on nor scored.
IGNORED = 255

_CLASS_FILES = ("classes.txt", "labels.txt")


@dataclass(frozen=True, kw_only=True)
class MaskedImages:
    """One split of a data set.

    Attributes:
        origin: where the images were found; two splits with the same origin are the same images.
        classes: names, by the numbers in the masks.
        images, masks: paths. Masks are of the same size as their upright images.
        names: how reports and errors call each image.
        pixels: (images, classes), how many pixels each class has in each image.
        notes: what was left out, one line for each rule.
    """

    origin: str
    classes: tuple[str, ...]
    images: Sequence[Path]
    masks: Sequence[Path]
    names: Sequence[str]
    pixels: NDArray[np.int64]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    image: Path
    mask: Path

    @property
    def name(self) -> str:
        return self.image.name


def is_masked(data: str | Path) -> bool:
    """Whether `data` is a folder of images and masks."""
    root = expanded(data)
    return is_folder(root) and bool(paired_folders(root, "masks"))


def open_masked(data: str | Path, split: str) -> MaskedImages:
    """Open one split of a data set, and look at each of its masks once.

    - An image without a mask, or a mask without an image, is left out.
    - A mask that is of another size than its upright image, cannot be read, or has no class at all,
      is left out with its image.

    Each rule that was applied is one warning.

    Args:
        data: a folder with `images/` and `masks/`, or both in `train/`, `val/` and `test/`, or
            these in both; and `classes.txt`, which names the classes 0, 1, ..., one a line. A mask
            is a PNG file with its image's name, with the number of a class in each pixel, directly
            or as index into a palette; 255 belongs to no class.
        split: "train", "val" or "test". If there is no "val", it is "test". In a data set without
            splits, "train" is four images in five, chosen by their names, and "val" and "test" are
            both the rest.

    Raises:
        DataError: there is no such data set or split, no image is left, or a mask has a number
            that is no class.
    """
    root = expanded(data)
    if not is_masked(root):
        raise other_data("a segmenter needs images and masks, in images/ and masks/", data)
    try:
        return _opened(root, split)
    except OSError as error:
        raise DataError(f"cannot read {data}: {error}") from error


def _opened(root: Path, split: str) -> MaskedImages:
    classes = _classes(root)
    splits = {
        name: (images, masks)
        for name, images, masks in paired_folders(root, "masks")
        if name or image_files(images)
    }
    name = chosen_split(root, split, splits)
    if name is None and [*splits] != [None]:
        raise no_split(root, split, [*filter(None, splits)], undivided_folders("masks"))
    images, masks = splits[name]
    notes = Notes()
    pairs = _pairs(images, masks, notes)
    if name:
        return _read(str(images), classes, pairs, notes)
    return _read(f"{images}: {split}", classes, hold_out(pairs, split), notes)


def _classes(root: Path) -> tuple[str, ...]:
    path = next((root / name for name in _CLASS_FILES if (root / name).is_file()), None)
    if path is None:
        raise DataError(
            f"{root} must name its classes; write one a line into classes.txt, the class 0 first"
        )
    classes = read_names(path)
    if len(classes) > IGNORED:
        raise DataError(f"{path} must name at most {IGNORED} classes, got {len(classes)}")
    return classes


def _pairs(images: Path, masks: Path, notes: Notes) -> list[_Pair]:
    found = {path.stem: path for path in image_files(masks)}
    pairs = []
    for path in image_files(images):
        if mask := found.pop(path.stem, None):
            pairs.append(_Pair(image=path, mask=mask))
        else:
            notes.add("images without a mask, left out", path.name)
    for path in found.values():
        notes.add("masks without an image, left out", path.name)
    return pairs


def _read(origin: str, classes: tuple[str, ...], pairs: list[_Pair], notes: Notes) -> MaskedImages:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counted = [*pool.map(_counted, pairs)]
    kept: list[_Pair] = []
    pixels: list[NDArray[np.int64]] = []
    unusable: list[str] = []
    for pair, found in zip(pairs, counted, strict=True):
        if isinstance(found, _Refused):
            notes.add(found.rule, found.where)
            unusable.append(found.where)
            continue
        numbers = np.flatnonzero(found[:IGNORED])
        if not len(numbers):
            notes.add(f"masks of nothing but {IGNORED}, left out", pair.mask.name)
            unusable.append(f"{pair.mask} (nothing but {IGNORED})")
            continue
        if numbers[-1] >= len(classes):
            raise DataError(
                f"{pair.mask} must have the classes 0 to {len(classes) - 1}, as many as "
                f"classes.txt names, or {IGNORED} for none, got {numbers[-1]}: name it there, or "
                f"write {IGNORED}"
            )
        kept.append(pair)
        pixels.append(found[: len(classes)])
    if not kept:
        got = "; ".join(["none", *notes.lines()])
        if unusable:
            got = f"{len(pairs)} of which none can be used, such as {unusable[0]}"
        raise DataError(f"{origin} must have images with masks, got {got}")
    for line in notes.lines():
        logger.warning("%s: %s", origin, line)
    return MaskedImages(
        origin=origin,
        classes=classes,
        images=[pair.image for pair in kept],
        masks=[pair.mask for pair in kept],
        names=[pair.name for pair in kept],
        pixels=np.stack(pixels),
        notes=notes.lines(),
    )


@dataclass(frozen=True, kw_only=True)
class _Refused:
    rule: str
    where: str


def _counted(pair: _Pair) -> NDArray[np.int64] | _Refused:
    """How often each number from 0 to 255 is in a mask."""
    try:
        size = read_size(pair.image)
    except ImageError as error:
        return _Refused(rule="images that cannot be read, left out", where=str(error))
    try:
        mask = decode_indices(pair.mask)
    except ImageError as error:
        if error.__cause__ is not None:  # damaged: a library's error, which may differ each time
            return _Refused(rule="masks that cannot be read, left out", where=str(error))
        rule = error.reason.partition(", got ")[0]
        return _Refused(rule=f"masks left out, since {rule}", where=str(error))
    if mask.shape[::-1] != size:
        return _Refused(
            rule="masks of another size than their image, left out",
            where=f"{pair.mask.name} ({_text(mask.shape[::-1])}, the image {_text(size)})",
        )
    return np.bincount(mask.ravel(), minlength=IGNORED + 1)


def _text(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def read_masked(data: MaskedImages, index: int) -> tuple[Image.Image, Mask]:
    """Decode an image and its mask (H, W).

    Raises:
        ImageError: one of them cannot be decoded, or they are no longer of the same size.
    """
    image, mask = decode(data.images[index]), decode_indices(data.masks[index])
    if mask.shape[::-1] != image.size:
        raise ImageError(
            f"{data.masks[index]} must be of the size of its image, {_text(image.size)}, got "
            f"{_text(mask.shape[::-1])}"
        )
    beyond = mask[(mask >= len(data.classes)) & (mask != IGNORED)]
    if beyond.size:
        raise ImageError(
            f"{data.masks[index]} must have the classes 0 to {len(data.classes) - 1}, got "
            f"{beyond[0]}"
        )
    return image, mask


def one_class_fault(data: MaskedImages) -> str | None:
    """What is wrong with masks that have only one class, or None if they have more."""
    present = np.flatnonzero(data.pixels.sum(0))
    if len(present) > 1:
        return None
    return (
        f"must have pixels of two classes or more, got only {data.classes[present[0]]!r} in "
        f"{counted(len(data), 'mask')}; {IGNORED} is no class: if your masks mark objects with "
        f"{IGNORED}, write 1 instead"
    )


def check_classes(data: MaskedImages, classes: tuple[str, ...]) -> None:
    """Check that `data` has `classes`, in this order.

    Raises:
        DataError: it has other classes, or another order.
    """
    if data.classes != classes:
        raise DataError(
            f"{data.origin} must have the classes of the weights in their order, "
            f"{', '.join(classes)!r:.80}, got {', '.join(data.classes)!r:.80}"
        )
