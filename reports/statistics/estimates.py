"""Means and paired differences over few seeds, with their t-intervals.

Everything in this package is a pure function of plain numbers. A method's outcomes are a mapping ``{seed: score}``;
methods are paired by seed, because one seed gives all of them the same data order and the same head. Scores are
compared so that higher is better. With 3 to 10 seeds a percentile bootstrap covers far less than it says (75 % for 3
seeds on one task), a t-interval covers what it says.

A score on few items moves in steps (one item of 500 is 0.2 points) and three seeds may give equal numbers by chance.
``resolution``, the size of a step, keeps such a spread from passing for certainty: the standard deviation is taken to
be at least that of rounding to the step, step / sqrt(12) a score (Sheppard 1898).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit  # scipy.stats gives the same numbers and takes half a second longer to import

Outcomes = Mapping[int, float]  # seed -> score

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
    """A mean paired difference over ``n`` >= 2 common seeds.

    Args:
        p: two-sided p-value of no difference.
        error: standard error of the mean; 0 where the spread is not known.
    """

    p: float
    error: float

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
        return Difference(mean, 0.0, n, 1.0, 0.0)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * error
    return Difference(mean, half, n, float(2 * stdtr(n - 1, -abs(mean) / error)), error)


def mean_over_tasks(tasks: Mapping[str, Sequence[float]], level: float = LEVEL, resolution: float = 0.0) -> Estimate:
    """The mean of the tasks' means with a t-interval over the seeds; the tasks are fixed, not a sample of tasks.

    Args:
        tasks: task -> its scores, one a seed; tasks may differ in their number of seeds and in their spread.

    Returns:
        ``n`` is the number of all scores; ``half`` is None where some task has one score.

    Raises:
        ValueError: no tasks, or one without scores.

    Source: Welch (1947), Biometrika 34, 28-35, for the degrees of freedom.
    """
    if not tasks:
        raise ValueError("the mean over no tasks: give at least one")
    each = [mean_interval(scores) for scores in tasks.values()]
    mean, n = math.fsum(e.mean for e in each) / len(each), sum(e.n for e in each)
    if any(e.n < 2 for e in each):
        return Estimate(mean, None, n)
    least = resolution / math.sqrt(12)
    variances = [_standard_error(s, e.mean, least) ** 2 for s, e in zip(tasks.values(), each, strict=True)]
    total = math.fsum(variances)
    if total == 0:
        return Estimate(mean, 0.0, n)
    freedom = total**2 / math.fsum(v**2 / (e.n - 1) for v, e in zip(variances, each, strict=True))
    half = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(total) / len(each)
    return Estimate(mean, half, n)


def _standard_error(values: Sequence[float], mean: float, least: float) -> float:
    """Of the mean; ``least`` is the smallest standard deviation that is believed."""
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return max(deviation, least) / math.sqrt(len(values))
