"""`Segmenter`: finds the class of every pixel of images."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
from PIL import Image

from splitattn.architectures import Architecture, architecture
from splitattn.dense.masks import Mask
from splitattn.dense.resizing import decode_for, read_sides
from splitattn.dense.segment import Logits, segment
from splitattn.dense.trained import TrainedDense, open_dense
from splitattn.engines.engine import Engine
from splitattn.errors import ImageError
from splitattn.graph.folding import Form
from splitattn.graph.segmentation import (
    FOLDED_HEADS,
    MULTIPLE,
    FoldedSegmenter,
    SegmenterReference,
    fold_segmenter,
    segmenter_shapes,
)
from splitattn.images.decode import ImageSource, Reduced
from splitattn.images.limits import DEFAULT_LIMITS, Limits, check_limits
from splitattn.images.loading import Decoding, check_decoding, map_decoded
from splitattn.libraries import require
from splitattn.preprocessing import Preprocessing

_OUTPUT_STRIDE = 32  # of backbones that have a folded form here


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
        weights: a file that a training of a segmenter wrote, the training's folder, or a file that
            `export` wrote. Only engine "torch" needs PyTorch.
        engine: what runs it: "onnxruntime", "openvino" or "torch"; "auto" is the fastest that is
            installed, or an exported file's own. Heads other than "fpn" run in torch.
        device: "auto" is CUDA where PyTorch sees it, and else the CPU.
        decoding: "fast" decodes large JPEG files at reduced size, which changes pixels slightly;
            "exact" decodes every pixel, as `evaluate` always does.
        limits: what is refused before it is decoded.

    Attributes:
        model, weights: name of the backbone, and path of the file.
        classes: names by number.
        engine: what runs it: engine, version and device.
        sides: shorter and longer side of the images that the network sees, in pixels.
        fix_shapes: see `OpenedDense.fix_shapes`.

    Raises:
        InputError: there is no such engine or device, or a library is missing.
        WeightsError: the weights cannot be read, or are not those of a segmenter.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        engine: str = "auto",
        device: str = "auto",
        decoding: Decoding = "fast",
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._decoding, self._limits = check_decoding(decoding), check_limits(limits)
        opened = open_dense(TrainedSegmenter, weights, _logits_of, engine=engine, device=device)
        metadata = opened.metadata
        self.engine, self._logits = opened.engine, opened.runner
        self.fix_shapes = opened.fix_shapes
        self.sides = read_sides(metadata.head, MULTIPLE)
        self.model, self.weights, self.classes = metadata.model, opened.path, metadata.classes
        self._preprocessing = metadata.preprocessing

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...]) -> list[SegmentedImage]: ...

    @overload
    def predict(self, images: ImageSource) -> SegmentedImage: ...

    def predict(
        self, images: ImageSource | list[Any] | tuple[Any, ...]
    ) -> SegmentedImage | list[SegmentedImage]:
        """The class of every pixel of an image.

        Args:
            images: one image, as `splitattn.images.decode.decode` takes it, or a list of images.

        Returns:
            The answer for one image, or for a list of images a list of these, in its order.

        Raises:
            ImageError: an image cannot be used. `predict_stream` continues after such an image.
        """
        if not isinstance(images, list | tuple):
            return self.predict([images])[0]
        results = []
        for result in self.predict_stream(images):
            if isinstance(result, ImageError):
                raise result
            results.append(result)
        return results

    def load(
        self, image: ImageSource, *, limits: Limits | None = None, name: str | None = None
    ) -> Reduced:
        """An image, decoded for `answer`.

        Args:
            image: as `splitattn.images.decode.decode` takes it.
            limits: what is refused before it is decoded; None takes the segmenter's.
            name: what errors call the image; by default its path.

        Raises:
            ImageError: the image cannot be used.
        """
        limits = self._limits if limits is None else limits
        return decode_for(image, self.sides, self._decoding, limits=limits, name=name)

    def predict_stream(
        self, sources: Iterable[ImageSource]
    ) -> Generator[SegmentedImage | ImageError, None, None]:
        """Segment any number of images: one result each, in their order.

        The next images are decoded while the network runs.

        Yields:
            An image's answer, or the error that says why it has none.
        """
        return map_decoded(self.answer, self.load, sources)

    def answer(self, image: Image.Image | Reduced) -> SegmentedImage:
        """What `predict` gives for an image.

        Args:
            image: RGB, upright, or what `load` gives.

        Raises:
            ImageError: the network gives no finite numbers.
        """
        return SegmentedImage(class_map=self.segment(image), classes=self.classes)

    def segment(self, image: Image.Image | Reduced) -> Mask:
        """The class of every pixel of an image, (H, W); see `answer`."""
        return segment(self._logits, image, self.sides, self._preprocessing)


@dataclass(frozen=True, kw_only=True)
class TrainedSegmenter(TrainedDense[Logits]):
    """The weights of a trained segmenter."""

    what: ClassVar[str] = "segmenter"
    task: ClassVar[str] = "segmentation"
    folded_heads: ClassVar[tuple[str, ...]] = FOLDED_HEADS

    def fold(self, form: Form) -> FoldedSegmenter:
        return fold_segmenter(self._checked(), self.tensors, form=form)

    def reference(self) -> SegmenterReference:
        """The plain network of the head "fpn", which every engine must equal.

        Raises:
            WeightsError: the tensors are not those of the head.
        """
        return SegmenterReference(self._checked(), self.tensors)

    def _checked(self) -> Architecture:
        if (stride := self.metadata.head.get("output_stride", _OUTPUT_STRIDE)) != _OUTPUT_STRIDE:
            raise self._unfit(
                f"its output stride must be {_OUTPUT_STRIDE} for head {self.head}, got "
                f"{stride!r:.60}"
            )
        shape = architecture(self.metadata.model)
        classes = len(self.metadata.classes)
        self.check_shapes(segmenter_shapes(shape, num_classes=classes, channels=self.channels))
        return shape

    def in_torch(self, device: str) -> Logits:
        require("engine torch", "torch", "torchvision")
        from splitattn.dense.segmenters import create_segmenter
        from splitattn.dense.torch_segment import torch_logits
        from splitattn.engines.pytorch import choose_device

        network = create_segmenter(
            self.metadata.model,
            head=self.head,
            num_classes=len(self.metadata.classes),
            channels=self.channels,
            output_stride=self.metadata.head.get("output_stride"),
        )
        self.load_into(network)
        chosen = choose_device(device)
        return torch_logits(network.eval().to(chosen), chosen)


def _logits_of(engine: Engine, _: Preprocessing) -> Logits:
    return engine.logits
