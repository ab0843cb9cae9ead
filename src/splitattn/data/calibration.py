"""Images for calibrating an int8 network and for comparing it with the float network."""

import logging
import random
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from splitattn.data.folds import Fold, split_off
from splitattn.data.labeled import LabeledImages, with_classes_of_model
from splitattn.data.sources import open_data
from splitattn.data.splits import MissingSplitError
from splitattn.errors import DataError, ImageError
from splitattn.files import is_folder
from splitattn.images.decode import RGB, decode
from splitattn.images.loading import load_batches
from splitattn.images.paths import images_below, passed_over_text
from splitattn.images.samples import sample_photographs
from splitattn.preprocessing import Preprocessing

if TYPE_CHECKING:
    from splitattn.images.preprocess import Pixels

logger = logging.getLogger(__name__)

_SEED = 0
_AT_ONCE = 16
# With fewer images, the share of equal labels says little about others.
_FEW_COMPARED = 50


def calibration_images(data: str) -> LabeledImages:
    """The training images of `data`, or the images of any folder; labels are not needed.

    For data without splits, the images of `comparison_images` are left out.

    Raises:
        DataError: there are none.
    """
    return _parts(data)[0]


def comparison_images(data: str, classes: tuple[str, ...]) -> tuple[LabeledImages, bool]:
    """The validation images of `data`, and whether their labels are the network's.

    For data without splits, these are half of the images of each class.

    Args:
        classes: the network's, by output index.

    Raises:
        DataError: there are none.
    """
    calibration, images = _parts(data)
    if list(images.names) == list(calibration.names):
        logger.warning(
            "labels are compared on the image that int8 was calibrated on, the only one in %s: "
            "add images",
            data,
        )
    elif len(images) < _FEW_COMPARED:
        logger.warning(
            "labels should be compared on at least %d images, got %d in %s, which proves little: "
            "add images",
            _FEW_COMPARED,
            len(images),
            data,
        )
    if images.label_sets is not None:
        return images, False
    try:
        return with_classes_of_model(images, classes), True
    except DataError:
        return images, False


def _parts(data: str) -> tuple[LabeledImages, LabeledImages]:
    """Images to calibrate on and to compare on; they are disjoint if there is more than one."""
    calibration = _images(data, "train")
    try:
        comparison = _images(data, "val")
    except MissingSplitError:
        comparison = calibration
    if comparison.origin == calibration.origin and len(calibration) > 1:
        return split_off(calibration, Fold(number=2, of=2), seed=_SEED)
    return calibration, comparison


def package_photographs(channels: int) -> LabeledImages:
    """The five photographs in the package, without labels.

    For networks with other channels than gray or RGB, the channels R, G and B are repeated.
    """
    paths = [str(path) for path in sample_photographs()]
    photographs = _unlabeled("splitattn", paths)
    if channels in (1, RGB):
        return photographs
    order = [channel % RGB for channel in range(channels)]
    return replace(photographs, images=[np.asarray(decode(path))[..., order] for path in paths])


def sampled(
    data: LabeledImages,
    preprocessing: Preprocessing,
    count: int,
    *,
    workers: int | None = None,
    on_images: Callable[[int, int], None] = lambda _, __: None,
) -> "list[Pixels]":
    """Pixels of up to `count` readable images, always the same ones; see `load_pixels`.

    Args:
        workers: threads that decode images; None chooses from the number of processors.
        on_images: called with the number of newly read images and the total.

    Raises:
        DataError: none of them can be read.
    """
    order = random.Random(_SEED).sample(range(len(data)), len(data))
    count = min(count, len(data))
    batches = load_batches(
        (partial(data.images.__getitem__, index) for index in order),
        preprocessing,
        batch_size=min(count, _AT_ONCE),
        workers=workers,
        names=(data.names[index] for index in order),
    )
    pixels: list[Pixels] = []
    problem = ""
    with closing(batches):
        for batch in batches:
            usable = [item for item in batch if not isinstance(item, ImageError)]
            faults = (str(item) for item in batch if isinstance(item, ImageError))
            problem = problem or next(faults, "")
            more = usable[: count - len(pixels)]
            pixels += more
            on_images(len(more), count)
            if len(pixels) == count:
                break
    if not pixels:
        raise DataError(f"calibration needs readable images, got none; the first: {problem}")
    return pixels


def _images(data: str, split: str) -> LabeledImages:
    try:
        return open_data(data, split)
    except MissingSplitError:
        raise
    except DataError:
        passed_over: Counter[str] = Counter()
        found = list(images_below(data, passed_over)) if is_folder(data) else []
        if passed_over and split == "train":  # once
            logger.warning("%s: %s", data, passed_over_text(passed_over))
        if not found and is_folder(data):
            raise DataError(
                f"calibration needs images, got none in {data}; name a data set or a folder of "
                "images"
            ) from None
        if not found:
            raise
        return _unlabeled(data, found)


def _unlabeled(origin: str, paths: list[str]) -> LabeledImages:
    return LabeledImages(
        origin=origin, classes=("",), images=paths, labels=[0] * len(paths), names=paths
    )
