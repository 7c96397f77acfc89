"""Intervals of measured times."""

from __future__ import annotations

import statistics

import numpy as np
from scipy.stats import binom


def interval(samples: np.ndarray) -> dict[str, float]:
    """The median with a 95 % interval from order statistics (binomial, free of any assumption on the distribution).

    With fewer than 6 samples no such interval exists; the range is given.
    """
    ordered = np.sort(samples)
    n = len(ordered)
    low = max(0, int(binom.ppf(0.025, n, 0.5)) - 1)
    return {
        "median": statistics.median(ordered.tolist()),
        "low": float(ordered[low]),
        "high": float(ordered[n - 1 - low]),
    }
