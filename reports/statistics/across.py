"""Methods across tasks: robust means, who wins how often, profiles, and time to a target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from reports.statistics.bootstrap import ENOUGH, stratified_bootstrap
from reports.statistics.proportions import Bounded

TaskScores = Mapping[str, Sequence[float]]  # task -> scores, one a seed


def interquartile_mean(tasks: TaskScores) -> float:
    """The mean of the middle half of all scores of all tasks: less noisy than the median, deaf to single failures.

    Args:
        tasks: task -> scores, on scales that may be mixed.

    Raises:
        ValueError: no scores.

    Source: Agarwal et al. (2021), arXiv 2108.13264.
    """
    from scipy.stats import trim_mean  # half a second to import: those who do not need it do not wait

    scores = [score for values in tasks.values() for score in values]
    if not scores:
        raise ValueError("the interquartile mean of no scores: give at least one")
    return float(trim_mean(scores, 0.25))


def probability_of_improvement(a: TaskScores, b: TaskScores) -> float:
    """P(A > B): the chance that a run of a beats a run of b on a task drawn at random; ties count half.

    Args:
        a, b: task -> scores; runs are not paired, and the two may have different numbers of seeds.

    Raises:
        ValueError: the two have different tasks, or one without scores.

    Source: Agarwal et al. (2021), arXiv 2108.13264 (the Mann-Whitney statistic, averaged over tasks).
    """
    if a.keys() != b.keys() or not a or any(len(tasks[name]) == 0 for tasks in (a, b) for name in tasks):
        raise ValueError(f"tasks {sorted(a)} and {sorted(b)}: give both methods scores on the same tasks")
    chances = []
    for task, scores in a.items():
        gaps = np.subtract.outer(np.asarray(scores, dtype=float), np.asarray(b[task], dtype=float))
        chances.append(float((gaps > 0).mean() + (gaps == 0).mean() / 2))
    return math.fsum(chances) / len(chances)


def interquartile_interval(tasks: TaskScores, rng: np.random.Generator) -> Bounded | None:
    """The interquartile mean with its interval by the stratified bootstrap; None below 10 seeds of some task.

    There is no t-interval to fall back on: below 10 seeds the number stands alone.

    Args:
        tasks: task -> scores, on one scale.
        rng: draws the seeds.
    """
    if not _enough(tasks):
        return None
    from scipy.stats import trim_mean

    return stratified_bootstrap(tasks, rng, lambda drawn: trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1))


def improvement_interval(a: TaskScores, b: TaskScores, rng: np.random.Generator) -> Bounded | None:
    """P(A > B) with its interval by the stratified bootstrap, both methods drawn; None below 10 seeds of some task.

    Args:
        a, b: task -> scores of the same tasks.
        rng: draws the seeds.
    """
    if not _enough(a) or not _enough(b):
        return None
    strata = {f"{side}{i}": runs[task] for side, runs in (("a", a), ("b", b)) for i, task in enumerate(a)}

    def chance(drawn: list[np.ndarray]) -> np.ndarray:
        pairs = zip(drawn[: len(a)], drawn[len(a) :], strict=True)
        gaps = (left[:, :, None] - right[:, None, :] for left, right in pairs)
        return np.mean([(gap > 0).mean(axis=(1, 2)) + (gap == 0).mean(axis=(1, 2)) / 2 for gap in gaps], axis=0)

    return stratified_bootstrap(strata, rng, chance)


def _enough(tasks: TaskScores) -> bool:
    return min((len(scores) for scores in tasks.values()), default=0) >= ENOUGH


def score_profile(tasks: TaskScores, thresholds: Sequence[float]) -> list[float]:
    """rho(tau): the share of runs that score above tau, every task with the same weight.

    Args:
        tasks: task -> scores, on one scale.
        thresholds: (M,) values of tau.

    Returns:
        (M,) shares.

    Source: Agarwal et al. (2021), arXiv 2108.13264.
    """
    limits = np.asarray(thresholds, dtype=float)
    shares = [(np.asarray(scores, dtype=float)[:, None] > limits).mean(axis=0) for scores in tasks.values()]
    return [float(share) for share in np.mean(shares, axis=0)]


def performance_profile(times: Mapping[str, Sequence[float]], factors: Sequence[float]) -> dict[str, list[float]]:
    """rho(tau): the share of tasks on which a method takes at most tau times as long as the fastest one.

    Args:
        times: method -> (N,) times to the target, one a task, ``math.inf`` for a target that was missed.
        factors: (M,) values of tau, from 1 on.

    Returns:
        Method -> (M,) shares. A miss is within no factor, also where every method missed.

    Raises:
        ValueError: methods with different numbers of tasks, or a time that is not above 0.

    Source: Dolan and More (2002), Mathematical Programming 91, 201-213; Dahl et al. (2023), arXiv 2306.07179 (misses).
    """
    if len({len(row) for row in times.values()}) != 1 or not all(t > 0 for row in times.values() for t in row):
        raise ValueError("a profile compares methods on the same tasks: give each the same number of times above 0")
    best = np.min([list(row) for row in times.values()], axis=0)
    profile = {}
    for method, row in times.items():
        ratio = np.array([t / b if math.isfinite(t) else math.inf for t, b in zip(row, best, strict=True)])
        profile[method] = [float(((ratio <= factor) & np.isfinite(ratio)).mean()) for factor in factors]
    return profile


def time_to_target(curve: Iterable[tuple[float, float]], target: float) -> float:
    """When a validation curve first reaches the target, the tuned LoRA's score, say; ``math.inf`` if it never does.

    Nothing is interpolated: a score counts from the moment at which it was measured.

    Args:
        curve: (time, score) pairs in any order; the time may be in seconds, steps or items.
        target: where higher is better. Take it from re-runs of the tuned baseline (their median), not from the best
            run of the search, which was lucky.

    Source: Dahl et al. (2023), arXiv 2306.07179 (the time-to-result score).
    """
    return min((time for time, score in curve if score >= target), default=math.inf)
