"""Intervals and verdicts for few seeds.

Everything here is a pure function of plain numbers. A method's outcomes are a mapping ``{seed: score}``; methods are
paired by seed, because one seed gives all of them the same data order and the same head. Scores are compared so that
higher is better. With 3 to 10 seeds a percentile bootstrap covers far less than it says (75 % for 3 seeds on one task),
a t-interval covers what it says, so t-intervals are used throughout.

A score on few items moves in steps (one item of 500 is 0.2 points) and three seeds may give equal numbers by chance.
``resolution``, the size of a step, keeps such a spread from passing for certainty: the standard deviation is taken to
be at least that of rounding to the step, step / sqrt(12) a score (Sheppard 1898).

Sources: Student (1908) for the interval, Holm (1979) for the correction, Tango (1998) for paired proportions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import (
    ndtri,
    stdtr,
    stdtrit,
)  # scipy.stats gives the same numbers and takes half a second longer to import

Outcomes = Mapping[int, float]  # seed -> score
Verdict = Literal["better", "worse", "not separated"]

LEVEL = 0.95
ROUNDOFF = 1e-12  # spread below this share of the values is rounding of equal numbers


@dataclass(frozen=True)
class Estimate:
    """A mean of ``n`` values and the half-width of its interval; ``half`` is None where n < 2 leaves it unknown."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean paired difference over ``n`` >= 2 common seeds, with the two-sided p-value of no difference."""

    p: float

    @property
    def separated(self) -> bool:
        """Does the interval leave zero out? An interval without width separates nothing: its spread is not known."""
        return bool(self.half) and abs(self.mean) > (self.half or 0.0)


def mean_interval(values: Sequence[float], level: float = LEVEL, resolution: float = 0.0) -> Estimate:
    """The mean with its t-interval: mean +- t(n - 1) * s / sqrt(n).

    Args:
        values: n >= 1 numbers.
        level: coverage, 0 to 1.
        resolution: smallest step of the values, 0 if they have none.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("the mean of no values: give at least one")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    error = _standard_error(values, mean, resolution / math.sqrt(12))
    return Estimate(mean, float(stdtrit(n - 1, (1 + level) / 2)) * error, n)


def paired_difference(a: Outcomes, b: Outcomes, level: float = LEVEL, resolution: float = 0.0) -> Difference | None:
    """Mean of a - b over the seeds both have, with its t-interval; None with fewer than two common seeds.

    ``resolution`` is the smallest step of the scores. Equal differences of scores without one have an unknown spread:
    the interval has no width then, and p is 1.
    """
    seeds = sorted(a.keys() & b.keys())
    if len(seeds) < 2:
        return None
    differences = [a[seed] - b[seed] for seed in seeds]
    n, mean = len(seeds), math.fsum(differences) / len(seeds)
    scale = max(abs(value) for seed in seeds for value in (a[seed], b[seed]))
    error = _standard_error(differences, mean, resolution / math.sqrt(6))  # each of the two scores moves in steps
    if error <= ROUNDOFF * scale:
        return Difference(mean, 0.0, n, 1.0)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * error
    return Difference(mean, half, n, float(2 * stdtr(n - 1, -abs(mean) / error)))


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


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p-values: the family-wise error stays below alpha whatever the dependence."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def verdict(difference: Difference | None, p: float | None = None, level: float = LEVEL) -> Verdict:
    """What the difference allows to say; ``p`` overrides the difference's own p-value (an adjusted one, say)."""
    if difference is None or (difference.p if p is None else p) >= 1 - level:
        return "not separated"
    return "better" if difference.mean > 0 else "worse"


def beats(a: Outcomes, b: Outcomes, level: float = LEVEL, resolution: float = 0.0) -> Verdict:
    """One comparison of a with b on its own, without a correction for others."""
    return verdict(paired_difference(a, b, level, resolution), level=level)


@dataclass(frozen=True)
class Comparison:
    """One method against the reference: the uncorrected difference, and the verdict corrected for the whole family."""

    difference: Difference | None
    verdict: Verdict


def compare_with(
    methods: Mapping[str, Outcomes], reference: str, level: float = LEVEL, resolution: float = 0.0
) -> dict[str, Comparison]:
    """Every other method against ``reference``, the verdicts Holm-corrected over those that can be compared at all."""
    others = {name: outcomes for name, outcomes in methods.items() if name != reference}
    known = methods.get(reference, {})
    differences = {name: paired_difference(o, known, level, resolution) for name, o in others.items()}
    adjusted = holm({name: d.p for name, d in differences.items() if d is not None})
    return {name: Comparison(d, verdict(d, adjusted.get(name), level)) for name, d in differences.items()}


def best_beyond_interval(methods: Mapping[str, Outcomes], level: float = LEVEL, resolution: float = 0.0) -> str | None:
    """The one method whose paired difference to every other one has an interval above zero, or None.

    No correction is needed: the claim holds only if all its comparisons do, so its error is at most that of one of them
    (intersection-union test, Berger 1982). A method that shares fewer than two seeds with the candidate leaves the
    question open, hence None.
    """
    if len(methods) < 2 or any(not outcomes for outcomes in methods.values()):
        return None
    best = max(methods, key=lambda name: mean_interval(list(methods[name].values())).mean)
    others = (paired_difference(methods[best], o, level, resolution) for name, o in methods.items() if name != best)
    return best if all(d is not None and d.separated and d.mean > 0 for d in others) else None


def _standard_error(values: Sequence[float], mean: float, least: float) -> float:
    """Of the mean; ``least`` is the smallest standard deviation that is believed."""
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return max(deviation, least) / math.sqrt(len(values))
