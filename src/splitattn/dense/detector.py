"""From images to boxes in two lines."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from splitattn.dense.detect import detect
from splitattn.dense.detectors import create_detector, find_head
from splitattn.dense.resizing import read_sides
from splitattn.engines.pytorch import choose_device
from splitattn.errors import ImageError, InputError, WeightsError
from splitattn.images.decode import ImageSource, decode
from splitattn.images.limits import DEFAULT_LIMITS, Limits
from splitattn.weights.checkpoint import read_by_own_keys
from splitattn.weights.metadata import read_metadata
from splitattn.weights.resolve import weights_file


@dataclass(frozen=True, kw_only=True)
class DetectedObject:
    """An object in an image.

    Attributes:
        label: name of its class.
        index: of the class.
        score: from 0 to 1.
        box: left, top, right and bottom, in pixels of the upright image.
    """

    label: str
    index: int
    score: float
    box: tuple[float, float, float, float]


class Detector:
    """Finds objects in images.

    Args:
        weights: a file that a training of a detector wrote, or the training's folder.
        device: "auto" is CUDA where PyTorch sees it, and else the CPU.
        iou: of two boxes of a class that overlap by more than this, as intersection over union, the
            one with the lower score is left out.
        limits: what is refused before it is decoded.

    Attributes:
        model, weights: name of the backbone, and path of the file.
        classes: names by index.
        sides: shorter and longer side of the images that the network sees, in pixels.

    Raises:
        InputError: there is no such device, or `iou` is not from 0 to 1.
        WeightsError: the weights cannot be read, or are not those of a detector.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        device: str = "auto",
        iou: float = 0.6,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        if not 0 <= iou <= 1:
            raise InputError(f"iou must be 0 to 1, got {iou}")
        path = weights_file(Path(weights))
        metadata = read_metadata(path)
        if metadata is None or metadata.task != "detection":
            raise WeightsError(f"{path} must be a detector's weights, and does not say that it is")
        head, channels = metadata.head.get("name"), metadata.head.get("channels")
        if not isinstance(head, str) or type(channels) is not int:
            raise WeightsError(f"{path} must say its head and channels, got {metadata.head!r:.80}")
        self.sides = read_sides(metadata.head)
        self.model, self.weights, self.classes = metadata.model, str(path), metadata.classes
        self._device = choose_device(device)
        self._limits = limits
        self._first_label = find_head(head).first_label
        network: Any = create_detector(
            metadata.model,
            head=head,
            num_classes=len(self.classes),
            channels=channels,
            mean=metadata.preprocessing.mean,
            std=metadata.preprocessing.std,
        )
        try:
            network.load_state_dict(read_by_own_keys(path))
        except RuntimeError as error:
            first = " ".join(str(error).split())[:200]
            raise WeightsError(f"{path} does not fit what it says about itself: {first}") from error
        network.nms_thresh = iou
        self._network = network.eval().to(self._device)

    @overload
    def predict(
        self, images: list[Any] | tuple[Any, ...], score: float = 0.3
    ) -> list[list[DetectedObject]]: ...

    @overload
    def predict(self, images: ImageSource, score: float = 0.3) -> list[DetectedObject]: ...

    def predict(
        self, images: ImageSource | list[Any] | tuple[Any, ...], score: float = 0.3
    ) -> list[DetectedObject] | list[list[DetectedObject]]:
        """The objects in an image, best first.

        Args:
            images: one image, as `splitattn.images.decode` takes it, or a list of images.
            score: objects with a lower one are left out.

        Returns:
            The objects of one image, or for a list of images a list of these, in its order.

        Raises:
            ImageError: an image cannot be used. `predict_stream` goes on after such an image.
            InputError: `score` is not from 0 to 1.
        """
        if not isinstance(images, list | tuple):
            return self.predict([images], score)[0]
        results = []
        for result in self.predict_stream(images, score=score):
            if isinstance(result, ImageError):
                raise result
            results.append(result)
        return results

    def predict_stream(
        self, sources: Iterable[ImageSource], *, score: float = 0.3
    ) -> Generator[list[DetectedObject] | ImageError, None, None]:
        """Find objects in any number of images: one result each, in their order.

        Yields:
            An image's objects, best first, or the error that says why it has none.

        Raises:
            InputError: `score` is not from 0 to 1.
        """
        if not 0 <= score <= 1:
            raise InputError(f"score must be 0 to 1, got {score}")
        return self._stream(sources, score)

    def _stream(
        self, sources: Iterable[ImageSource], score: float
    ) -> Generator[list[DetectedObject] | ImageError, None, None]:
        self._network.score_thresh = score
        for source in sources:
            try:
                image = decode(source, limits=self._limits)
            except ImageError as error:
                yield error
                continue
            found = detect(self._network, image, self.sides, self._device, self._first_label)
            rows = zip(*(each.tolist() for each in vars(found).values()), strict=True)
            yield [
                DetectedObject(label=self.classes[i], index=i, score=value, box=tuple(box))
                for box, i, value in rows
            ]
