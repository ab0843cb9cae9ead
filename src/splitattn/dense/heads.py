"""Loads heads from a weights file."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splitattn.dense.trained import COUNTER
from splitattn.weights.checkpoint import check_numbers
from splitattn.weights.metadata import read_metadata

logger = logging.getLogger(__name__)


def settings_of_head(path: Path | None, head: str) -> Mapping[str, Any]:
    """What the weights at `path` say about their head; empty unless they have one called `head`."""
    metadata = None if path is None else read_metadata(path)
    return metadata.head if metadata and metadata.head.get("name") == head else {}


def load_head(
    name: str, own: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path
) -> bool:
    """Fill a head's tensors with those of a file, if it has a head.

    A head that does not fit is left as it is, with a warning.

    Args:
        name: what the head is called.
        own: its tensors, as in `state_dict`.
        found: those of the file, by the same keys.
        path: of the file.

    Returns:
        Whether it is loaded.

    Raises:
        WeightsError: the head that is loaded has numbers that no network can use.
    """
    if not found:
        return False
    needed = [key for key in own if not key.endswith(COUNTER)]
    odd = [key for key in needed if key not in found or found[key].shape != own[key].shape]
    if odd:
        logger.warning(
            "%s: the %s is new and untrained: its %s must be %s, got %s",
            path,
            name,
            odd[0],
            tuple(own[odd[0]].shape),
            tuple(found[odd[0]].shape) if odd[0] in found else "none",
        )
        return False
    check_numbers(found, path)
    with torch.no_grad():
        for key in own.keys() & found.keys():
            own[key].copy_(found[key])
    logger.warning("%s: the %s is loaded too", path, name)
    return True
