"""Bootstrap intervals over seeds, from 10 seeds on; below that the t-interval is the one that covers what it says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.special import ndtr, stdtrit

from reports.statistics.estimates import LEVEL, mean_over_tasks
from reports.statistics.proportions import Bounded

Array = np.ndarray
ENOUGH = 10  # seeds of every task from which on a bootstrap covers about what it says
DRAWS = 2000


def stratified_bootstrap(
    tasks: Mapping[str, Sequence[float]],
    rng: np.random.Generator,
    statistic: Callable[[list[Array]], Array] | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
) -> Bounded:
    """A statistic of scores on several tasks, with an interval from drawing seeds anew within every task.

    The plain percentile interval is too narrow by sqrt((n - 1) / n) and by the ratio of normal to t quantiles; its
    percentiles are moved outwards by both ("expanded percentile interval").

    Args:
        tasks: task -> its scores, one a seed, ``ENOUGH`` or more.
        rng: draws the seeds.
        statistic: from one array (draws, seeds) a task to (draws,) values; the mean of the tasks' means if None.

    Raises:
        ValueError: a task has fewer than 10 scores.

    Source: Agarwal et al. (2021), arXiv 2108.13264 (strata); Hesterberg (2015), The American Statistician
    69, 371-386 (expansion).
    """
    scores = [np.asarray(values, dtype=float) for values in tasks.values()]
    fewest = min((len(values) for values in scores), default=0)
    if fewest < ENOUGH:
        raise ValueError(
            f"a bootstrap over {fewest} seeds covers less than it says: give {ENOUGH} or more of every task, "
            "or use mean_over_tasks, whose t-interval holds from 2 on"
        )
    measure = statistic or _mean_of_means
    drawn = measure([values[rng.integers(len(values), size=(draws, len(values)))] for values in scores])
    tail = _expanded_tail(fewest, sum(len(values) - 1 for values in scores), level)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    value = measure([values[None] for values in scores])[0]
    return Bounded(float(value), float(low), float(high))


def interval_over_tasks(
    tasks: Mapping[str, Sequence[float]], rng: np.random.Generator, level: float = LEVEL, resolution: float = 0.0
) -> Bounded | None:
    """The mean of the tasks' means with the interval that fits the number of seeds.

    A bootstrap from 10 seeds a task on, a t-interval below; None where some task has a single seed.
    """
    if min((len(values) for values in tasks.values()), default=0) >= ENOUGH:
        return stratified_bootstrap(tasks, rng, level=level)
    found = mean_over_tasks(tasks, level, resolution)
    return None if found.low is None or found.high is None else Bounded(found.mean, found.low, found.high)


def _mean_of_means(drawn: list[Array]) -> Array:
    return np.mean([values.mean(axis=1) for values in drawn], axis=0)


def _expanded_tail(seeds: int, freedom: int, level: float) -> float:
    """The share to cut off at each end so that the width is that of a t-interval."""
    quantile = float(stdtrit(freedom, (1 + level) / 2))
    return float(ndtr(-math.sqrt(seeds / (seeds - 1)) * quantile))
