"""Bounds of hyperparameters, written into their annotations: ``rank: Count = 8``.

``Variant`` checks them whenever a method is made. What joins two fields stays code in ``__post_init__``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Must:
    """What a value must be: in words, which end the sentence "rank is ...", and as a condition."""

    words: str
    holds: Callable[[Any], bool]


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole_from(least: int, why: str = "") -> Must:
    return Must(f"a whole number from {least}{why}", lambda n: is_whole(n) and n >= least)


def whole_between(least: int, most: int, why: str = "") -> Must:
    return Must(f"a whole number from {least} to {most}{why}", lambda n: is_whole(n) and least <= n <= most)


def positive(why: str = "") -> Must:
    return Must(f"a positive number{why}", lambda x: is_number(x) and x > 0)


def number_from(least: float, why: str = "") -> Must:
    return Must(f"a number from {least}{why}", lambda x: is_number(x) and x >= least)


# Of a series for the inverse in a Cayley map; more change nothing that double precision shows below a norm of 1/2.
Terms = Annotated[int, whole_between(4, 64, " (a shorter series is no rotation)")]
Count = Annotated[int, whole_from(1)]
Whole = Annotated[int, whole_from(0)]
Positive = Annotated[float, positive()]
NotNegative = Annotated[float, number_from(0)]
Nonzero = Annotated[float, Must("a number other than 0", lambda x: is_number(x) and x != 0)]
Share = Annotated[float, Must("a share from 0 to 1", lambda x: is_number(x) and 0 <= x <= 1)]
Fraction = Annotated[float, Must("a number between 0 and 1", lambda x: is_number(x) and 0 < x < 1)]


def check_bounds(values: Any) -> None:
    """Holds every field of a dataclass against the bounds in its annotation; a field ``X | None`` may be None.

    Raises:
        ValueError: with the first field that is not what it must be.
    """
    cls: type = type(values)
    for name, (bounds, optional) in _bounds(cls).items():
        value = getattr(values, name)
        for must in bounds:
            if not (must.holds(value) or (optional and value is None)):
                raise ValueError(f"{name} is {must.words}, not {value!r}")


@functools.cache
def _bounds(cls: type) -> Mapping[str, tuple[list[Must], bool]]:
    """Per field: its bounds, and whether it may be None."""
    found = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        bounds = [part for option in options for part in getattr(option, "__metadata__", ()) if isinstance(part, Must)]
        if bounds:
            found[name] = bounds, type(None) in options
    return found
