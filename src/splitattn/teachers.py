"""Opens the teacher of a distillation by its name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splitattn.architectures import split_name
from splitattn.engines.pytorch import TorchEngine, choose_device
from splitattn.engines.table import file_engine
from splitattn.errors import InputError, WeightsError, nearest, one_line
from splitattn.files import exists
from splitattn.libraries import torchvision_imported
from splitattn.opening import open_network, open_weights
from splitattn.preprocessing import Preprocessing
from splitattn.training.recipes import Imitation
from splitattn.training.teacher import LinearClassifier, Teacher
from splitattn.training.teacher_name import TIMM, check_teacher
from splitattn.weights.hub import Repository, fetch_repository, is_reference
from splitattn.weights.in_folder import WEIGHTS_NAMES
from splitattn.weights.matching import HEAD
from splitattn.weights.metadata import Activation
from splitattn.weights.timm_config import classes_of, preprocessing_of

# How far a timm model's logits may be from those of its features and its detached classifier.
_TOLERANCE = 1e-3
# More than the file of any timm model has.
_MOST_TIMM_BYTES = 1 << 36


def open_teacher(
    name: str | None, *, imitation: Imitation = "logits", device: str = "auto"
) -> Teacher:
    """Open a network as a teacher.

    Args:
        name: a model, `MODEL:TAG`, weights as `--weights` takes them, a file that `export` wrote,
            or `timm:NAME` for a model of timm with its pretrained weights.
        imitation: "features" makes the engine give pooled features, and keeps the classifier.
        device: "auto" or a device by name.

    Raises:
        InputError: no teacher is named, it cannot be had, or it has no classifier of its own to
            reuse.
        WeightsError: its weights cannot be found, verified or matched.
    """
    name = check_teacher(name, imitation)
    if name.startswith(TIMM):
        return _timm_teacher(name, imitation == "features", choose_device(device))
    if file_engine(name):
        opened = open_network(weights=name, device=device)
        _check_activation(name, opened.metadata.activation)
        return Teacher(
            name=Path(name).name,
            classes=opened.classes,
            preprocessing=opened.preprocessing,
            engine=opened.engine,
        )
    return _own_teacher(name, imitation, device)


def _own_teacher(name: str, imitation: Imitation, device: str) -> Teacher:
    trained = open_weights(name) if _is_model(name) else open_weights(weights=name)
    _check_activation(name, trained.metadata.activation)
    weights = trained.weights if not exists(trained.weights) else Path(name).name
    classifier = None
    if imitation == "features":
        weight, bias = (torch.from_numpy(trained.tensors[key]).float() for key in HEAD)
        classifier = LinearClassifier(weight=weight, bias=bias)
        body = {key: value for key, value in trained.tensors.items() if key not in HEAD}
        trained = replace(trained, tensors=body)
    return Teacher(
        name=f"{trained.metadata.model} ({weights})",
        classes=trained.metadata.classes,
        preprocessing=trained.metadata.preprocessing,
        engine=trained.load(device=device),
        classifier=classifier,
    )


def _check_activation(name: str, activation: Activation) -> None:
    if activation != "softmax":
        raise InputError(
            f"a teacher must give each image one label, got {name}, which gives several: train on "
            "the labels themselves"
        )


def _is_model(name: str) -> bool:
    if exists(name):
        return False
    try:
        split_name(name)
    except InputError:
        return False
    return True


def _timm_teacher(name: str, reuse: bool, device: torch.device) -> Teacher:
    with torchvision_imported(f"teacher {name}"):
        import timm

    own_name = name.removeprefix(TIMM)
    try:
        model = _with_weights(timm, own_name).eval()
    except WeightsError:
        raise
    except Exception as error:  # unknown names, no weights, no network, damaged files
        known = timm.list_models(pretrained=True)
        # A name that exists has failed for another reason, such as no network.
        exact = own_name in known or own_name in timm.list_models()
        untagged = dict.fromkeys(each.partition(".")[0] for each in known)
        hint = "" if exact else nearest(own_name, [*untagged, *known])
        raise InputError(
            f"teacher {name} cannot be had from timm: {one_line(str(error))[:200]}{hint}"
        ) from error
    classes, preprocessing = _described(name, model)
    classifier = _detached_classifier(name, model, preprocessing.size) if reuse else None
    return Teacher(
        name=name,
        classes=classes,
        preprocessing=preprocessing,
        engine=TorchEngine(model, device, name=f"timm {timm.__version__} in torch"),
        classifier=classifier,
    )


def _with_weights(timm: Any, name: str) -> Any:
    """A model of timm with its pretrained weights.

    timm would try for half a minute to reach a hub that cannot be reached, even where the cache
    has the weights, and then once more. So they are fetched here, as for `hf-hub:NAME`.

    Raises:
        WeightsError: the hub has the weights, but they cannot be downloaded.
    """
    if is_reference(name) and not name.startswith("local-dir:"):
        return timm.create_model(f"local-dir:{_fetched(name.partition(':')[2])}", pretrained=True)
    config = timm.get_pretrained_cfg(name)
    if not (config and config.hf_hub_id):
        return timm.create_model(name, pretrained=True)
    folder = _fetched(config.hf_hub_id)
    file = next(path for each in WEIGHTS_NAMES if (path := folder / each).exists())
    # On the hub, all files are in PyTorch's layout; `custom_load` is for those at `url`.
    own = {"file": str(file), "custom_load": False}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=own)


def _fetched(repository: str) -> Path:
    """The folder with the files of a repository, which may hold any network."""
    found = Repository.parse(repository)
    return fetch_repository(found, check=lambda config: config, most=_MOST_TIMM_BYTES)


@torch.inference_mode()
def _detached_classifier(name: str, model: Any, size: int) -> LinearClassifier:
    """Take the classifier off a timm model, which gives pooled features from then on.

    Raises:
        InputError: it has none, or another than one dense layer behind the features.
    """
    images = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    logits, layer = model(images), model.get_classifier()
    model.reset_classifier(0)
    features = model(images)
    if (
        not isinstance(layer, nn.Linear)
        or features.shape != (1, layer.in_features)
        or not torch.allclose(layer(features), logits, rtol=_TOLERANCE, atol=_TOLERANCE)
    ):
        raise InputError(
            "imitation=features needs one dense layer behind the teacher's pooled features, "
            f"{name} has none; use imitation=logits"
        )
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
    return LinearClassifier(weight=layer.weight.detach().clone(), bias=bias.clone())


def _described(name: str, model: Any) -> tuple[tuple[str, ...], Preprocessing]:
    """Classes and preprocessing of a timm model, from its `pretrained_cfg`."""
    config = json.loads(json.dumps(model.pretrained_cfg))  # tuples become lists, as in a file
    try:
        classes = classes_of(config, config)
        preprocessing = preprocessing_of(config)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"teacher {name} cannot be used: its pretrained_cfg: {one_line(str(error))}"
        ) from error
    return classes or tuple(map(str, range(model.num_classes))), preprocessing
