"""Methods by name. ``@register`` fills the table; ``create`` builds a method from a name and its hyperparameters."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from variants.core.interface import Variant

V = TypeVar("V", bound=Variant)
_METHODS: dict[str, type[Variant]] = {}
_FAMILIES: dict[str, Callable[[str], type[Variant]]] = {}


class UnknownMethod(ValueError):
    """No method of that name."""


class UnknownHyperparameter(ValueError):
    """The method has no such field, or not with such a value."""


def register(name: str) -> Callable[[type[V]], type[V]]:
    """Makes a variant known under ``name``.

    Raises:
        ValueError: the name is taken by another class.
    """

    def add(cls: type[V]) -> type[V]:
        taken = _METHODS.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"the method name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
        cls.name = name
        _METHODS[name] = cls
        return cls

    return add


def register_family(prefix: str, resolve: Callable[[str], type[Variant]]) -> None:
    """Makes every name ``prefix:REST`` mean the class ``resolve(REST)``, which raises where there is none."""
    _FAMILIES[prefix] = resolve


def names() -> list[str]:
    """All registered names, sorted."""
    return sorted(_METHODS)


def method(name: str) -> type[Variant]:
    """The class registered under ``name``.

    Raises:
        UnknownMethod: with the nearest names.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in _FAMILIES:
        return _FAMILIES[prefix](rest)
    if name not in _METHODS:
        raise UnknownMethod(f"unknown method {name!r}: {suggestion(name, names())}")
    return _METHODS[name]


def create(name: str, hyperparameters: dict[str, Any] | None = None) -> Variant:
    """An instance of the method called ``name``.

    Raises:
        UnknownMethod, UnknownHyperparameter.
    """
    cls = method(name)
    fields = [f.name for f in dataclasses.fields(cls)]
    hints = get_type_hints(cls)
    hyperparameters = hyperparameters or {}
    for key in hyperparameters:
        if key not in fields:
            raise UnknownHyperparameter(f"{name} has no hyperparameter {key!r}: {suggestion(key, fields)}")
        wanted = hints[key]
        if not accepts(hyperparameters[key], wanted):
            raise UnknownHyperparameter(f"{name}: {key} is {in_words(wanted)}, not {hyperparameters[key]!r}")
    try:
        return cls(**hyperparameters)
    except (TypeError, ValueError) as error:
        raise UnknownHyperparameter(f"{name}: {error}") from error


def accepts(value: Any, hint: Any) -> bool:
    """Whether a value from a file fits a field's type. A truth value is no number; a whole number is a float."""
    if get_origin(hint) in (Union, UnionType):
        return any(accepts(value, option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if not isinstance(hint, type) or hint is object:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def in_words(hint: Any) -> str:
    """A field's type as people say it."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(in_words(option) for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(hint, str(hint))


def suggestion(word: str, known: list[str]) -> str:
    """The end of a sentence which helps after a misspelt word."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return ("known: " + ", ".join(known)) if known else "it has none"
