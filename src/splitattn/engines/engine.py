"""The interface of an engine: a batch of images becomes logits.

Shapes: B batch, C channels, H and W rows and columns.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitattn.images.preprocess import Pixels, normalize
from splitattn.preprocessing import Preprocessing
from splitattn.weights.metadata import Activation, ModelMetadata

Array = NDArray[Any]
Images = NDArray[np.float32]
Logits = NDArray[np.float32]


class Engine(ABC):
    """A network that is ready to run. Threads may share it.

    Args:
        name: the engine, its version and its device, for people and reports.
        batch: the only batch size that the network takes; None for any. Batches of other sizes are
            cut into parts of this size, and the last part is padded.
        size: the only height and width of images, in pixels, that the network takes; None for any.

    Attributes:
        batches_at_once: how many full batches to compute at the same time for the best speed.
    """

    batches_at_once = 1

    def __init__(self, name: str, *, batch: int | None = None, size: int | None = None) -> None:
        self.name = name
        self.batch = batch
        self.size = size

    def logits(self, images_BCHW: Images) -> Logits:
        """Map normalized float32 images (B, C, H, W) to float32 logits (B, classes).

        The logits of an image do not depend on the rest of its batch.
        """
        return self._in_batches(self._infer, images_BCHW)

    def run(self, pixels_BCHW: Pixels, preprocessing: Preprocessing) -> Logits:
        """Map pixels (B, C, H, W), as `load_pixels` returns them, to logits (B, classes)."""
        return self.logits(normalize(pixels_BCHW, preprocessing))

    def outputs(self, images_BCHW: Images) -> tuple[Array, ...]:
        """All outputs of the network for normalized images (B, C, H, W) of a size that it takes.

        A detector's outputs are boxes (B, N, 4), scores (B, N, classes) and, for an exported file,
        the boxes that are kept (M, 3); see `write_detector`.
        """
        return (self._infer(images_BCHW),)

    @abstractmethod
    def _infer(self, images_BCHW: Images) -> Logits:
        """`logits` for a batch of a size that the network takes."""

    def _in_batches(self, infer: Callable[[Array], Logits], images: Array) -> Logits:
        if self.batch is None or len(images) in (0, self.batch):
            return infer(images)
        starts = range(0, len(images), self.batch)
        parts = [images[start : start + self.batch] for start in starts]
        missing = self.batch - len(parts[-1])
        parts[-1] = np.concatenate([parts[-1], np.repeat(parts[-1][-1:], missing, axis=0)])
        return np.concatenate([infer(part) for part in parts])[: len(images)]

    def fix_batches(self, batch_sizes: Sequence[int], preprocessing: Preprocessing) -> None:
        """Prepare for batches of these sizes now, and compile nothing later.

        For a server, whose requests must not wait for a compiler. Other sizes still work.
        """
        for batch_size in batch_sizes:
            self.warm_up(batch_size, preprocessing)

    def warm_up(self, batch_size: int, preprocessing: Preprocessing) -> None:
        """Run blank batches of this size, so that later ones do not wait for compilation."""
        size = preprocessing.size
        blank = np.zeros((batch_size, preprocessing.channels, size, size), np.uint8)
        for _ in range(2):  # some engines compile for a size only when it comes twice
            self.run(blank, preprocessing)


@dataclass(frozen=True, kw_only=True)
class FileSettings:
    """How a network is written to a file.

    Attributes:
        metadata: written into the file: model, classes, preprocessing.
        precision: "fp32", "fp16" or "int8".
        batch: the only batch size that the file takes; None for any.
        dynamic_size: accept images of any height and width.
        opset: version of the ONNX operators; None is the lowest that has them all.
        calibration: pixels (C, H, W), as `load_pixels` returns them, of the images that set the
            value ranges of int8.
    """

    metadata: ModelMetadata
    precision: str = "fp32"
    batch: int | None = None
    dynamic_size: bool = False
    opset: int | None = None
    calibration: Sequence[Pixels] = ()

    @property
    def size(self) -> int | None:
        """Height and width of the images, or None for any."""
        return None if self.dynamic_size else self.metadata.preprocessing.size

    def calibration_images(self) -> Sequence[Images]:
        """The calibration images (1, C, H, W); each is normalized when it is read."""
        return _Normalized(self.calibration, self.metadata.preprocessing)


class _Normalized(Sequence[Images]):
    def __init__(self, pixels: Sequence[Pixels], preprocessing: Preprocessing) -> None:
        self._pixels = pixels
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: Any) -> Any:
        return normalize(self._pixels[index][None], self._preprocessing)


def network_threads() -> int:
    """CPU threads that a network may use: OMP_NUM_THREADS, or 0 to let the engine choose.

    PyTorch reads this variable itself, and clusters set it for their jobs.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(threads) if threads.isdecimal() else 0


NOT_FINITE = "the network gives NaN or infinite numbers for it; verify the weights, or use fp32"


def finite(logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Which images have logits (B, classes) that are all finite numbers: (B,)."""
    out: NDArray[np.bool_] = np.isfinite(logits).all(1)
    return out


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Map logits (B, classes) to probabilities (B, classes) that add up to one."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: NDArray[Any] = powers / powers.sum(1, keepdims=True)
    return shares


def sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    """Map logits (B, classes) to probabilities (B, classes), each class on its own."""
    small = np.exp(-np.abs(logits))  # never overflows
    probabilities: NDArray[Any] = np.where(logits < 0, small, 1) / (1 + small)
    return probabilities


# The probability from which an image has a class, for networks with several labels per image.
THRESHOLD = 0.5

# How logits become probabilities, by the name in the metadata of a weights file.
ACTIVATIONS: Mapping[Activation, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
}
