"""From images to the class of every pixel in two lines."""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.architectures import architecture
from splitattn.dense.masks import Mask
from splitattn.dense.resizing import read_sides
from splitattn.dense.segment import Logits, segment
from splitattn.engines.table import (
    EngineRow,
    check_device,
    fastest_engine,
    file_engine,
    find_engine,
)
from splitattn.errors import ImageError, InputError, WeightsError
from splitattn.graph.folding import Form
from splitattn.graph.segmentation import (
    FOLDED_HEADS,
    MULTIPLE,
    FoldedSegmenter,
    SegmenterReference,
    fold_segmenter,
    segmenter_shapes,
)
from splitattn.images.decode import ImageSource, decode
from splitattn.images.limits import DEFAULT_LIMITS, Limits
from splitattn.libraries import require
from splitattn.opening import check_engine_of_file, open_exported
from splitattn.weights.checkpoint import read_arrays_by_own_keys
from splitattn.weights.metadata import ModelMetadata, read_metadata
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
        weights: a file that a training of a segmenter wrote, the training's folder, or a file that
            `export` wrote. Only engine "torch" needs PyTorch.
        engine: what runs it: "onnxruntime", "openvino" or "torch"; "auto" is the fastest that is
            installed, or an exported file's own. Heads other than "fpn" run in torch.
        device: "auto" is CUDA where PyTorch sees it, and else the CPU.
        limits: what is refused before it is decoded.

    Attributes:
        model, weights: name of the backbone, and path of the file.
        classes: names by number.
        engine: what runs it: engine, version and device.
        sides: shorter and longer side of the images that the network sees, in pixels.

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
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        check_device(device)
        if engine != "auto":
            find_engine(engine)
        if row := file_engine(weights):
            opened = _open_file(row, Path(weights), engine, device)
        else:
            opened = _open_weights(open_segmenter(weights), engine, device)
        metadata = opened.metadata
        self.engine, self._logits = opened.engine, opened.logits
        self.sides = read_sides(metadata.head, MULTIPLE)
        self.model, self.weights, self.classes = metadata.model, opened.path, metadata.classes
        self._limits = limits
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
            yield SegmentedImage(class_map=self.segment(image), classes=self.classes)

    def segment(self, image: Image.Image) -> Mask:
        """The class of every pixel of an image that is RGB and upright, (H, W)."""
        return segment(self._logits, image, self.sides, self._preprocessing)


@dataclass(frozen=True, kw_only=True)
class TrainedSegmenter:
    """A segmenter as it was trained.

    Attributes:
        path: of the file.
        metadata: what the file says about itself.
        head, channels: as in `create_segmenter`.
        tensors: the state dict.
    """

    path: Path
    metadata: ModelMetadata
    head: str
    channels: int
    tensors: Mapping[str, NDArray[Any]]

    def fold(self, form: Form) -> FoldedSegmenter:
        """The inference network, which only the head "fpn" has.

        Raises:
            WeightsError: the tensors are not those of the head.
        """
        self._check()
        return fold_segmenter(architecture(self.metadata.model), self.tensors, form=form)

    def reference(self) -> SegmenterReference:
        """The plain network of the head "fpn", which every engine must equal.

        Raises:
            WeightsError: the tensors are not those of the head.
        """
        self._check()
        return SegmenterReference(architecture(self.metadata.model), self.tensors)

    def _check(self) -> None:
        expected = segmenter_shapes(
            architecture(self.metadata.model),
            num_classes=len(self.metadata.classes),
            channels=self.channels,
        )
        found = {
            key: array.shape
            for key, array in self.tensors.items()
            if not key.endswith("num_batches_tracked")
        }
        differing = sorted(
            key
            for key in {*expected, *found}
            if expected.get(key) != found.get(key) and not key.endswith("num_batches_tracked")
        )
        if differing:
            raise WeightsError(
                f"{self.path} does not fit what it says about itself: {differing[0]} must be "
                f"{expected.get(differing[0])}, got {found.get(differing[0])}"
            )

    def torch_logits(self, device: str) -> Logits:
        """The segmenter in PyTorch.

        Raises:
            InputError: there is no such device, or PyTorch is missing.
            WeightsError: the tensors are not those of the head.
        """
        require("engine torch", "torch", "torchvision")
        import torch

        from splitattn.dense.segmenters import create_segmenter
        from splitattn.dense.torch_segment import torch_logits
        from splitattn.engines.pytorch import choose_device

        network = create_segmenter(
            self.metadata.model,
            head=self.head,
            num_classes=len(self.metadata.classes),
            channels=self.channels,
        )
        try:
            network.load_state_dict({k: torch.from_numpy(v) for k, v in self.tensors.items()})
        except RuntimeError as error:
            first = " ".join(str(error).split())[:200]
            raise WeightsError(
                f"{self.path} does not fit what it says about itself: {first}"
            ) from error
        chosen = choose_device(device)
        return torch_logits(network.eval().to(chosen), chosen)


def open_segmenter(weights: str | Path) -> TrainedSegmenter:
    """The segmenter in a file that a training wrote, or in the training's folder.

    Raises:
        WeightsError: the weights cannot be read, or are not those of a segmenter.
    """
    path = weights_file(Path(weights))
    metadata = read_metadata(path)
    if metadata is None or metadata.task != "segmentation":
        raise WeightsError(f"{path} must be a segmenter's weights, and does not say that it is")
    head, channels = metadata.head.get("name"), metadata.head.get("channels")
    if not isinstance(head, str) or type(channels) is not int:
        raise WeightsError(f"{path} must say its head and channels, got {metadata.head!r:.80}")
    return TrainedSegmenter(
        path=path,
        metadata=metadata,
        head=head,
        channels=channels,
        tensors=read_arrays_by_own_keys(path),
    )


@dataclass(frozen=True, kw_only=True)
class _Opened:
    logits: Logits
    engine: str
    metadata: ModelMetadata
    path: str


def _open_file(row: EngineRow, path: Path, engine: str, device: str) -> _Opened:
    check_engine_of_file(row, path, engine)
    opened, metadata = open_exported(row, path, device=device)
    if metadata.task != "segmentation":
        raise WeightsError(f"{path} must be a segmenter, it is for {metadata.task}")
    return _Opened(logits=opened.logits, engine=opened.name, metadata=metadata, path=str(path))


def _open_weights(segmenter: TrainedSegmenter, engine: str, device: str) -> _Opened:
    able = segmenter.head in FOLDED_HEADS
    if engine == "auto":
        row = fastest_engine(device) if able else find_engine("torch")
    else:
        row = find_engine(engine)
    if row.name == "torch":
        logits, name = segmenter.torch_logits(device), row.name
    elif row.format is None or not able:
        raise InputError(
            f"a segmenter with head {segmenter.head} runs in engine "
            f"{'onnxruntime, openvino or torch' if able else 'torch'}, got {engine!r}"
        )
    else:
        network = segmenter.fold(row.form_on(device))
        opened = row.load_module().load(network, size=None, device=device)
        logits, name = opened.logits, opened.name
    return _Opened(
        logits=logits, engine=name, metadata=segmenter.metadata, path=str(segmenter.path)
    )
