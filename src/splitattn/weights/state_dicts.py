"""Finds the network in a file's content: under wrappers, behind prefixes, beside its EMA."""

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from splitattn.errors import WeightsError
from splitattn.weights.layouts import KeyMapping, count_known, is_average, networks
from splitattn.weights.matching import fitting_models
from splitattn.weights.pickles import Pickle
from splitattn.weights.unpickler import stored_tensor

# Names under which training scripts store the state dict, best first: EMA before other weights.
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "params_ema")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "params")
# mmengine's name for the weights without EMA. Other projects use this name for the EMA; only
# mmengine's files also have "meta".
_BEFORE_AVERAGING, _MMENGINE = "ema_state_dict", "meta"
_DEEPEST_WRAPPER = 4
# DataParallel puts `module.` before every key. torch.compile, FSDP and activation checkpointing add
# a prefix to the keys of each module that they wrap.
_WRAPPED = r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
_PREFIXES = re.compile(rf"^(?:module\.|{_WRAPPED})+|(?<=\.){_WRAPPED}")
# Counters among the weights: of torch's AveragedModel, and of thop in each module.
_COUNTERS = frozenset({"n_averaged", "total_ops", "total_params"})
# Types that no layer can load.
_COMPLEX = frozenset({"complex64", "complex128"})


def find_state_dict(pickled: Pickle, path: Path, part: str | None) -> dict[str, Any]:
    """The tensors of the network in a pickle, by its own keys, without wrappers and prefixes.

    Args:
        pickled: what the file holds.
        path: of the file, for messages.
        part: which of several networks, as in `checkpoint.read_tensors`.

    Raises:
        WeightsError: there are no weights, there are several networks, or there is no such part.
    """
    places = {} if part is None else _places(pickled.content, part)
    parts = {place: _unwrap(content, path, 0) for place, content in places.items()}
    if len(parts := {place: tensors for place, tensors in parts.items() if tensors}) > 1:
        raise _several(path, list(parts))
    for tensors in parts.values():
        return bare_state_dict(tensors, path, None)
    tensors = _unwrap(pickled.content, path, 0)
    if not tensors:
        raise _no_weights(path, pickled.unknown)
    return bare_state_dict(tensors, path, part)


def bare_state_dict(tensors: dict[str, Any], path: Path, part: str | None) -> dict[str, Any]:
    """A state dict without settings and the prefixes of `_PREFIXES`: see `find_state_dict`."""
    tensors = _without_settings(tensors)
    if not tensors:
        raise _no_weights(path)
    bare = {_PREFIXES.sub("", key): tensor for key, tensor in tensors.items()}
    if len(bare) < len(tensors):
        raise WeightsError(
            f"{path} holds some weights both with and without a prefix such as module.: "
            "save one model's state_dict"
        )
    return bare if part is None else _below(bare, part, path)


def _no_weights(path: Path, unknown: Sequence[str] = ()) -> WeightsError:
    message = (
        f"{path} holds no weights: it must be a state_dict, on its own or under a name such as "
        "state_dict or model"
    )
    if unknown:
        names = ", ".join(name[:80] for name in unknown[:3])
        message += (
            f"; it has objects ({names}), which are not read: write model.state_dict() with "
            "torch.save"
        )
    return WeightsError(message)


def _places(content: Any, part: str, before: str = "", depth: int = 0) -> dict[str, Any]:
    """The dictionaries named `part` in `content`, at any depth, by their full names.

    A full name joins the names of all enclosing dictionaries: `nets.student`. `part` may be one.
    """
    if not isinstance(content, Mapping) or depth > _DEEPEST_WRAPPER:
        return {}
    found: dict[str, Any] = {}
    for name, value in content.items():
        whole = f"{before}{name}"
        if isinstance(value, Mapping) and f".{whole}".endswith(f".{part}"):
            found[whole] = value
        else:
            found |= _places(value, part, f"{whole}.", depth + 1)
    return found


def _below(tensors: dict[str, Any], part: str, path: Path) -> dict[str, Any]:
    """The tensors whose keys begin with the prefix `part`, which is removed."""
    prefix = f"{part.removesuffix('.')}."
    found = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
    if not found:
        raise WeightsError(
            f"{path} has no network called {part!r:.80}: no dictionary has this name, and no key "
            "begins with it"
        )
    return found


def _unwrap(content: Any, path: Path, depth: int) -> dict[str, Any]:
    """The innermost state dict, or an empty one if there is none.

    A wrapper without weights is skipped: "ema" may hold the settings of an EMA. Under names that
    are not listed above, a state dict must have keys of a ResNeSt.
    """
    if not isinstance(content, Mapping) or depth > _DEEPEST_WRAPPER:
        return {}
    averages: list[Any] = []
    others: list[Any] = []
    for name in content:
        average = isinstance(name, str) and is_average(name)
        if not (name == _BEFORE_AVERAGING and _MMENGINE in content):
            (averages if average else others).append(name)
    if count_known(weights := _first(content, _AVERAGES, path, depth)):
        return weights
    if averages and (weights := _named(content, averages, path, depth)):
        if len(beside := _networks(content, others, path, depth)) > 1:  # an EMA of either
            raise _several(path, [*beside, *averages])
        return weights
    if weights := _first(content, _WRAPPERS, path, depth):
        return weights
    weights = _without_settings(content)
    if all(isinstance(key, str) and _is_plain(value) for key, value in weights.items()):
        return weights
    return _named(content, others, path, depth)


def _first(
    content: Mapping[Any, Any], names: Sequence[str], path: Path, depth: int
) -> dict[str, Any]:
    """The first state dict that `content` has under one of `names`, or an empty dictionary."""
    found = (_unwrap(content.get(name), path, depth + 1) for name in names)
    return next(filter(None, found), {})


def _named(content: Mapping[Any, Any], names: list[Any], path: Path, depth: int) -> dict[str, Any]:
    """The only network that `content` has under one of `names`, or an empty dictionary."""
    found = _networks(content, names, path, depth)
    if len(found) > 1:
        raise _several(path, list(found))
    return next(iter(found.values()), {})


def _networks(
    content: Mapping[Any, Any], names: list[Any], path: Path, depth: int
) -> dict[Any, dict[str, Any]]:
    """The networks that `content` has under `names`; of several, only those that fit here."""
    found = {name: _unwrap(content[name], path, depth + 1) for name in names}
    found = {name: weights for name, weights in found.items() if count_known(weights)}
    if len(found) > 1:
        fitting = {name: weights for name, weights in found.items() if _fits(weights)}
        found = fitting or found
    return found


def _fits(weights: Mapping[str, Any]) -> bool:
    """Whether keys and shapes of a state dict fit a network here, and not only its keys."""
    return any(_models(weights, mapping) for mapping in networks(weights))


def _models(weights: Mapping[str, Any], mapping: KeyMapping) -> list[str]:
    """The models that a network in a state dict fits, which may be without its last stages."""
    return fitting_models(_shapes(weights, mapping), stages=0)


def _shapes(weights: Mapping[str, Any], mapping: KeyMapping) -> dict[str, tuple[int, ...]]:
    return {
        official: tuple((stored_tensor(value) or value).shape)
        for key, value in weights.items()
        if (official := mapping.official(key)) is not None
    }


def find_network(weights: Mapping[str, Any], path: Path) -> KeyMapping:
    """The key mapping of the network in a file.

    If the file has a network and its EMA, it is the EMA's. If it also has a network of another
    family, such as a teacher, that one is ignored.

    Raises:
        WeightsError: there are several networks.
    """
    found = networks(weights)
    if len(found) > 1:
        found = [each for each in found if _models(weights, each)] or found
    averages = [mapping for mapping in found if is_average(mapping.prefix)]
    if len(averages) == 1 and len(found) == 2:
        return averages[0]
    if len(found) > 1:
        raise _several(path, [mapping.prefix for mapping in found])
    return found[0]


def _several(path: Path, names: Sequence[Any]) -> WeightsError:
    shown = [str(name).removesuffix(".")[:80] for name in names]
    listed = ", ".join(name or "without a prefix" for name in shown[:3])
    part = next(filter(None, shown))
    return WeightsError(
        f"{path} holds several networks ({listed}): write one of them to a file of its own, as in "
        f"splitattn weights convert SRC one.safetensors --to official --part {part}"
    )


def _without_settings(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """Remove counters and, if keys have dots, an EMA's `decay`."""
    layered = any("." in str(key) for key in content)

    def is_setting(key: str, value: object) -> bool:
        shape = getattr(stored_tensor(value) or value, "shape", None)
        lone = isinstance(shape, tuple) and prod(shape) == 1
        return key.rpartition(".")[2] in _COUNTERS or (layered and "." not in key and lone)

    return {key: value for key, value in content.items() if not is_setting(str(key), value)}


def _is_plain(value: object) -> bool:
    """Whether a value of a pickle is a tensor that a layer can load: real, dense and complete."""
    stored = stored_tensor(value)
    # A tensor with stride 0 can have any size; a copy of it would fill the memory.
    return stored is not None and stored.dtype not in _COMPLEX and not stored.is_stretched
