"""Features of images: what a network gives its classifier."""

from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitattn.errors import ImageError
from splitattn.images.decode import ImageSource
from splitattn.images.limits import DEFAULT_LIMITS, Limits
from splitattn.images.loading import Decoding, map_images
from splitattn.opening import open_weights
from splitattn.weights.download import Progress

Features = NDArray[np.float32]


class FeatureExtractor:
    """Gives the features of images: the mean over pixels of the network's last map.

    Args:
        model, weights, device, engine, decoding, white_level, limits, progress: see `Classifier`.
            Exported files have no features.

    Attributes:
        model, weights: what was chosen.
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
    ) -> None:
        trained = open_weights(model, weights, progress=progress)
        self.model, self.weights = trained.metadata.model, trained.weights
        own = trained.metadata.preprocessing
        self.preprocessing = own if white_level is None else replace(own, white_level=white_level)
        self.engine = trained.without_classifier().load(engine, device)
        self._decoding = decoding
        self._limits = limits

    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> Generator[Features | ImageError, None, None]:
        """The features of any number of images, in their order.

        Args:
            sources, batch_size, workers: see `Classifier.predict_stream`.

        Yields:
            An image's features, float32 (D,), or the error that says why it has none.

        Raises:
            InputError: a number is less than 1.
        """
        return map_images(
            lambda pixels: list(self.engine.run(pixels, self.preprocessing)),
            sources,
            self.preprocessing,
            batch_size=batch_size,
            workers=workers,
            limits=self._limits,
            decoding=self._decoding,
        )
