"""From images to the class of every pixel in two lines."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from splitattn.dense.masks import Mask
from splitattn.dense.resizing import read_sides
from splitattn.dense.segment import segment
from splitattn.dense.segmenters import create_segmenter
from splitattn.dense.torch_segment import torch_logits
from splitattn.engines.pytorch import choose_device
from splitattn.errors import ImageError, WeightsError
from splitattn.graph.segmentation import MULTIPLE
from splitattn.images.decode import ImageSource, decode
from splitattn.images.limits import DEFAULT_LIMITS, Limits
from splitattn.weights.checkpoint import read_by_own_keys
from splitattn.weights.metadata import read_metadata
from splitattn.weights.resolve import weights_file


@dataclass(frozen=True, kw_only=True)
class ClassShare:
    """A class in an image.

    Attributes:
        label: its name.
        index: its number.
        share: of the image's pixels, from 0 to 1.
    """

    label: str
    index: int
    share: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentedImage:
    """The class of every pixel of an image.

    Attributes:
        class_map: (H, W) uint8, the number of each pixel's class; H and W are those of the upright
            image.
        classes: names, by number.
    """

    class_map: Mask
    classes: tuple[str, ...]

    @property
    def shares(self) -> list[ClassShare]:
        """The classes that the image has, those with the most pixels first."""
        counts = np.bincount(self.class_map.ravel(), minlength=len(self.classes))
        order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
        return [
            ClassShare(label=self.classes[i], index=i, share=float(counts[i] / self.class_map.size))
            for i in order
        ]


class Segmenter:
    """Tells the class of every pixel of images.

    Args:
        weights: a file that a training of a segmenter wrote, or the training's folder.
        device: "auto" is CUDA where PyTorch sees it, and else the CPU.
        limits: what is refused before it is decoded.

    Attributes:
        model, weights: name of the backbone, and path of the file.
        classes: names by number.
        sides: shorter and longer side of the images that the network sees, in pixels.

    Raises:
        InputError: there is no such device.
        WeightsError: the weights cannot be read, or are not those of a segmenter.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        device: str = "auto",
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        path = weights_file(Path(weights))
        metadata = read_metadata(path)
        if metadata is None or metadata.task != "segmentation":
            raise WeightsError(f"{path} must be a segmenter's weights, and does not say that it is")
        head, channels = metadata.head.get("name"), metadata.head.get("channels")
        if not isinstance(head, str) or type(channels) is not int:
            raise WeightsError(f"{path} must say its head and channels, got {metadata.head!r:.80}")
        self.sides = read_sides(metadata.head, MULTIPLE)
        self.model, self.weights, self.classes = metadata.model, str(path), metadata.classes
        chosen = choose_device(device)
        self._limits = limits
        self._preprocessing = metadata.preprocessing
        network = create_segmenter(
            metadata.model, head=head, num_classes=len(self.classes), channels=channels
        )
        try:
            network.load_state_dict(read_by_own_keys(path))
        except RuntimeError as error:
            first = " ".join(str(error).split())[:200]
            raise WeightsError(f"{path} does not fit what it says about itself: {first}") from error
        self._logits = torch_logits(network.eval().to(chosen), chosen)

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...]) -> list[SegmentedImage]: ...

    @overload
    def predict(self, images: ImageSource) -> SegmentedImage: ...

    def predict(
        self, images: ImageSource | list[Any] | tuple[Any, ...]
    ) -> SegmentedImage | list[SegmentedImage]:
        """The class of every pixel of an image.

        Args:
            images: one image, as `splitattn.images.decode` takes it, or a list of images.

        Returns:
            The answer for one image, or for a list of images a list of these, in its order.

        Raises:
            ImageError: an image cannot be used. `predict_stream` goes on after such an image.
        """
        if not isinstance(images, list | tuple):
            return self.predict([images])[0]
        results = []
        for result in self.predict_stream(images):
            if isinstance(result, ImageError):
                raise result
            results.append(result)
        return results

    def predict_stream(
        self, sources: Iterable[ImageSource]
    ) -> Generator[SegmentedImage | ImageError, None, None]:
        """The same for any number of images: one result each, in their order.

        Yields:
            An image's answer, or the error that says why it has none.
        """
        for source in sources:
            try:
                image = decode(source, limits=self._limits)
            except ImageError as error:
                yield error
                continue
            found = segment(self._logits, image, self.sides, self._preprocessing)
            yield SegmentedImage(class_map=found, classes=self.classes)
