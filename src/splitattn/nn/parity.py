"""Measures how much the outputs of two modules differ, on random images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from splitattn.differences import Parity, difference
from splitattn.errors import InputError


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
        reference: maps (B, in_chans, H, W) to (B, outputs); it runs in evaluation mode, on its own
            device and in its own precision.
        candidate: has the same inputs and outputs; a network runs in evaluation mode too.
        batch_sizes: batch sizes B to test.
        image_sizes: sides H = W of the images, in pixels; each is tested with every batch size.
        seed: of the random images.

    Raises:
        InputError: no sizes were given, or the outputs have different shapes.
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
                expected, outputs = (
                    network(images).double().cpu().numpy() for network in (reference, candidate)
                )
                differences.append(difference(expected, outputs, image_size=image_size))
    return Parity(differences=tuple(differences))


def _images(model: nn.Module, batch: int, size: int, generator: torch.Generator) -> Tensor:
    weight = next(parameter for parameter in model.parameters() if parameter.ndim == 4)
    shape = (batch, weight.shape[1], size, size)
    # A random color for each image, plus noise: images of pure noise give nearly equal outputs.
    colors = torch.randn(*shape[:2], 1, 1, generator=generator)
    images = colors + torch.randn(shape, generator=generator)
    return images.to(weight.device, weight.dtype)


@contextmanager
def evaluating(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Evaluation mode within the context; then each module returns to its own mode."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
