"""Checks the types of a call's arguments by the annotations of the function."""

import inspect
from collections.abc import Callable
from functools import cache, wraps
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import numpy as np

from splitattn.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

# For each type: the types that are taken for it, and its words.
_TYPES: dict[object, tuple[tuple[type, ...], str]] = {
    bool: ((bool, np.bool_), "True or False"),
    int: ((Integral,), "a whole number"),
    float: ((Real,), "a number"),
    str: ((str,), "a name"),
    Path: ((PathLike,), "a path"),
}


def checked(*own: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function raise `InputError` at the call if an argument is not of its annotated type.

    Numbers of NumPy are numbers, and True is not one. `Any`, and names in quotes, allow
    everything.

    Args:
        own: parameters that the function checks by itself, with better advice.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            parameters = _parameters(function)
            for name, value in (dict(zip(parameters, args, strict=False)) | kwargs).items():
                if name in parameters and name not in own:
                    check_type(name, value, parameters[name])
            return function(*args, **kwargs)

        return call

    return decorate


@cache
def _parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each parameter; Any for one without."""
    found = inspect.signature(function).parameters.values()
    return {each.name: Any if each.annotation is each.empty else each.annotation for each in found}


def check_type(what: str, value: object, annotation: Any) -> None:
    """Raise `InputError` unless `value` is of the type that `annotation` stands for."""
    union = get_origin(annotation) in (Union, UnionType)
    members = get_args(annotation) if union else (annotation,)
    if any(_is(value, each) for each in members):
        return
    words = [_words(each) for each in members if each not in (None, NoneType)]
    raise InputError(f"{what} must be {' or '.join(words)}, got {value!r:.60}")


def _is(value: object, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind in _TYPES:
        accepted, _ = _TYPES[kind]
        return isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    plain = origin or kind
    return plain is Any or not isinstance(plain, type) or isinstance(value, plain)


def _words(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if kind in _TYPES:
        return _TYPES[kind][1]
    if origin is Callable or kind is Callable:
        return "a function"
    return "a list" if origin else str(kind.__name__)
