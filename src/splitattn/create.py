"""A name and weights become a ready network."""

import logging
from pathlib import Path

from torch import Tensor

from splitattn.architectures import ARCHITECTURES, Architecture, architecture
from splitattn.errors import InputError, WeightsError
from splitattn.nn.resnest import ResNeSt
from splitattn.weights.catalogue import WeightsEntry, entries
from splitattn.weights.checkpoint import read_checkpoint
from splitattn.weights.matching import check_match
from splitattn.weights.store import ResolvedWeights, resolve

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
    shape = model if isinstance(model, Architecture) else architecture(model)
    state: dict[str, Tensor] = {}
    origin = ""
    if weights is not None:
        if isinstance(model, Architecture):
            raise InputError("weights need a model's name, got an Architecture; load them yourself")
        path = resolve(model, weights).path
        state, origin = read_checkpoint(path).state_dict, str(path)
    if num_classes is None:
        num_classes = _classes(state, shape, origin) or 1000
    network = ResNeSt(
        shape,
        num_classes=num_classes,
        in_chans=in_chans,
        output_stride=output_stride,
        drop_path=drop_path,
        drop_block=drop_block,
        dropout=dropout,
    )
    if state:
        _load(network, state, model=str(model), origin=origin)
    return network


def load_trained(resolved: ResolvedWeights) -> ResNeSt:
    """The network of `resolved` as it was trained, its own classifier included.

    Raises:
        WeightsError: the file is damaged, does not fit the model, or has no classifier.
    """
    state = read_checkpoint(resolved.path).state_dict
    shape = architecture(resolved.model)
    num_classes = _classes(state, shape, str(resolved.path))
    if not num_classes:
        raise WeightsError(
            f"{resolved.path} has no classifier and cannot label images: train one on it, or name "
            "other weights"
        )
    network = ResNeSt(shape, num_classes=num_classes)
    _load(network, state, model=resolved.model, origin=str(resolved.path))
    return network


def _classes(state: dict[str, Tensor], shape: Architecture, origin: str) -> int:
    """How many classes the classifier in `state` has, 0 if there is none.

    A network is built for that many, so they must be there.

    Raises:
        WeightsError: its parts do not fit each other or the architecture.
    """
    if not {"fc.weight", "fc.bias"} <= state.keys():
        return 0
    features = shape.stage_channels[-1]
    bias, weight = (tuple(state[key].shape) for key in ("fc.bias", "fc.weight"))
    if len(bias) != 1 or weight != (*bias, features):
        raise WeightsError(
            f"{origin} does not fit: fc.weight has shape {weight} and fc.bias {bias}, instead of "
            f"(classes, {features}) and (classes,); get weights of this model"
        )
    return bias[0]


def _load(network: ResNeSt, state: dict[str, Tensor], *, model: str, origin: str) -> None:
    """Load what fits; a classifier or stem of another width is replaced, with a warning."""
    own = network.state_dict()
    stem = "conv1.0.weight" if network.architecture.deep_stem else "conv1.weight"
    adapted: set[str] = set()
    found_classes = state["fc.bias"].numel() if "fc.bias" in state else 0
    if found_classes != network.num_classes:
        adapted |= {"fc.weight", "fc.bias"}
        if network.num_classes:
            logger.warning(
                "%s: the classifier is new, for %d classes, and untrained",
                origin,
                network.num_classes,
            )
    found_chans = state[stem].shape[1] if stem in state and state[stem].ndim == 4 else 0
    in_chans = own[stem].shape[1]
    if found_chans not in (0, in_chans):
        adapted.add(stem)
        logger.warning(
            "%s: the first convolution is adapted from %d to %d channels",
            origin,
            found_chans,
            in_chans,
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
        mean = state[stem].float().mean(1, keepdim=True)
        loaded[stem] = mean.expand_as(own[stem]) * (found_chans / in_chans)
    network.load_state_dict(own | loaded)
