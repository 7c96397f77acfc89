"""How many more seeds an open question would take."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import chdtri, ndtr, stdtrit

from reports.statistics.estimates import LEVEL, Difference

POWER = 0.8
MOST = 1000  # seeds: what would take more is not forecast
NODES = 32  # at which the spread of the observed spread is integrated; the power is exact to 1e-3


def more_seeds(
    difference: Difference,
    margin: float,
    levels: tuple[float, float] = (LEVEL, LEVEL),
    power: float = POWER,
    most: int = MOST,
) -> int | None:
    """How many seeds to add until a verdict comes out with this power, if mean and spread stay as observed.

    The mean of three seeds is a rough guess of the true one, and so is the forecast.

    Args:
        margin: differences up to it count as equal.
        levels: of the test against zero and of the test of equivalence, after correction.
        most: largest total number of seeds that is considered.

    Returns:
        None: more than ``most`` seeds in total, or the spread is not known.
    """
    n, deviation = difference.n, difference.error * math.sqrt(difference.n)
    if deviation == 0 or n >= most:
        return None

    def enough(total: int) -> bool:
        return decision_power(total, difference.mean, deviation, margin, levels) >= power

    low, high = n, n + 1  # power rises with n: double until it is enough, then halve the gap
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high - n


def decision_power(
    seeds: int, mean: float, deviation: float, margin: float, levels: tuple[float, float] = (LEVEL, LEVEL)
) -> float:
    """The chance that the t-test finds a difference or the two one-sided tests find equivalence.

    With standard error e neither does where margin - t1 e < |observed mean| < t2 e. That has a normal probability for
    every e, which is averaged over the distribution of e.

    Args:
        seeds: at least 2.
        mean, deviation: of the paired differences, taken to be normal; deviation above 0.

    Source: the non-central t of Student's test and its bivariate form for equivalence, Owen (1965), Biometrika 52,
    437-446, both integrated over the chi distribution of the spread.
    """
    ratios, weights = _spreads(seeds - 1)
    two_sided, one_sided = (float(stdtrit(seeds - 1, share)) for share in ((1 + levels[0]) / 2, levels[1]))
    scale = deviation / math.sqrt(seeds)
    errors = scale * ratios
    lower = np.maximum(margin - one_sided * errors, 0.0)
    upper = np.maximum(two_sided * errors, lower)
    above = ndtr((upper - mean) / scale) - ndtr((lower - mean) / scale)
    below = ndtr((-lower - mean) / scale) - ndtr((-upper - mean) / scale)
    return float(1 - weights @ (above + below))


@lru_cache(maxsize=4096)
def _spreads(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Observed over true standard deviation at Gauss-Legendre nodes of its distribution function, and their weights."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return np.sqrt(chdtri(freedom, (1 - nodes) / 2) / freedom), weights / 2
