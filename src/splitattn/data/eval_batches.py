"""The batches of an evaluation, in NumPy."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from splitattn.data.labeled import LabeledImages
from splitattn.errors import ImageError
from splitattn.images.loading import Decoding, Loaded, load_batches
from splitattn.images.preprocess import Pixels
from splitattn.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class EvalBatch:
    """Images to evaluate; those that cannot be read are left out.

    Attributes:
        images: (B, C, size, size), see `images.preprocess.load_pixels`.
        labels: (B,), int64.
        indices: (B,), int64: positions in the data set.
        problems: a line for each image that could not be read.
    """

    images: Pixels
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    problems: tuple[str, ...]


def eval_batches(
    data: LabeledImages,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int | None = None,
    decoding: Decoding = "exact",
    rank: int = 0,
    world_size: int = 1,
) -> Generator[EvalBatch, None, None]:
    """Yield every image of `data` once, in order, decoded in threads.

    Args:
        preprocessing: how an image becomes the network's input.
        batch_size: images in each batch; the last may have fewer.
        workers, decoding: see `images.loading.load_batches`.
        rank, world_size: with several processes, each takes every `world_size`-th batch, starting
            at its `rank`. The batches are the same for any number of processes.

    Raises:
        InputError: a number is less than 1.
    """
    starts = range(rank * batch_size, len(data), world_size * batch_size)
    batches = [range(start, min(start + batch_size, len(data))) for start in starts]
    loaded = load_batches(
        # Indexed in a thread, since some data sets read or decode an image when indexed.
        (partial(data.images.__getitem__, index) for index in chain.from_iterable(batches)),
        preprocessing,
        batch_size=batch_size,
        workers=workers,
        decoding=decoding,
        names=(data.names[index] for index in chain.from_iterable(batches)),
    )
    return _labeled(loaded, batches, data, preprocessing)


def _labeled(
    loaded: Generator[list[Loaded], None, None],
    batches: list[range],
    data: LabeledImages,
    preprocessing: Preprocessing,
) -> Generator[EvalBatch, None, None]:
    with closing(loaded):
        for indices, batch in zip(batches, loaded, strict=True):
            pixels = {
                index: item
                for index, item in zip(indices, batch, strict=True)
                if not isinstance(item, ImageError)
            }
            size = preprocessing.size
            nothing = np.empty((0, preprocessing.channels, size, size), np.uint8)
            yield EvalBatch(
                images=np.stack(list(pixels.values())) if pixels else nothing,
                labels=np.array([data.labels[index] for index in pixels], np.int64),
                indices=np.array(list(pixels), np.int64),
                problems=tuple(str(item) for item in batch if isinstance(item, ImageError)),
            )
