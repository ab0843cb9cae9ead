"""Compares the labels of an int8 network with those of the network that it was made from."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitattn.data.eval_batches import eval_batches
from splitattn.data.labeled import LabeledImages
from splitattn.engines.engine import Engine, Logits, finite
from splitattn.errors import DataError
from splitattn.preprocessing import Preprocessing
from splitattn.weights.metadata import Activation


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well the labels of a quantized network agree with those of the original.

    Attributes:
        n: number of images that both have labeled.
        same_labels: images with the same label, in percent.
        top1, reference_top1: of the quantized network and of the original, in percent; None if the
            images have no labels of the network's classes.
    """

    n: int
    same_labels: float
    top1: float | None
    reference_top1: float | None

    def __str__(self) -> str:
        line = f"{self.same_labels:.2f} % of {self.n} images labeled alike"
        if self.top1 is None or self.reference_top1 is None:
            return line
        gained = self.top1 - self.reference_top1
        return f"top-1 {self.reference_top1:.2f} % -> {self.top1:.2f} % ({gained:+.2f}), {line}"


def compare(
    reference: Engine,
    candidate: Engine,
    data: LabeledImages,
    preprocessing: Preprocessing,
    *,
    labeled: bool,
    activation: Activation = "softmax",
    batch_size: int = 32,
    workers: int | None = None,
    on_images: Callable[[int, int], None] = lambda _, __: None,
) -> Agreement:
    """Label every image of `data` with both networks.

    Args:
        labeled: whether the labels of `data` are indices of the networks' outputs.
        activation: of the networks. With "sigmoid", an image counts as labeled the same if both
            networks give the same classes a probability above one half.
        workers: threads that decode images; None chooses from the number of processors.
        on_images: called with how many more images are done, and how many there are.

    Raises:
        DataError: no image can be read.
    """
    n = same = right = reference_right = 0
    alike = _ALIKE[activation]
    batches = eval_batches(data, preprocessing, batch_size=batch_size, workers=workers)
    with closing(batches):
        for batch in batches:
            if len(batch.labels):
                expected, found = (
                    engine.run(batch.images, preprocessing) for engine in (reference, candidate)
                )
                n += len(batch.labels)
                same += int((alike(expected, found) & finite(expected) & finite(found)).sum())
                right += int((_first_guesses(found) == batch.labels).sum())
                reference_right += int((_first_guesses(expected) == batch.labels).sum())
            on_images(len(batch.labels) + len(batch.problems), len(data))
    if not n:
        raise DataError(f"a comparison needs readable images, got none in {data.origin}")
    return Agreement(
        n=n,
        same_labels=100 * same / n,
        top1=100 * right / n if labeled else None,
        reference_top1=100 * reference_right / n if labeled else None,
    )


def _first_guesses(logits: Logits) -> NDArray[np.int64]:
    """The first guess for each image; -1, which is no label, where a logit is not finite."""
    return np.where(finite(logits), logits.argmax(1), -1)


# Functions from two networks' logits (B, classes) to whether images have the same labels, (B,).
_ALIKE: Mapping[Activation, Callable[[Logits, Logits], NDArray[np.bool_]]] = {
    "softmax": lambda one, other: one.argmax(1) == other.argmax(1),
    "sigmoid": lambda one, other: ((one > 0) == (other > 0)).all(1),
}
