"""A network's preprocessing as a transform for your own `DataLoader`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from splitattn.images.decode import ImageSource
from splitattn.images.preprocess import load_pixels, normalize
from splitattn.libraries import require
from splitattn.preprocessing import Preprocessing
from splitattn.weights.resolve import resolve

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Converts an image to the normalized tensor (C, size, size) that a network expects.

    Attributes:
        preprocessing: of the network.
    """

    preprocessing: Preprocessing

    def __call__(self, image: ImageSource) -> "Tensor":
        """Convert a Pillow image, path, array or encoded bytes to a float32 tensor (C, size, size).

        Raises:
            ImageError: the image cannot be used.
        """
        import torch

        pixels = load_pixels(image, self.preprocessing)
        return torch.from_numpy(normalize(pixels[None], self.preprocessing)[0])


def transform(model: str | None = None, weights: str | Path | None = None) -> Transform:
    """The evaluation transform of a network: pass it to `ImageFolder(..., transform=...)`.

    Args:
        model, weights: the network, see `Classifier`; weights are downloaded if needed, since they
            contain the preprocessing.

    Raises:
        InputError: there is no such model, or PyTorch is missing.
        WeightsError: the weights cannot be found or verified.
    """
    require("transform", "torch")
    return Transform(preprocessing=resolve(model, weights).preprocessing)
