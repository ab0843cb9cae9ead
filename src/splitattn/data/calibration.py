"""Images for calibrating an int8 network and for comparing it with the network it came from."""

import logging
import random
from collections import Counter
from typing import TYPE_CHECKING

from splitattn.data.labelled import LabelledImages, with_classes_of_model
from splitattn.data.sources import open_data
from splitattn.errors import DataError, ImageError
from splitattn.files import is_folder
from splitattn.images.decode import decode
from splitattn.images.paths import images_below, passed_over_text
from splitattn.images.preprocess import preprocess
from splitattn.images.samples import sample_photographs
from splitattn.preprocessing import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_SEED = 0


def calibration_images(data: str) -> LabelledImages:
    """The training images of `data`, or the images of any folder; labels need not mean anything.

    Raises:
        DataError: there are none.
    """
    return _images(data, "train")


def comparison_images(data: str, classes: tuple[str, ...]) -> tuple[LabelledImages, bool]:
    """The validation images of `data`, or those of any folder, and whether their labels count.

    Args:
        classes: the network's, by output index.

    Raises:
        DataError: there are none.
    """
    images = _images(data, "val")
    try:
        return with_classes_of_model(images, classes), True
    except DataError:
        return images, False


def package_photographs() -> LabelledImages:
    """The five photographs that ship with the package, without labels."""
    paths = sample_photographs()
    return _unlabelled("splitattn", [str(path) for path in paths])


def sampled(
    data: LabelledImages, preprocessing: Preprocessing, count: int
) -> "list[NDArray[np.uint8]]":
    """Up to `count` readable images, always the same ones: uint8 pixels (3, size, size) each.

    Raises:
        DataError: none of them can be read.
    """
    order = random.Random(_SEED).sample(range(len(data)), len(data))
    pixels: list[NDArray[np.uint8]] = []
    problem = ""
    for index in order:
        if len(pixels) == count:
            break
        try:
            image = decode(data.images[index], name=data.names[index])
        except ImageError as error:
            problem = problem or str(error)
            continue
        pixels.append(preprocess(image, preprocessing))
    if not pixels:
        raise DataError(f"calibration needs readable images, got none; the first: {problem}")
    return pixels


def _images(data: str, split: str) -> LabelledImages:
    try:
        return open_data(data, split)
    except DataError:
        passed_over: Counter[str] = Counter()
        found = list(images_below(data, passed_over)) if is_folder(data) else []
        if passed_over:
            logger.warning("%s: %s", data, passed_over_text(passed_over))
        if not found:
            raise
        return _unlabelled(data, found)


def _unlabelled(origin: str, paths: list[str]) -> LabelledImages:
    return LabelledImages(
        origin=origin, classes=("",), images=paths, labels=[0] * len(paths), names=paths
    )
