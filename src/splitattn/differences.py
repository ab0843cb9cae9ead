"""Differences between the outputs of two networks, as a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from splitattn.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference on one batch of images.

    Attributes:
        batch_size, image_size: of the batch; images are square, in pixels.
        absolute: the largest absolute difference of two outputs.
        relative: `absolute` divided by the largest absolute output of the reference.
        same_labels: images with the same top-1 label, in percent.
    """

    batch_size: int
    image_size: int
    absolute: float
    relative: float
    same_labels: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Differences over several batches; `str()` formats them as a table.

    Attributes:
        differences: one for each batch.
    """

    differences: tuple[Difference, ...]

    @property
    def absolute(self) -> float:
        """The largest absolute difference of all batches."""
        return _largest([row.absolute for row in self.differences])

    @property
    def relative(self) -> float:
        """The largest relative difference of all batches."""
        return _largest([row.relative for row in self.differences])

    @property
    def same_labels(self) -> float:
        """Share of all images with the same top-1 label, in percent."""
        images = sum(row.batch_size for row in self.differences)
        return sum(row.same_labels * row.batch_size for row in self.differences) / images

    def __str__(self) -> str:
        header = "batch  pixels  absolute  relative  same labels"
        rows = (
            f"{row.batch_size:5d}  {row.image_size:6d}  {row.absolute:8.1e}  {row.relative:8.1e}"
            f"  {row.same_labels:10.0f}%"
            for row in self.differences
        )
        return "\n".join((header, *rows))


def difference(expected: "NDArray[Any]", outputs: "NDArray[Any]", *, image_size: int) -> Difference:
    """Compare the outputs (B, N) of two networks for one batch of images.

    Raises:
        InputError: the shapes differ.
    """
    import numpy as np

    if expected.shape != outputs.shape:
        raise InputError(
            f"parity needs outputs of one shape, got {expected.shape} and {outputs.shape}"
        )
    expected, outputs = expected.astype(np.float64), outputs.astype(np.float64)
    absolute = float(abs(expected - outputs).max())
    # If the reference is all zeros, any difference is infinitely large.
    largest = float(abs(expected).max())
    relative = 0.0 if absolute == 0 else absolute / largest if largest else float("inf")
    return Difference(
        batch_size=len(expected),
        image_size=image_size,
        absolute=absolute,
        relative=relative,
        same_labels=100 * float((expected.argmax(1) == outputs.argmax(1)).mean()),
    )


def _largest(values: Sequence[float]) -> float:
    """NaN if any value is NaN, unlike Python's `max`."""
    nans = [value for value in values if value != value]
    return nans[0] if nans else max(values)
