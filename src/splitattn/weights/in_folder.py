"""Finds the file of weights in a folder."""

import logging
import re
from functools import cache
from pathlib import Path

from splitattn.errors import WeightsError
from splitattn.files import exists, is_folder

logger = logging.getLogger(__name__)

# Names that `save_pretrained` and repositories on the hub use, best first.
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
# Those of a training that has not finished.
_UNFINISHED_NAMES = ("best.safetensors", "last.pt")
_NAMES = (*WEIGHTS_NAMES, *_UNFINISHED_NAMES)
# Suffixes of other trainers' files, and the name of a shard of one.
_SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".pth.tar", ".bin")
_SHARD = re.compile(r"-\d+-of-\d+\.")


def weights_file(path: Path) -> Path:
    """`path` itself, or if it is a folder, such as a training's output, its file of weights.

    Raises:
        WeightsError: the folder has no weights.
    """
    return best_in(path) if is_folder(path) else path


def best_in(folder: Path) -> Path:
    """The file of weights in a folder.

    Raises:
        WeightsError: there is no such folder, or it has no weights.
    """
    for name in _NAMES:
        if exists(folder / name):
            if name in _UNFINISHED_NAMES:
                _warn_of_unfinished(folder / name)
            return folder / name
    if not is_folder(folder):
        raise WeightsError(f"{folder} must be a folder with weights: there is no such folder")
    raise WeightsError(
        f"{folder} must be a folder with {' or '.join(_NAMES)}, and has none of them"
        f"{_advice(folder)}"
    )


@cache  # a command opens the same folder several times
def _warn_of_unfinished(path: Path) -> None:
    logger.warning(
        "%s has no %s, as if its training has not finished: %s is used",
        path.parent,
        WEIGHTS_NAMES[0],
        path.name,
    )


def _advice(folder: Path) -> str:
    """Advice for a folder whose weights have other names or several files."""
    found = sorted(
        path
        for pattern in ("*", "*/*")  # Lightning puts them into checkpoints/
        for path in folder.glob(pattern)
        if path.name.endswith(_SUFFIXES)
    )
    if not found:
        return ""
    if any(_SHARD.search(path.name) for path in found):
        return (
            f": its weights are in {len(found)} files, such as {found[0].name}; load them together "
            "and write one file"
        )
    known = [path for path in found if path.name in _NAMES]  # not a Trainer's training_args.bin
    return f": name a file in it, such as {(known or found)[-1]}"
