"""A name and weights become a ready network."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from splitattn.architectures import ARCHITECTURES, Architecture, architecture
from splitattn.errors import InputError, WeightsError
from splitattn.nn.backbone import Backbone
from splitattn.nn.resnest import Dilation, ResNeSt
from splitattn.weights.catalogue import WeightsEntry, entries, named
from splitattn.weights.checkpoint import Checkpoint, check_fits, read_checkpoint
from splitattn.weights.hub import is_reference
from splitattn.weights.matching import HEAD, Widths, first_convolution
from splitattn.weights.resolve import ResolvedWeights, resolve

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
            folder with one, or an `hf-hub:` or `local-dir:` name; None initializes at random, also
            where the model's name has a tag.
        num_classes: width of the classifier; None takes that of the weights, or else 1000. Another
            width than that of the weights gets a new classifier, initialized at random.
        in_chans: channels of the input. Another number than that of the weights averages the first
            convolution's filters over the channels, so that a gray image, or one in which every
            channel is the same, gives the same features.
        output_stride, dilation, drop_path, drop_block, dropout: see `ResNeSt`.

    Raises:
        InputError: an argument is outside its range, or there is no such model.
        WeightsError: the weights cannot be had or do not fit the model.
    """
    name, shape, weights = _identified(model, weights)
    trained = None if weights is None else _read(resolve(name, weights).path, name)
    if num_classes is None:
        num_classes = (trained.widths.classes if trained else 0) or 1000
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
    if trained:
        _load(network, trained)
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
    # It may refuse, so it comes before weights are fetched, unless the model's own name says which:
    # then they are here, as they say what to build. They still reach it, in the same layers.
    backbone = Backbone(
        network, out_indices=out_indices, frozen_stages=frozen_stages, frozen_bn=frozen_bn
    )
    if weights is not None:
        _load(network, _read(resolve(name, weights).path, name))
    return backbone


def load_trained(resolved: ResolvedWeights, *, in_chans: int | None = 3) -> ResNeSt:
    """The network of `resolved` as it was trained, its own classifier included.

    Args:
        in_chans: see `create_model`; None takes that of the weights.

    Raises:
        WeightsError: the file is damaged, does not fit the model, or has no classifier.
    """
    trained = _read(resolved.path, resolved.model)
    widths = trained.widths
    if not widths.classes:
        raise WeightsError(
            f"{resolved.path} has no classifier and cannot label images: train one on it, or name "
            "other weights"
        )
    network = ResNeSt(
        architecture(resolved.model),
        num_classes=widths.classes,
        in_chans=widths.channels if in_chans is None else in_chans,
    )
    _load(network, trained)
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
        logger.warning("%s is initialized at random: weights=%r has those weights", name, tag)
    return name, architecture(name), weights


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """A checkpoint that fits its model, and for how many classes and channels it is."""

    checkpoint: Checkpoint
    widths: Widths


def _read(path: Path, model: str) -> _Trained:
    """The file's weights, which are the model's: any network of it that is built can take them."""
    checkpoint = read_checkpoint(path)
    with torch.device("meta"):
        network = ResNeSt(architecture(model))
    widths = check_fits(checkpoint, network.state_dict(), model=model)
    if left_out := checkpoint.surroundings_in_words:
        logger.warning("%s: %s are left out", path, left_out)
    return _Trained(checkpoint=checkpoint, widths=widths)


def _load(network: ResNeSt, trained: _Trained) -> None:
    """Load the weights; a classifier or stem of another width is replaced, with a warning."""
    checkpoint, widths = trained.checkpoint, trained.widths
    state, own = checkpoint.state_dict, network.state_dict()
    stem = first_convolution(own)
    loaded = {key: state[key] for key in own if key in state}
    if widths.classes != network.num_classes:
        loaded = {key: value for key, value in loaded.items() if key not in HEAD}
        if network.num_classes:
            logger.warning(
                "%s: the classifier is new, for %d classes, and untrained",
                checkpoint.path,
                network.num_classes,
            )
    in_chans = own[stem].shape[1]
    if widths.channels != in_chans:
        logger.warning(
            "%s: the first convolution is adapted from %d to %d channels",
            checkpoint.path,
            widths.channels,
            in_chans,
        )
        mean = state[stem].float().mean(1, keepdim=True)
        loaded[stem] = mean.expand_as(own[stem]) * (widths.channels / in_chans)
    network.load_state_dict(own | loaded)
