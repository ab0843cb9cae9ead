"""From images to labels in two lines."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from splitattn.create import load_trained
from splitattn.engines.engine import Runtime, load_runtime
from splitattn.engines.exported import is_exported, load_exported
from splitattn.errors import ImageError, InputError, WeightsError
from splitattn.images.decode import ImageSource, decode
from splitattn.images.limits import DEFAULT_LIMITS, Limits
from splitattn.images.preprocess import preprocess
from splitattn.weights.download import Progress
from splitattn.weights.resolve import check_owner, resolve


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One of the classes an image may belong to.

    Attributes:
        label: the class's name, or its index where the weights come without names.
        index: of the class among the model's outputs.
        probability: from 0 to 1.
    """

    label: str
    index: int
    probability: float


class Classifier:
    """Labels images.

    Args:
        model: name of a model, or `hf-hub:owner/name` or `local-dir:path`, which names its weights
            too; None takes the one that the weights belong to.
        weights: a tag of the catalogue, an `hf-hub:` or `local-dir:` name, the path of a checkpoint
            or of a folder with one, or that of an exported `.onnx` or `.xml` file; None takes the
            model's default weights or, without a model, those that ship inside the package.
        device: "auto" is CUDA where there is any and the engine uses it, and the CPU elsewhere.
        engine: what runs the network: "torch", "compile", "onnxruntime" or "openvino"; "auto" is
            the fastest one installed for the device, and an exported file's own.
        limits: what is refused before it is decoded.
        progress: follows the download of weights, if there is one.

    Attributes:
        model, weights: what was chosen: a model's name, and a tag, a path or an `hf-hub:` name.
        classes: names by output index.
        preprocessing: how an image becomes the network's input.
        runtime: the loaded network.

    Raises:
        InputError: there is no such model, device or engine, or the engine's library is missing.
        WeightsError: the weights cannot be found, verified or matched to the model.
    """

    def __init__(
        self,
        model: str | None = None,
        weights: str | Path | None = None,
        *,
        device: str = "auto",
        engine: str = "auto",
        limits: Limits = DEFAULT_LIMITS,
        progress: Progress | None = None,
    ) -> None:
        self._limits = limits
        self.runtime: Runtime
        if weights is not None and is_exported(weights):
            exported = load_exported(weights, device=device, engine=engine)
            check_owner(Path(weights), exported.metadata.model, model)
            self.model, self.weights = exported.metadata.model, str(weights)
            self.classes = exported.metadata.classes
            self.preprocessing = exported.metadata.preprocessing
            self.runtime = exported.runtime
            return
        resolved = resolve(model, weights, progress=progress)
        network = load_trained(resolved)
        self.model = resolved.model
        self.weights = resolved.tag or str(resolved.path)
        self.classes = resolved.classes or tuple(map(str, range(network.num_classes)))
        if len(self.classes) != network.num_classes:
            raise WeightsError(
                f"{resolved.path} must name each of its {network.num_classes} classes, "
                f"it names {len(self.classes)}; write the file again"
            )
        self.preprocessing = resolved.preprocessing
        self.runtime = load_runtime(network, self.preprocessing, device=device, engine=engine)

    @overload
    def predict(
        self, images: list[Any] | tuple[Any, ...], topk: int = 5
    ) -> list[list[Prediction]]: ...

    @overload
    def predict(self, images: ImageSource, topk: int = 5) -> list[Prediction]: ...

    def predict(
        self, images: ImageSource | list[Any] | tuple[Any, ...], topk: int = 5
    ) -> list[Prediction] | list[list[Prediction]]:
        """The `topk` most probable classes, most probable first.

        Args:
            images: one image, as `splitattn.images.decode` takes it, or a list of them.
            topk: how many classes to name; all of them, if the model has fewer.

        Returns:
            The predictions of one image, or a list of these for a list of images, in its order.

        Raises:
            ImageError: an image cannot be used. `predict_stream` goes on after such an image.
            InputError: `topk` is less than 1.
        """
        if not isinstance(images, list | tuple):
            return self.predict([images], topk)[0]
        predictions = []
        for result in self.predict_stream(images, topk=topk):
            if isinstance(result, ImageError):
                raise result
            predictions.append(result)
        return predictions

    def predict_stream(
        self,
        sources: Iterable[ImageSource],
        *,
        topk: int = 5,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> Generator[list[Prediction] | ImageError, None, None]:
        """Label any number of images, one result each, in their order.

        Images are decoded in threads while the network runs. `sources` is read no further than two
        batches ahead, so memory does not grow with the number of images.

        Args:
            sources: images, as `splitattn.images.decode` takes them.
            topk: how many classes to name; all of them, if the model has fewer.
            batch_size: images that the network sees at once.
            workers: threads that decode; None takes a few more than there are processors.

        Yields:
            An image's predictions, most probable first, or the error that says why it has none.

        Raises:
            InputError: a number is less than 1.
        """
        for name, number in (("topk", topk), ("batch_size", batch_size), ("workers", workers)):
            if number is not None and number < 1:
                raise InputError(f"{name} must be at least 1, got {number}")
        return self._stream(iter(sources), min(topk, len(self.classes)), batch_size, workers)

    def _stream(
        self, sources: Iterator[ImageSource], topk: int, batch_size: int, workers: int | None
    ) -> Generator[list[Prediction] | ImageError, None, None]:
        loading: deque[Future[Tensor | ImageError]] = deque()
        pool = ThreadPoolExecutor(workers, "splitattn-decode")
        try:
            while True:
                ahead = islice(sources, 2 * batch_size - len(loading))
                loading.extend(pool.submit(self._load, source) for source in ahead)
                if not loading:
                    return
                now = min(batch_size, len(loading))
                yield from self._label([loading.popleft().result() for _ in range(now)], topk)
        finally:
            pool.shutdown(cancel_futures=True)

    def _load(self, source: ImageSource) -> Tensor | ImageError:
        try:
            return preprocess(decode(source, limits=self._limits), self.preprocessing)
        except ImageError as error:
            return error

    def _label(
        self, batch: list[Tensor | ImageError], topk: int
    ) -> Iterator[list[Prediction] | ImageError]:
        images = [item for item in batch if isinstance(item, Tensor)]
        labelled = iter(self._best(torch.stack(images), topk) if images else ())
        for item in batch:
            yield item if isinstance(item, ImageError) else next(labelled)

    def _best(self, batch_BCHW: Tensor, topk: int) -> list[list[Prediction]]:  # noqa: N803
        probabilities, indices = self.runtime.run(batch_BCHW).topk(topk)
        return [
            [
                Prediction(label=self.classes[index], index=index, probability=probability)
                for index, probability in zip(*row, strict=True)
            ]
            for row in zip(indices.tolist(), probabilities.tolist(), strict=True)
        ]
