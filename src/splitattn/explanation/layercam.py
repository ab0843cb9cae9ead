"""LayerCAM (doi 10.1109/TIP.2021.3089943): a finer map, of an earlier stage."""

import numpy as np

from splitattn.engines.engine import Array
from splitattn.explanation.found import Found
from splitattn.graph.folding import FoldedNetwork
from splitattn.graph.gradient import logit_gradient

MEANING = "activations times positive gradients, in logits"


def layercam(
    logits: Array, features: Array, network: FoldedNetwork, stage: int, index: int | None
) -> Found:
    """The map of a class.

    Args:
        logits: (classes,).
        features: what `stage` gives, (C, H, W).
        network: the network that has this stage.
        index: of the class; None is the most probable.
    """
    index = int(logits.argmax()) if index is None else index
    positive = np.maximum(logit_gradient(network, stage, features, index), 0)
    own = ((positive * features).sum(0) * features[0].size).astype(np.float32)
    return Found(method="layercam", map=own, index=index, logits=logits)
