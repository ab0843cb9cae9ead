"""A name and weights become a ready network."""

import logging
from pathlib import Path

from torch import Tensor

from splitattn.architectures import ARCHITECTURES, Architecture, architecture
from splitattn.errors import InputError
from splitattn.nn.resnest import ResNeSt
from splitattn.weights.catalogue import WeightsEntry, entries
from splitattn.weights.checkpoint import read_checkpoint
from splitattn.weights.matching import check_match
from splitattn.weights.store import resolve

logger = logging.getLogger(__name__)


def list_models() -> list[str]:
    """Names of all models, in table order."""
    return list(ARCHITECTURES)


def list_weights(model: str | None = None) -> list[WeightsEntry]:
    """Catalogue entries of `model`, or of all models; the first of a model is its default.

    Raises:
        InputError: there is no such model.
    """
    if model is not None:
        architecture(model)
    return list(entries(model))


def create_model(
    model: str | Architecture,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    output_stride: int = 32,
    drop_path: float = 0.0,
    drop_block: float = 0.0,
    dropout: float | None = None,
) -> ResNeSt:
    """Build a network, in training mode, and load weights into it if any are named.

    Args:
        model: a name out of `list_models()`, or an architecture of your own, which has no weights.
        weights: a tag of the catalogue, or the path of a checkpoint; None initialises at random.
        num_classes: width of the classifier; None takes that of the weights, or else 1000. Another
            width than that of the weights gets a new classifier, initialised at random.
        in_chans: channels of the input. Another number than that of the weights averages the first
            convolution's filters over the channels, so that a grey image, or one in which every
            channel is the same, gives the same features.
        output_stride, drop_path, drop_block, dropout: see `ResNeSt`.

    Raises:
        InputError: an argument is outside its range, or there is no such model.
        WeightsError: the weights cannot be had or do not fit the model.
    """
    if weights is None:
        built, state = None, None
    elif isinstance(model, Architecture):
        raise InputError("weights need a model's name, got an Architecture; load them yourself")
    else:
        path = resolve(model, weights).path
        built, state = path, read_checkpoint(path).state_dict
    shape = model if isinstance(model, Architecture) else architecture(model)
    if num_classes is None:
        num_classes = len(state["fc.weight"]) if state and "fc.weight" in state else 1000
    network = ResNeSt(
        shape,
        num_classes=num_classes,
        in_chans=in_chans,
        output_stride=output_stride,
        drop_path=drop_path,
        drop_block=drop_block,
        dropout=dropout,
    )
    if state is not None:
        _load(network, state, model=str(model), origin=str(built))
    return network


def _load(network: ResNeSt, state: dict[str, Tensor], *, model: str, origin: str) -> None:
    own = network.state_dict()
    stem = "conv1.0.weight" if network.architecture.deep_stem else "conv1.weight"
    head = {"fc.weight", "fc.bias"}
    adapted: set[str] = set()
    if any(key in state and key in own and state[key].shape != own[key].shape for key in head) or (
        not network.num_classes
    ):
        adapted |= head
        logger.warning(
            "%s: the classifier is new, for %d classes, and untrained", origin, network.num_classes
        )
    if stem in state and state[stem].ndim == 4 and state[stem].shape[1] != own[stem].shape[1]:
        adapted.add(stem)
        logger.warning(
            "%s: the first convolution is adapted from %d to %d channels",
            origin,
            state[stem].shape[1],
            own[stem].shape[1],
        )
    check_match(
        {key: tuple(value.shape) for key, value in state.items()},
        {key: tuple(value.shape) for key, value in own.items()},
        model=model,
        origin=origin,
        adapted=adapted,
    )
    loaded = {key: state[key] for key in own if key in state and key not in adapted}
    if stem in adapted:
        channels = own[stem].shape[1]
        mean = state[stem].float().mean(1, keepdim=True)
        loaded[stem] = mean.expand_as(own[stem]) * (state[stem].shape[1] / channels)
    network.load_state_dict(own | loaded)
