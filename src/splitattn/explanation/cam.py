"""Class activation mapping (arXiv 1512.04150): exact after the last stage."""

from splitattn.engines.engine import Array
from splitattn.explanation.found import Found, Map

MEANING = "what each place adds to the logit; their mean plus a bias is the logit"


def cam(logits: Array, class_maps: Array, index: int | None) -> Found:
    """The map of a class.

    Args:
        logits: (classes,).
        class_maps: (classes, H, W).
        index: of the class; None is the most probable.
    """
    index = int(logits.argmax()) if index is None else index
    own: Map = class_maps[index]
    return Found(
        method="cam", map=own, index=index, logits=logits, bias=float(logits[index] - own.mean())
    )
