"""How equal two networks are, measured."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitattn.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What was measured on one batch.

    Attributes:
        batch_size, image_size: of the batch; images are square, in pixels.
        absolute: the largest difference of two outputs.
        relative: that, as a share of the largest output of the reference.
        same_labels: images whose largest output is the same one, as a share of the batch.
    """

    batch_size: int
    image_size: int
    absolute: float
    relative: float
    same_labels: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """A report that prints as a table.

    Attributes:
        differences: one for each batch.
    """

    differences: tuple[Difference, ...]

    @property
    def absolute(self) -> float:
        """The largest absolute difference of all batches."""
        return _largest([row.absolute for row in self.differences])

    @property
    def relative(self) -> float:
        """The largest relative difference of all batches."""
        return _largest([row.relative for row in self.differences])

    @property
    def same_labels(self) -> float:
        """The share of images, over all batches, that get the same label."""
        images = sum(row.batch_size for row in self.differences)
        return sum(row.same_labels * row.batch_size for row in self.differences) / images

    def __str__(self) -> str:
        header = "batch  pixels  absolute  relative  same labels"
        rows = (
            f"{row.batch_size:5d}  {row.image_size:6d}  {row.absolute:8.1e}  {row.relative:8.1e}"
            f"  {row.same_labels:11.0%}"
            for row in self.differences
        )
        return "\n".join((header, *rows))


def parity(
    reference: nn.Module,
    candidate: Callable[[Tensor], Tensor],
    *,
    batch_sizes: Sequence[int] = (1, 2, 5),
    image_sizes: Sequence[int] = (224, 161),
    seed: int = 0,
) -> Parity:
    """Measure how far the outputs of `candidate` are from those of `reference`, on random images.

    Args:
        reference: takes (B, in_chans, H, W) and gives (B, outputs); it is run in evaluation mode,
            on its own device and in its own precision.
        candidate: takes and gives the same; a network is run in evaluation mode too.
        batch_sizes: B of the batches.
        image_sizes: H and W of the batches; each goes with every batch size.
        seed: of the random images.

    Raises:
        InputError: there is nothing to measure, or the two give outputs of different shapes.
    """
    if not batch_sizes or not image_sizes or min(*batch_sizes, *image_sizes) < 1:
        raise InputError(
            "parity needs batch and image sizes of at least 1, "
            f"got {list(batch_sizes)} and {list(image_sizes)}"
        )
    generator = torch.Generator().manual_seed(seed)
    differences = []
    with torch.inference_mode(), evaluating(reference), evaluating(candidate):
        for image_size in image_sizes:
            for batch_size in batch_sizes:
                images = _images(reference, batch_size, image_size, generator)
                differences.append(difference(reference(images), candidate(images), image_size))
    return Parity(differences=tuple(differences))


def difference(expected: Tensor, got: Tensor, image_size: int) -> Difference:
    """Compare outputs (B, outputs) for one batch of images.

    Raises:
        InputError: the shapes differ.
    """
    if expected.shape != got.shape:
        raise InputError(
            f"parity needs outputs of one shape, got {tuple(expected.shape)} and {tuple(got.shape)}"
        )
    expected, got = expected.double().cpu(), got.double().cpu()
    absolute = (expected - got).abs().max()
    # With nothing to compare with, any difference is infinite.
    relative = absolute / expected.abs().max() if absolute else absolute
    return Difference(
        batch_size=len(expected),
        image_size=image_size,
        absolute=absolute.item(),
        relative=relative.item(),
        same_labels=(expected.argmax(1) == got.argmax(1)).double().mean().item(),
    )


def _largest(values: list[float]) -> float:
    """Not a number if one of them is none, unlike Python's max."""
    return torch.tensor(values, dtype=torch.float64).max().item()


def _images(model: nn.Module, batch: int, size: int, generator: torch.Generator) -> Tensor:
    weight = next(parameter for parameter in model.parameters() if parameter.ndim == 4)
    shape = (batch, weight.shape[1], size, size)
    # Noise about a color of its own: a network finds pure noise all alike.
    colors = torch.randn(*shape[:2], 1, 1, generator=generator)
    images = colors + torch.randn(shape, generator=generator)
    return images.to(weight.device, weight.dtype)


@contextmanager
def evaluating(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Evaluation mode, and after it each module's own mode again."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
