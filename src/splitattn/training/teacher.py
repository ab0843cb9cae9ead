"""The teacher of a distillation, and its classifier inside the student.

Shapes: B batch, C classes, D features of the student, F features of the teacher.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitattn.engines.engine import Engine, Images, Logits
from splitattn.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearClassifier:
    """A dense layer from pooled features (B, F) to logits (B, C).

    Attributes:
        weight: (C, F), float32.
        bias: (C,), float32.
    """

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """The teacher, in any engine.

    Attributes:
        name: for people; written into the student's file.
        classes: class names by output index.
        preprocessing: how images become its input.
        engine: outputs pooled features (B, F) if there is a `classifier`, otherwise logits (B, C).
        classifier: from features to logits, if the student reuses it; otherwise None.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    engine: Engine
    classifier: LinearClassifier | None = None

    def answer(self, crops: Tensor) -> Tensor:
        """The engine's output for crops (B, 3, H, W) with values from 0 to 255.

        The crops are resized to the teacher's size.
        """
        crops = resized(crops, self.preprocessing.size).round().clamp(0, 255)
        pixels = crops.to(torch.uint8).cpu().numpy()
        answer = self.engine.run(pixels, self.preprocessing)
        return torch.from_numpy(answer).to(crops.device)

    def for_logits(self) -> Engine:
        """An engine whose output is logits."""
        return Classified(self.engine, self.classifier) if self.classifier else self.engine


class Classified(Engine):
    """An engine with features as output, followed by a classifier."""

    def __init__(self, engine: Engine, classifier: LinearClassifier) -> None:
        super().__init__(engine.name, batch=engine.batch, size=engine.size)
        self._engine = engine
        self._weight = classifier.weight.numpy().T
        self._bias = classifier.bias.numpy()

    def _infer(self, images_BCHW: Images) -> Logits:  # noqa: N803
        logits: Logits = self._engine.logits(images_BCHW) @ self._weight + self._bias
        return logits.astype(np.float32, copy=False)


class ReusedClassifier(nn.Module):
    """A linear projection of the student's features, followed by the teacher's classifier.

    Only the projection learns. Source: SimKD (arXiv 2203.14001), whose projector is nonlinear and
    comes before pooling. A linear projection after pooling can be folded with the classifier into
    one dense layer.

    Args:
        in_features: D.
        classifier: the teacher's.
        seed: decides the projection's initial values.

    Input (B, D). Output in training: features (B, F) for the teacher's classifier, and its logits
    (B, C); in evaluation only the logits.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, in_features: int, classifier: LinearClassifier, *, seed: int) -> None:
        super().__init__()
        self.projection = nn.Linear(in_features, classifier.weight.shape[1])
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.projection.weight, std=in_features**-0.5, generator=generator)
        nn.init.zeros_(self.projection.bias)
        self.register_buffer("weight", classifier.weight.clone())
        self.register_buffer("bias", classifier.bias.clone())

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features: Tensor = self.projection(x)
        logits = F.linear(features, self.weight, self.bias)
        return (features, logits) if self.training else logits

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """Projection and classifier as one dense layer, (B, D) to (B, C)."""
        # In float64, since the product of two layers has rounding errors of both.
        weight, bias = self.weight.double(), self.bias.double()
        projection = self.projection
        fc = nn.Linear(projection.in_features, len(bias), device=weight.device)
        fc.weight.copy_(weight @ projection.weight.double())
        fc.bias.copy_(weight @ projection.bias.double() + bias)
        return fc


def resized(images: Tensor, size: int) -> Tensor:
    """Resize square images (B, 3, H, H) to (B, 3, size, size), antialiased."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)
