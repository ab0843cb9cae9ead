"""Checks the name of a distillation's teacher without PyTorch, whose import takes seconds."""

from splitattn.engines.table import file_engine
from splitattn.errors import InputError
from splitattn.libraries import require
from splitattn.training.recipes import Imitation

TIMM = "timm:"


def check_teacher(name: str | None, imitation: Imitation) -> str:
    """The name of a teacher that can be opened, as far as its name tells.

    Raises:
        InputError: no teacher is named, it needs timm, which is not installed, or it is an exported
            file, which has no classifier of its own to reuse.
    """
    if not name:
        raise InputError(
            "distillation needs a teacher, got none; add --set teacher=WEIGHTS, an exported file "
            "or timm:NAME"
        )
    if name.startswith(TIMM):
        require("a teacher of timm", "timm")
    elif file_engine(name) and imitation == "features":
        raise InputError(
            f"imitation=features needs the teacher's classifier, which the exported file {name}"
            " does not give; pass the weights it was exported from, or use imitation=logits"
        )
    return name
