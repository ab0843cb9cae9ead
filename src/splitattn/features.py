"""Extracts features of images: the input of a network's classifier."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import tee
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from splitattn.engines.engine import NOT_FINITE, finite
from splitattn.errors import ImageError
from splitattn.images.decode import ImageSource, name_of
from splitattn.images.limits import DEFAULT_LIMITS, Limits, check_limits
from splitattn.images.loading import Decoding, LazySource, check_decoding, map_images
from splitattn.images.preprocess import Pixels
from splitattn.opening import FileState, open_body
from splitattn.preprocessing import Preprocessing
from splitattn.weights.download import Progress

Features = NDArray[np.float32]

T = TypeVar("T")


class FeatureExtractor:
    """Extracts the features of images: the mean over pixels of the network's last map.

    Args:
        model, weights, device, engine, decoding, white_level, limits, progress: see `Classifier`.
            Exported files have no features.
        unchanged: see `opening.open_weights`.

    Attributes:
        model, weights: the chosen ones.
        preprocessing: how an image becomes the network's input.
        engine: the loaded network, without its classifier.

    Raises:
        InputError, WeightsError: see `Classifier`.
    """

    def __init__(
        self,
        model: str | None = None,
        weights: str | Path | None = None,
        *,
        device: str = "auto",
        engine: str = "auto",
        decoding: Decoding = "fast",
        white_level: float | None = None,
        limits: Limits = DEFAULT_LIMITS,
        progress: Progress | None = None,
        unchanged: FileState | None = None,
    ) -> None:
        self._decoding, self._limits = check_decoding(decoding), check_limits(limits)
        trained = open_body(model, weights, progress=progress, unchanged=unchanged)
        self.model, self.weights = trained.metadata.model, trained.weights
        own = trained.metadata.preprocessing
        self.preprocessing = own if white_level is None else replace(own, white_level=white_level)
        self.engine = trained.load(engine, device)

    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> Generator[Features | ImageError, None, None]:
        """Extract the features of any number of images, in order.

        Args:
            sources, batch_size, workers: see `Classifier.predict_stream`.

        Yields:
            An image's features, float32 (D,), or the error that occurred.

        Raises:
            InputError: a number is less than 1.
        """
        return map_finite(
            self.features,
            sources,
            self.preprocessing,
            batch_size=batch_size,
            workers=workers,
            limits=self._limits,
            decoding=self._decoding,
        )

    def features(self, pixels_BCHW: Pixels) -> list[Features | None]:  # noqa: N803
        """The features (D,) of each image of a batch, or None if they are not finite.

        Args:
            pixels_BCHW: (B, C, size, size), as `images.preprocess.load_pixels` returns them.
        """
        found = self.engine.run(pixels_BCHW, self.preprocessing)
        return [row if usable else None for row, usable in zip(found, finite(found), strict=True)]


def map_finite(
    compute: Callable[[Pixels], Sequence[T | None]],
    sources: Iterable[LazySource],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int | None,
    limits: Limits,
    decoding: Decoding,
    names: Iterable[str] | None = None,
) -> Generator[T | ImageError, None, None]:
    """Like `map_images`, but a result of None becomes an error: its numbers are not finite.

    Args:
        compute: as for `map_images`, but returns None for an image whose outputs are not finite.
        sources, preprocessing, batch_size, workers, limits, decoding: see `map_images`.
        names: the images' names in errors; required if `sources` has functions.

    Raises:
        InputError: see `map_images`.
    """
    waiting: deque[str] = deque()  # names of the images that are read but have no result yet
    sources, copies = tee(sources)

    def noted() -> Iterator[str]:
        # Functions have no name, so `names` is required with them.
        own = (name_of(source) for source in copies if not callable(source))
        for name in own if names is None else names:
            waiting.append(name)
            yield name

    results = map_images(
        compute,
        sources,
        preprocessing,
        batch_size=batch_size,
        workers=workers,
        limits=limits,
        decoding=decoding,
        names=noted(),
    )
    return _named(results, waiting)


def _named(
    results: Generator[T | ImageError | None, None, None], names: deque[str]
) -> Generator[T | ImageError, None, None]:
    """`results`, with each None replaced by an error that names the image."""
    with closing(results):
        for result in results:
            name = names.popleft()
            yield ImageError(NOT_FINITE, name) if result is None else result
