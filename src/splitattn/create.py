"""Builds a network by its name and loads weights into it."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from splitattn.architectures import Architecture, Dilation, architecture
from splitattn.errors import InputError, WeightsError
from splitattn.nn.backbone import Backbone
from splitattn.nn.resnest import ResNeSt
from splitattn.weights.catalogue import named
from splitattn.weights.checkpoint import Checkpoint, check_fits, read_tensors
from splitattn.weights.hub import is_reference
from splitattn.weights.matching import HEAD, STAGES, Fit
from splitattn.weights.resolve import ResolvedWeights, resolve

logger = logging.getLogger(__name__)


def create_model(
    model: str | Architecture,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    new_classifier: bool = False,
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
            `local-dir:path`, whose weights are loaded; or an `Architecture` of your own, without
            weights.
        weights: a tag of the catalogue, the path of a checkpoint in any project's layout or of a
            folder with one, such as a training's output, or an `hf-hub:` or `local-dir:` name; None
            initializes at random, even if the model's name has a tag.
        num_classes: outputs of the classifier; None takes the number in the weights, or 1000
            without weights. If it differs from the weights, the classifier is initialized at
            random.
        new_classifier: initialize the classifier at random even if the weights have one of that
            size, because it is for other classes.
        in_chans: channels of the input. If it differs from the weights, the filters of the first
            convolution are averaged over the channels. An image whose channels are all the same
            then gives the same features as before.
        output_stride, dilation, drop_path, drop_block, dropout: see `ResNeSt`.

    Raises:
        InputError: an argument is outside its range, or there is no such model.
        WeightsError: the weights cannot be found or downloaded, or do not fit the model.
    """
    name, shape, weights = _identify(model, weights)
    # Build the network first: bad arguments then fail before any download.
    network = ResNeSt(
        shape,
        num_classes=1000 if num_classes is None else num_classes,
        in_chans=in_chans,
        output_stride=output_stride,
        dilation=dilation,
        drop_path=drop_path,
        drop_block=drop_block,
        dropout=dropout,
    )
    if weights is not None:
        trained = _read(resolve(name, weights).path, name)
        if num_classes is None and trained.fit.num_classes:
            network.reset_classifier(trained.fit.num_classes)
        _load(network, trained, new_classifier=new_classifier)
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
    """Build a network without its classifier, in training mode, and load weights.

    Args:
        model, weights, in_chans: see `create_model`; a classifier among the weights is left out,
            and stages that the backbone does not have may be missing.
        out_indices, frozen_stages, frozen_bn: see `Backbone`.
        output_stride, dilation, drop_path: see `ResNeSt`.

    Raises:
        InputError: an argument is outside its range, or there is no such model.
        WeightsError: the weights cannot be found or downloaded, or do not fit the model.
    """
    backbone, left_out = backbone_and_rest(
        model,
        weights=weights,
        out_indices=out_indices,
        in_chans=in_chans,
        output_stride=output_stride,
        dilation=dilation,
        frozen_stages=frozen_stages,
        frozen_bn=frozen_bn,
        drop_path=drop_path,
    )
    if left_out:
        logger.warning("%s", left_out)
    return backbone


def backbone_and_rest(
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
) -> tuple[Backbone, str]:
    """Build a backbone as `create_backbone` does, for a larger network that may take the rest.

    Returns:
        The backbone, and a warning for the case that the weights' other tensors are not loaded
        either; empty if there are none.
    """
    name, shape, weights = _identify(model, weights)
    network = ResNeSt(
        shape,
        num_classes=0,
        in_chans=in_chans,
        output_stride=output_stride,
        dilation=dilation,
        drop_path=drop_path,
    )
    # Build the backbone first: bad arguments then fail before any download. It shares its layers
    # with `network`, so it gets the weights too.
    backbone = Backbone(
        network, out_indices=out_indices, frozen_stages=frozen_stages, frozen_bn=frozen_bn
    )
    if weights is None:
        return backbone, ""
    stages = len([*backbone.stages()])
    trained = _read_fitting(resolve(name, weights).path, name, stages=stages)
    _load(network, trained)
    return backbone, trained.left_out


def load_trained(resolved: ResolvedWeights, *, in_chans: int | None = 3) -> ResNeSt:
    """Build the network of `resolved` as it was trained, with its own classifier.

    Args:
        in_chans: see `create_model`; None takes the number in the weights.

    Raises:
        WeightsError: the file is damaged, does not fit the model, or has no classifier.
    """
    trained = _read(resolved.path, resolved.model)
    fit = trained.fit
    if not fit.num_classes:
        raise WeightsError(
            f"{resolved.path} has no classifier and cannot label images: train one on it, or name "
            "other weights"
        )
    network = ResNeSt(
        architecture(resolved.model),
        num_classes=fit.num_classes,
        in_chans=fit.in_chans if in_chans is None else in_chans,
    )
    _load(network, trained)
    return network


def _identify(
    model: str | Architecture, weights: str | Path | None
) -> tuple[str, Architecture, str | Path | None]:
    """The model's own name, its architecture, and the weights to load, perhaps from its name."""
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
    """A checkpoint that fits its model, and its number of classes and channels."""

    checkpoint: Checkpoint[Tensor]
    fit: Fit

    @property
    def left_out(self) -> str:
        """A warning that tensors of a larger model are not loaded; empty if there are none."""
        words = self.checkpoint.ignored_in_words
        return words and f"{self.checkpoint.path}: loading the backbone without {words}"


def _read(path: Path, model: str) -> _Trained:
    """Read weights that fit the model, and warn of what is left out."""
    trained = _read_fitting(path, model)
    if trained.left_out:
        logger.warning("%s", trained.left_out)
    return trained


def _read_fitting(path: Path, model: str, *, stages: int = STAGES) -> _Trained:
    """Read weights that fit the model up to the last of its first `stages` stages."""
    checkpoint = read_tensors(path)
    return _Trained(checkpoint=checkpoint, fit=check_fits(checkpoint, model, stages=stages))


def _load(network: ResNeSt, trained: _Trained, *, new_classifier: bool = False) -> None:
    """Load the weights. A classifier or a stem of another size is replaced, with a warning."""
    checkpoint, fit = trained.checkpoint, trained.fit
    state, own = checkpoint.tensors, network.state_dict()
    stem = next(iter(own))
    loaded = {key: state[key] for key in own if key in state}
    if new_classifier or fit.num_classes != network.num_classes:
        loaded = {key: value for key, value in loaded.items() if key not in HEAD}
        if network.num_classes and not new_classifier:
            logger.warning(
                "%s: the classifier is new, for %d classes, and untrained",
                checkpoint.path.name,  # a whole path would be wrapped in the terminal
                network.num_classes,
            )
    in_chans = own[stem].shape[1]
    if fit.in_chans != in_chans:
        logger.warning(
            "%s: the first convolution is adapted from %d to %d channels",
            checkpoint.path.name,
            fit.in_chans,
            in_chans,
        )
        mean = state[stem].float().mean(1, keepdim=True)
        loaded[stem] = mean.expand_as(own[stem]) * (fit.in_chans / in_chans)
    network.load_state_dict(own | loaded)
