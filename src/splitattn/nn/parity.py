"""How equal two modules are, measured on random images."""

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
                expected, outputs = (
                    network(images).double().cpu().numpy() for network in (reference, candidate)
                )
                differences.append(difference(expected, outputs, image_size=image_size))
    return Parity(differences=tuple(differences))


def _images(model: nn.Module, batch: int, size: int, generator: torch.Generator) -> Tensor:
    weight = next(parameter for parameter in model.parameters() if parameter.ndim == 4)
    shape = (batch, weight.shape[1], size, size)
    # Noise around a color of its own: pure noise looks all alike to a network.
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
