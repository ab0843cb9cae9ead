"""`Classifier`: labels images."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from splitattn.data.class_lists import ClassNames
from splitattn.engines.engine import ACTIVATIONS, THRESHOLD, finite
from splitattn.errors import ImageError, InputError, check_whole
from splitattn.features import FeatureExtractor, Features, map_finite
from splitattn.images.decode import ImageSource
from splitattn.images.limits import DEFAULT_LIMITS, Limits, check_limits
from splitattn.images.loading import Decoding, check_decoding
from splitattn.images.preprocess import Pixels, load_pixels
from splitattn.opening import open_network
from splitattn.preprocessing import least_side
from splitattn.weights.download import Progress

if TYPE_CHECKING:
    from splitattn.explanation.explainer import Explainer
    from splitattn.explanation.explanation import Explanation

_TOPK = 5


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One of the classes that an image may belong to.

    Attributes:
        label: name of the class, or its index if the weights come without names.
        index: of the class among the model's outputs.
        probability: from 0 to 1.
    """

    label: str
    index: int
    probability: float


class Classifier:
    """Labels images: with one class each, or with several if the weights' activation is "sigmoid".

    Args:
        model: name of a model, or `hf-hub:owner/name` or `local-dir:path`, which names its weights
            too; None takes the model that the weights belong to.
        weights: a tag of the catalogue, an `hf-hub:` or `local-dir:` name, a checkpoint, a folder
            with one, or an exported file; None takes the model's default weights, and without a
            model those that ship inside the package.
        device: "auto" is CUDA where PyTorch sees it, and else the CPU.
        engine: what runs the network: "openvino", "onnxruntime", "torch" or "compile"; "auto" is
            the fastest that is installed for the device, or an exported file's own.
        decoding: "fast" decodes large JPEG photographs at reduced scale, never below twice what
            the network sees; "exact" decodes every pixel.
        white_level: the value of full brightness in images of more than 8 bits per channel; None
            leaves it to the weights, or else to each image (see `images.decode.decode`).
        class_names: names of the classes, in the order of the outputs, if not the weights' own: a
            text file with one a line, JSON, or the names themselves.
        limits: what is refused before it is decoded.
        quick_start: for a few images: the first is labeled sooner, and each takes longer. Only
            weights in ONNX Runtime have this choice.
        progress: follows the download of weights, if there is one.

    Attributes:
        model, weights: what was chosen: a model's name, and a tag, a path or an `hf-hub:` name.
        classes: names by output index.
        preprocessing: how an image becomes the network's input.
        activation: "softmax" if an image has one class, "sigmoid" if it may have several or none.
        engine: the loaded network.

    Raises:
        InputError: there is no such model, device or engine, or the engine's library is missing.
        DataError: the class names cannot be read, or are not one for each output.
        WeightsError: the weights cannot be found, verified or matched to the model.
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
        class_names: ClassNames | None = None,
        limits: Limits = DEFAULT_LIMITS,
        quick_start: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._decoding, self._limits = check_decoding(decoding), check_limits(limits)
        opened = open_network(
            model,
            weights,
            engine=engine,
            device=device,
            white_level=white_level,
            class_names=class_names,
            quick_start=quick_start,
            progress=progress,
        )
        self.model, self.weights = opened.model, opened.weights
        self.classes, self.preprocessing = opened.classes, opened.preprocessing
        self.activation = opened.metadata.activation
        self.engine = opened.engine
        again: dict[str, Any] = {
            "device": device,
            "engine": engine,
            "decoding": decoding,
            "white_level": white_level,
            "limits": limits,
        }
        self._make_extractor = partial(
            FeatureExtractor, model, weights, unchanged=opened.file, **again
        )
        own_names = None if class_names is None else opened.classes
        self._make_explainer = partial(
            _new_explainer, model, weights, opened=opened, class_names=own_names, **again
        )
        self._explainer: Explainer | None = None
        self._one_opens = Lock()

    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        topk: int | None = None,
        *,
        threshold: float | None = None,
    ) -> list[list[Prediction]]: ...

    @overload
    def predict(
        self, images: ImageSource, topk: int | None = None, *, threshold: float | None = None
    ) -> list[Prediction]: ...

    def predict(
        self,
        images: ImageSource | list[Any] | tuple[Any, ...],
        topk: int | None = None,
        *,
        threshold: float | None = None,
    ) -> list[Prediction] | list[list[Prediction]]:
        """The most probable classes of an image, most probable first.

        Args:
            images: one image, as `splitattn.images.decode.decode` takes it, or a list of images.
            topk: how many classes to name at most. None is 5, or all if the activation is sigmoid.
            threshold: if the activation is sigmoid, the smallest probability of a class that is
                named; None is 0.5. An image may then have no class.

        Returns:
            The predictions of one image, or for a list of images a list of these, in its order.

        Raises:
            ImageError: an image cannot be used. `predict_stream` continues after such an image.
            InputError: `topk` is less than 1, or there is a threshold where each image has one
                class.
        """
        if not isinstance(images, list | tuple):
            return self.predict([images], topk, threshold=threshold)[0]
        predictions = []
        for result in self.predict_stream(images, topk=topk, threshold=threshold):
            if isinstance(result, ImageError):
                raise result
            predictions.append(result)
        return predictions

    def predict_stream(
        self,
        sources: Iterable[ImageSource],
        *,
        topk: int | None = None,
        threshold: float | None = None,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> Generator[list[Prediction] | ImageError, None, None]:
        """Label any number of images: one result each, in their order.

        Images are decoded in threads while the network runs. `sources` is read at most two batches
        ahead, so memory does not grow with the number of images.

        Args:
            sources: images, as `splitattn.images.decode.decode` takes them.
            topk, threshold: see `predict`.
            batch_size: images that the network sees at once.
            workers: threads that decode images; None chooses from the number of processors.

        Yields:
            An image's predictions, most probable first, or the error that says why it has none.

        Raises:
            InputError: a number is less than 1, or see `predict`.
        """
        most, least = self.choice(topk, threshold)
        if isinstance(sources, str | bytes | PathLike):
            raise InputError(
                f"predict_stream needs several images, got {sources!r:.60}: put it into a list, or "
                "use predict"
            )
        return map_finite(
            lambda pixels: self.best(pixels, most, least),
            sources,
            self.preprocessing,
            batch_size=batch_size,
            workers=workers,
            limits=self._limits,
            decoding=self._decoding,
        )

    def features(self, images: ImageSource | list[Any] | tuple[Any, ...]) -> Features:
        """What the network gives its classifier: the mean over pixels of its last map.

        Images that look alike have features that point in similar directions, so they serve for
        search and clusters. The first call loads the network a second time.

        Args:
            images: one image, as `splitattn.images.decode.decode` takes it, or a list of images.

        Returns:
            float32 (D,) of one image, or (N, D) of a list; D is the number of channels of the last
            map, 2048 for the published networks.

        Raises:
            ImageError: an image cannot be used.
            WeightsError: the network is an exported file, which has no features, or its file has
                changed since it was opened.
        """
        found: list[Features] = []
        sources = images if isinstance(images, list | tuple) else [images]
        for result in self._extractor.stream(sources):
            if isinstance(result, ImageError):
                raise result
            found.append(result)
        if not isinstance(images, list | tuple):
            return found[0]
        return np.stack(found) if found else np.empty((0, 0), np.float32)

    def explain(
        self,
        image: ImageSource,
        label: str | int | None = None,
        method: str = "auto",
        *,
        name: str | None = None,
    ) -> "Explanation":
        """Explain a label: a heat map over the image, and the share of each split.

        The first call loads the network a second time.

        Args:
            image: as `splitattn.images.decode.decode` takes it.
            label: a class by name or index; None takes the most probable one.
            name: what errors call the image; by default its path.
            method: "cam", which is exact, where the network's last map is fine enough to show
                something; "layercam" looks at an earlier map, of small images; "rise" covers parts
                of the image and needs nothing but probabilities, so it explains exported files
                too. "auto" takes the first of these that can serve. See `Explanation`.

        Raises:
            ImageError: the image cannot be used.
            InputError: there is no such label or method, or an exported file lacks the map.
            WeightsError: the weights have changed since they were opened.
        """
        return self.explainer.explain(image, label, method, name=name)

    @property
    def explainer(self) -> "Explainer":
        """The explainer behind `explain`. The first use opens it.

        Raises:
            WeightsError: the weights have changed since they were opened.
        """
        with self._one_opens:
            if self._explainer is None:
                self._explainer = self._make_explainer()
            return self._explainer

    @cached_property
    def _extractor(self) -> FeatureExtractor:
        return self._make_extractor()

    def load(
        self, image: ImageSource, *, limits: Limits | None = None, name: str | None = None
    ) -> Pixels:
        """The network's input for an image, for those who gather batches themselves.

        Args:
            image: as `splitattn.images.decode.decode` takes it.
            limits: what is refused before it is decoded; None takes the classifier's.
            name: what errors call the image; by default its path.

        Returns:
            Pixels (C, size, size).

        Raises:
            ImageError: the image cannot be used.
        """
        least = least_side(self.preprocessing) if self._decoding == "fast" else None
        limits = self._limits if limits is None else limits
        return load_pixels(image, self.preprocessing, least_side=least, limits=limits, name=name)

    def probabilities(
        self,
        pixels_BCHW: Pixels,  # noqa: N803
    ) -> NDArray[np.float32]:
        """Probabilities (B, classes) of images as `load` gives them, (B, C, size, size).

        Where the network gives no finite numbers, all of an image are NaN.
        """
        logits = self.engine.run(pixels_BCHW, self.preprocessing)
        usable = finite(logits)[:, None]
        found = ACTIVATIONS[self.activation](np.where(usable, logits, 0))
        return np.where(usable, found, np.float32(np.nan))

    def named(
        self, probabilities: NDArray[np.float32], most: int, least: float
    ) -> list[Prediction]:
        """The classes of one image, most probable first, from its probabilities (classes,).

        Args:
            most: how many classes to name.
            least: leave out classes with a lower probability.
        """
        order = np.argsort(-probabilities, kind="stable")[:most].tolist()
        return [
            Prediction(label=self.classes[index], index=index, probability=probability)
            for index, probability in zip(order, probabilities[order].tolist(), strict=True)
            if probability >= least
        ]

    def best(
        self,
        pixels_BCHW: Pixels,  # noqa: N803
        most: int,
        least: float,
    ) -> list[list[Prediction] | None]:
        """The predictions for each image of a batch, or None where logits are not finite.

        Args:
            pixels_BCHW: of the network's size, as `load` gives them.
            most, least: see `named`.
        """
        found = self.probabilities(pixels_BCHW)
        return [
            self.named(row, most, least) if usable else None
            for row, usable in zip(found, finite(found), strict=True)
        ]

    def choice(self, topk: int | None, threshold: float | None) -> tuple[int, float]:
        """How many classes `predict` names, and the smallest probability of these.

        Args:
            topk, threshold: see `predict`.

        Raises:
            InputError: see `predict`.
        """
        several = self.activation == "sigmoid"
        if topk is not None:
            check_whole("topk", topk, least=1)
        if threshold is not None and not several:
            raise InputError(
                f"a threshold is for weights that give several labels, got {threshold} for "
                f"{self.weights}: leave it out"
            )
        most = (len(self.classes) if several else _TOPK) if topk is None else topk
        return most, (THRESHOLD if several else 0.0) if threshold is None else threshold


def _new_explainer(*arguments: Any, **options: Any) -> "Explainer":
    from splitattn.explanation.explainer import Explainer  # its import takes time, and few need it

    return Explainer(*arguments, **options)
