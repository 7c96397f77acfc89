"""Two shares of the same items, with an interval that keeps its width where nothing changed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtri

from reports.statistics.estimates import LEVEL


@dataclass(frozen=True)
class Bounded:
    """An estimate whose interval need not be symmetric."""

    value: float
    low: float
    high: float


def paired_proportions(gained: int, lost: int, items: int, level: float = LEVEL) -> Bounded:
    """Difference of two shares of the same items, with Tango's score interval.

    It keeps its width where nothing changed: 0 of n items moved leaves +- z^2 / (n + z^2).

    Args:
        gained, lost: items right only the second time, only the first time.
        items: all items, at least gained + lost.

    Raises:
        ValueError: more items changed than there are, or there are none.

    Source: Tango (1998), Statistics in Medicine 17, 891-908, equations 13 to 16.
    """
    if items < 1 or min(gained, lost) < 0 or gained + lost > items:
        raise ValueError(f"{gained} gained and {lost} lost of {items} items: give counts that fit")
    share, z = (gained - lost) / items, float(ndtri((1 + level) / 2))
    return Bounded(
        share,
        _where_score_is(z, -1.0, share, gained, lost, items),
        _where_score_is(-z, share, 1.0, gained, lost, items),
    )


def _where_score_is(z: float, low: float, high: float, gained: int, lost: int, items: int) -> float:
    """The difference at which the falling score statistic takes the value z, by bisection to the last bit."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(middle, gained, lost, items) > z else (low, middle)
    return (low + high) / 2


def _score(difference: float, gained: int, lost: int, items: int) -> float:
    """Of the hypothesis that the shares differ by ``difference``; the share of lost items is its likeliest under it."""
    b = (2 * items - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    only_first = (math.sqrt(max(b * b - 8 * items * c, 0.0)) - b) / (4 * items)
    variance = items * (2 * only_first + difference * (1 - difference))
    distance = gained - lost - items * difference
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)
