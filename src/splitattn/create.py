"""A name and weights become a ready network."""

import logging
from collections.abc import Iterable
from pathlib import Path

from splitattn.architectures import ARCHITECTURES, Architecture, architecture
from splitattn.errors import InputError, WeightsError
from splitattn.nn.backbone import Backbone
from splitattn.nn.resnest import Dilation, ResNeSt
from splitattn.weights.catalogue import WeightsEntry, entries, named
from splitattn.weights.checkpoint import Checkpoint, read_checkpoint
from splitattn.weights.hub import is_reference
from splitattn.weights.matching import check_layout, check_match
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
    return list(entries(model))


def create_model(
    model: str | Architecture,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    output_stride: int = 32,
    dilation: Dilation = "official",
    drop_path: float = 0.0,
    drop_block: float = 0.0,
    dropout: float | None = None,
) -> ResNeSt:
    """Build a network, in training mode, and load weights into it if any are named.

    Args:
        model: a name out of `list_models()`, or timm's name of the same network
            (`timm/resnest50d.in1k`); `hf-hub:owner/name`, `hf-hub:owner/name@revision` or
            `local-dir:path`, which names weights, so that these are loaded; or an architecture of
            your own, which has no weights.
        weights: a tag of the catalogue, the path of a checkpoint in any project's layout or of a
            folder with one, or an `hf-hub:` or `local-dir:` name; None initialises at random, also
            where the model's name has a tag.
        num_classes: width of the classifier; None takes that of the weights, or else 1000. Another
            width than that of the weights gets a new classifier, initialised at random.
        in_chans: channels of the input. Another number than that of the weights averages the first
            convolution's filters over the channels, so that a grey image, or one in which every
            channel is the same, gives the same features.
        output_stride, dilation, drop_path, drop_block, dropout: see `ResNeSt`.

    Raises:
        InputError: an argument is outside its range, or there is no such model.
        WeightsError: the weights cannot be had or do not fit the model.
    """
    name, shape, weights = _identified(model, weights)
    checkpoint = _read(name, weights)
    if num_classes is None:
        num_classes = (_classes(checkpoint, shape) if checkpoint else 0) or 1000
    network = ResNeSt(
        shape,
        num_classes=num_classes,
        in_chans=in_chans,
        output_stride=output_stride,
        dilation=dilation,
        drop_path=drop_path,
        drop_block=drop_block,
        dropout=dropout,
    )
    if checkpoint:
        _load(network, checkpoint, model=name)
    return network


def create_backbone(
    model: str | Architecture,
    *,
    weights: str | Path | None = None,
    out_indices: Iterable[int] = (1, 2, 3, 4),
    in_chans: int = 3,
    output_stride: int = 32,
    dilation: Dilation = "official",
    frozen_stages: int = 0,
    frozen_bn: bool = False,
    drop_path: float = 0.0,
) -> Backbone:
    """Build the part of a network that gives feature maps, in training mode, and load weights.

    Args:
        model, weights, in_chans: see `create_model`; a classifier among the weights is left out.
        out_indices, frozen_stages, frozen_bn: see `Backbone`.
        output_stride, dilation, drop_path: see `ResNeSt`.

    Raises:
        InputError: an argument is outside its range, or there is no such model.
        WeightsError: the weights cannot be had or do not fit the model.
    """
    name, shape, weights = _identified(model, weights)
    network = ResNeSt(
        shape,
        num_classes=0,
        in_chans=in_chans,
        output_stride=output_stride,
        dilation=dilation,
        drop_path=drop_path,
    )
    # Before weights are fetched, since it may refuse; they still reach it, in the same layers.
    backbone = Backbone(
        network, out_indices=out_indices, frozen_stages=frozen_stages, frozen_bn=frozen_bn
    )
    if checkpoint := _read(name, weights):
        _load(network, checkpoint, model=name)
    return backbone


def load_trained(resolved: ResolvedWeights) -> ResNeSt:
    """The network of `resolved` as it was trained, its own classifier included.

    Raises:
        WeightsError: the file is damaged, does not fit the model, or has no classifier.
    """
    checkpoint = read_checkpoint(resolved.path)
    shape = architecture(resolved.model)
    num_classes = _classes(checkpoint, shape)
    if not num_classes:
        raise WeightsError(
            f"{resolved.path} has no classifier and cannot label images: train one on it, or name "
            "other weights"
        )
    network = ResNeSt(shape, num_classes=num_classes)
    _load(network, checkpoint, model=resolved.model)
    return network


def _identified(
    model: str | Architecture, weights: str | Path | None
) -> tuple[str, Architecture, str | Path | None]:
    """Our own name of the model, its shape, and the weights to load, which a name may stand for."""
    if isinstance(model, Architecture):
        if weights is not None:
            raise InputError("weights need a model's name, got an Architecture; load them yourself")
        return str(model), model, None
    if is_reference(model):
        resolved = resolve(model, weights)
        return resolved.model, architecture(resolved.model), resolved.path
    name, tag = named(model)
    if tag and weights is None:
        logger.warning("%s is initialised at random: weights=%r has those weights", name, tag)
    return name, architecture(name), weights


def _read(model: str, weights: str | Path | None) -> Checkpoint | None:
    return None if weights is None else read_checkpoint(resolve(model, weights).path)


def _classes(checkpoint: Checkpoint, shape: Architecture) -> int:
    """How many classes the checkpoint's classifier has, 0 if there is none.

    A network is built for that many, so they must be there.

    Raises:
        WeightsError: its parts do not fit each other or the architecture.
    """
    state = checkpoint.state_dict
    if not {"fc.weight", "fc.bias"} <= state.keys():
        return 0
    features = shape.stage_channels[-1]
    bias, weight = (tuple(state[key].shape) for key in ("fc.bias", "fc.weight"))
    if len(bias) != 1 or weight != (*bias, features):
        raise WeightsError(
            f"{checkpoint.path} does not fit: fc.weight has shape {weight} and fc.bias {bias}, "
            f"instead of (classes, {features}) and (classes,); get weights of this model"
        )
    return bias[0]


def _load(network: ResNeSt, checkpoint: Checkpoint, *, model: str) -> None:
    """Load what fits; a classifier or stem of another width is replaced, with a warning."""
    origin = str(checkpoint.path)
    check_layout(checkpoint.spelling, network.architecture, model=model, origin=origin)
    state, own = checkpoint.state_dict, network.state_dict()
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
        spelling=checkpoint.spelling,
        strangers=checkpoint.strangers,
    )
    loaded = {key: state[key] for key in own if key in state and key not in adapted}
    if stem in adapted:
        mean = state[stem].float().mean(1, keepdim=True)
        loaded[stem] = mean.expand_as(own[stem]) * (found_chans / in_chans)
    network.load_state_dict(own | loaded)
