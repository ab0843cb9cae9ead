"""`Detector`: finds objects in images."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, overload

from PIL import Image

from splitattn.architectures import architecture
from splitattn.dense.finding import EngineFinder, Finder, find
from splitattn.dense.found import FoundObjects
from splitattn.dense.outlines import RunLengths
from splitattn.dense.resizing import decode_for, read_sides
from splitattn.dense.trained import TrainedDense, open_dense
from splitattn.errors import ImageError, InputError, WeightsError
from splitattn.graph.detection import (
    FOLDED_HEADS,
    IOU,
    LEAST_SCORE,
    FoldedDetector,
    detector_shapes,
    fold_detector,
)
from splitattn.graph.folding import Form
from splitattn.images.decode import ImageSource, Reduced, as_reduced
from splitattn.images.limits import DEFAULT_LIMITS, Limits, check_limits
from splitattn.images.loading import Decoding, check_decoding, map_decoded
from splitattn.libraries import require
from splitattn.weights.metadata import ModelMetadata


@dataclass(frozen=True, kw_only=True)
class DetectedObject:
    """An object in an image.

    Attributes:
        label: name of its class.
        index: of the class.
        score: from 0 to 1.
        box: left, top, right and bottom, in pixels of the upright image.
        mask: its pixels, see `RunLengths`; None if the detector finds boxes only.
    """

    label: str
    index: int
    score: float
    box: tuple[float, float, float, float]
    mask: RunLengths | None = None


class Detector:
    """Finds objects in images.

    Args:
        weights: a file that a training of a detector wrote, the training's folder, or a file that
            `export` wrote. Only engine "torch" needs PyTorch.
        engine: what runs it: "onnxruntime", "openvino" or "torch"; "auto" is the fastest that is
            installed, or an exported file's own.
        device: "auto" is CUDA where PyTorch sees it, and else the CPU.
        decoding: "fast" decodes large JPEG files at reduced size, which changes pixels slightly;
            "exact" decodes every pixel, as `evaluate` always does.
        iou: of two boxes of a class that overlap by more than this, as intersection over union, the
            one with the lower score is left out.
        limits: what is refused before it is decoded.

    Attributes:
        model, weights: name of the backbone, and path of the file.
        classes: names by index.
        engine: what runs it: engine, version and device.
        sides: shorter and longer side of the images that the network sees, in pixels.
        masks: whether it finds the pixels of each object.
        category_ids: the id of each class in COCO's format: that of the training images, or else
            counted from 1.
        fix_shapes: see `OpenedDense.fix_shapes`.

    Raises:
        InputError: there is no such engine or device, a library is missing, or `iou` is not from 0
            to 1.
        WeightsError: the weights cannot be read, or are not those of a detector.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        engine: str = "auto",
        device: str = "auto",
        decoding: Decoding = "fast",
        iou: float = IOU,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        if not 0 <= iou <= 1:
            raise InputError(f"iou must be 0 to 1, got {iou}")
        self._iou = iou
        self._decoding, self._limits = check_decoding(decoding), check_limits(limits)
        opened = open_dense(TrainedDetector, weights, EngineFinder, engine=engine, device=device)
        self.engine, self._finder = opened.engine, opened.runner
        self.fix_shapes = opened.fix_shapes
        metadata = opened.metadata
        self.sides = read_sides(metadata.head)
        self.masks = metadata.head.get("masks") is True
        self.model, self.weights, self.classes = metadata.model, opened.path, metadata.classes
        self.category_ids = _category_ids(metadata, opened.path)

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
            images: one image, as `splitattn.images.decode.decode` takes it, or a list of images.
            score: objects with a lower one are left out.

        Returns:
            The objects of one image, or for a list of images a list of these, in its order.

        Raises:
            ImageError: an image cannot be used. `predict_stream` continues after such an image.
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

    def load(
        self, image: ImageSource, *, limits: Limits | None = None, name: str | None = None
    ) -> Reduced:
        """An image, decoded for `objects`.

        Args:
            image: as `splitattn.images.decode.decode` takes it.
            limits: what is refused before it is decoded; None takes the detector's.
            name: what errors call the image; by default its path.

        Raises:
            ImageError: the image cannot be used.
        """
        limits = self._limits if limits is None else limits
        return decode_for(image, self.sides, self._decoding, limits=limits, name=name)

    def predict_stream(
        self, sources: Iterable[ImageSource], *, score: float = 0.3
    ) -> Generator[list[DetectedObject] | ImageError, None, None]:
        """Find objects in any number of images: one result each, in their order.

        The next images are decoded while the network runs.

        Yields:
            An image's objects, best first, or the error that says why it has none.

        Raises:
            InputError: `score` is not from 0 to 1.
        """
        if not 0 <= score <= 1:
            raise InputError(f"score must be 0 to 1, got {score}")
        return map_decoded(partial(self.objects, score=score), self.load, sources)

    def objects(self, image: Image.Image | Reduced, score: float) -> list[DetectedObject]:
        """The objects in an image, as `predict` gives them.

        Args:
            image: RGB, upright, or what `load` gives.
            score: objects with a lower one are left out.

        Raises:
            ImageError: the network gives no finite numbers.
        """
        size = as_reduced(image).whole
        found = self.find(image, score)
        boxes, labels, scores = (
            each.tolist() for each in (found.boxes, found.labels, found.scores)
        )
        masks: list[RunLengths | None] = [*found.run_lengths(size)]
        return [
            DetectedObject(
                label=self.classes[label], index=label, score=value, box=tuple(box), mask=mask
            )
            for box, label, value, mask in zip(
                boxes, labels, scores, masks or [None] * len(found), strict=True
            )
        ]

    def find(self, image: Image.Image | Reduced, score: float = LEAST_SCORE) -> FoundObjects:
        """What is found in an image, as arrays.

        Args:
            image: as for `objects`.
            score: objects with this one or a lower one are left out.
        """
        return find(self._finder, image, self.sides, score=score, iou=self._iou)


def _category_ids(metadata: ModelMetadata, path: str) -> tuple[int, ...]:
    count = len(metadata.classes)
    ids = metadata.head.get("category_ids", [*range(1, count + 1)])
    fits = isinstance(ids, list) and len(ids) == count
    if not fits or not all(type(each) is int for each in ids):
        raise WeightsError(
            f"{path}: category_ids must be {count} whole numbers, one for each class, got "
            f"{ids!r:.60}"
        )
    return tuple(ids)


@dataclass(frozen=True, kw_only=True)
class TrainedDetector(TrainedDense[Finder]):
    """The weights of a trained detector."""

    what: ClassVar[str] = "detector"
    task: ClassVar[str] = "detection"
    folded_heads: ClassVar[tuple[str, ...]] = FOLDED_HEADS

    def fold(self, form: Form) -> FoldedDetector:
        shape = architecture(self.metadata.model)
        classes = len(self.metadata.classes)
        self.check_shapes(
            detector_shapes(shape, num_classes=classes, channels=self.channels, head=self.head)
        )
        return fold_detector(shape, self.tensors, form=form, head=self.head)

    def in_torch(self, device: str) -> Finder:
        require("engine torch", "torch", "torchvision")
        from splitattn.dense.detectors import create_detector, find_head
        from splitattn.dense.torch_finding import TorchFinder
        from splitattn.engines.pytorch import choose_device

        network: Any = create_detector(
            self.metadata.model,
            head=self.head,
            num_classes=len(self.metadata.classes),
            channels=self.channels,
            box_head=self._box_head(),
            mean=self.metadata.preprocessing.mean,
            std=self.metadata.preprocessing.std,
        )
        self.load_into(network)
        chosen = choose_device(device)
        return TorchFinder(network.eval().to(chosen), chosen, find_head(self.head).first_label)

    def _box_head(self) -> str:
        found = self.metadata.head.get("box_head", "2fc")  # detectors of one stage have none
        if not isinstance(found, str):
            raise self._unfit(f"its box head must be a name, got {found!r:.60}")
        return found
