"""What exports of detectors and of segmenters have in common."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from splitattn.dense.resizing import Sides, resized
from splitattn.dense.trained import TrainedDense
from splitattn.engines.table import EngineRow
from splitattn.errors import DataError, ImageError, InputError
from splitattn.images.preprocess import Pixels

_CALIBRATION_IMAGES = 100
# How many points of its figure eight bits may cost.
MOST_LOST = 2.0


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What eight bits cost.

    Attributes:
        figure: what was measured: "AP" or "mIoU".
        value, exact: of the file, and of what it was made of, in percent.
        images, unreadable: validation images on which both were measured, and those left out.
    """

    figure: str
    value: float
    exact: float
    images: int
    unreadable: int

    @property
    def passed(self) -> bool:
        """Whether the file may be used. Where nothing is right there is nothing to lose."""
        return self.exact > 0 and self.exact - self.value <= MOST_LOST

    @property
    def fault(self) -> str:
        """Why the file may not be used, and what to do."""
        if self.exact > 0:
            return (
                f"{self.figure} may fall by {MOST_LOST:g} points at most, got {self}: calibrate on "
                "images like those it will see, or use fp16"
            )
        return (
            f"{self.figure} must be more than 0 in fp32, got {self}: give --calibration validation "
            "images that it can be measured on, or use fp16"
        )

    def __str__(self) -> str:
        left_out = f" ({self.unreadable} more cannot be read)" if self.unreadable else ""
        return (
            f"{self.figure} {self.value:.2f} % on {self.images} images{left_out}, "
            f"{self.exact:.2f} % in fp32"
        )


def loss(figure: str, file: tuple[float, int], exact: tuple[float, int], images: int) -> Loss:
    """What a file costs, from the figure in percent and how many of `images` were unreadable."""
    (value, _), (exact_value, unreadable) = file, exact
    return Loss(
        figure=figure,
        value=value,
        exact=exact_value,
        images=images - unreadable,
        unreadable=unreadable,
    )


def check_exportable(
    trained: TrainedDense[Any], row: EngineRow, batch_size: int | None, *, why: str
) -> None:
    """Raise `InputError` unless a file of this kind can be made.

    Args:
        why: other heads cannot be exported.
    """
    what, head, able = trained.what, trained.head, trained.folded_heads
    if head not in able:
        raise InputError(
            f"a {what} with head {head} cannot be exported: {why}. Train one with head {able[0]}"
        )
    if row.format == "torch_export":
        raise InputError(f"a {what} can be exported to onnx or openvino, got torch_export")
    if batch_size is not None:
        raise InputError(
            f"a {what}'s file takes any batch, got batch size {batch_size}: leave it out"
        )


def calibration_pixels(
    count: int,
    read: Callable[[int], Image.Image],
    sides: Sides,
    on_images: Callable[[int, int], None],
) -> list[Pixels]:
    """Images (3, H, W) as the network sees them, evenly from a data set of `count`.

    Raises:
        DataError: none can be read.
    """
    taken = min(count, _CALIBRATION_IMAGES)
    found: list[Pixels] = []
    for index in np.linspace(0, count - 1, taken).round().astype(int).tolist():
        on_images(1, taken)
        try:
            image = read(index)
        except ImageError:
            continue
        found.append(np.asarray(resized(image, sides.size(*image.size))).transpose(2, 0, 1))
    if not found:
        raise DataError(f"calibration needs readable images, got none of {taken}")
    return found


def first_readable(count: int, most: int, read: Callable[[int], Image.Image]) -> list[Image.Image]:
    """The first `most` images that can be read, of a data set of `count`."""
    found: list[Image.Image] = []
    for index in range(count):
        if len(found) == most:
            break
        with suppress(ImageError):
            found.append(read(index))
    return found
