"""Average ranks over tasks, and which methods they can tell apart: what a critical-difference diagram draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from reports.statistics.estimates import LEVEL
from reports.statistics.verdicts import Pair, holm


@dataclass(frozen=True)
class CriticalDifference:
    """Methods by average rank, best first, and the groups that cannot be told apart.

    Args:
        ranks: method -> average rank over tasks, 1 is best.
        friedman_p: of "all methods are alike"; None with two methods, where it is the pair's own test.
        p: pair (better rank, worse rank) -> Holm-adjusted p-value of Wilcoxon's signed-rank test.
        cliques: largest runs of neighbouring ranks within which no pair differs, two methods or more each.
    """

    ranks: dict[str, float]
    friedman_p: float | None
    p: dict[Pair, float]
    cliques: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Refusal:
    """Why there is no diagram."""

    reason: str


def critical_difference(scores: Mapping[str, Sequence[float]], level: float = LEVEL) -> CriticalDifference | Refusal:
    """What a critical-difference diagram shows, or why these tasks are too few for one.

    With N tasks the smallest two-sided p-value that Wilcoxon's signed-rank test can give is 2 / 2^N: one method better
    on every task. If even that is above alpha after Holm's correction over k (k - 1) / 2 pairs, no pair can ever be
    told apart, a diagram would join all methods whatever their scores, and it is refused.

    Args:
        scores: method -> (N,) scores on the same tasks, each the mean over the seeds; higher is better.

    Raises:
        ValueError: fewer than two methods, or different numbers of tasks.

    Source: Demsar (2006), JMLR 7, 1-30 (ranks, Friedman); Benavoli, Corani and Mangili (2016), JMLR 17, 1-10 (pairwise
    Wilcoxon tests with Holm in place of Nemenyi's, which depends on who else takes part).
    """
    numbers = {len(row) for row in scores.values()}
    if len(scores) < 2 or len(numbers) != 1:
        raise ValueError("ranks need two methods or more with scores on the same tasks, one score a task")
    (tasks,) = numbers
    if (least := fewest_tasks(len(scores), level)) > tasks:
        return Refusal(_reason(len(scores), tasks, least, level))
    from scipy.stats import friedmanchisquare  # half a second to import: see across.py

    table = np.array([list(row) for row in scores.values()], dtype=float)  # (k, N)
    means = {name: float(np.mean(row)) for name, row in task_ranks(scores).items()}
    ordered = sorted(scores, key=lambda name: means[name])
    p = holm({(a, b): signed_rank_p(np.subtract(scores[a], scores[b])) for a, b in combinations(ordered, 2)})
    alike = len(scores) < 3 or bool((table == table[0]).all())
    friedman = None if alike else float(friedmanchisquare(*table).pvalue)
    return CriticalDifference({name: means[name] for name in ordered}, friedman, p, _cliques(ordered, p, 1 - level))


def task_ranks(scores: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Method -> (N,) its rank on each task: 1 is best, and equal scores share the mean of their ranks.

    Args:
        scores: method -> (N,) scores on the same tasks; higher is better.
    """
    from scipy.stats import rankdata

    ranks = rankdata(-np.array([list(row) for row in scores.values()], dtype=float), axis=0)
    return dict(zip(scores, ranks.tolist(), strict=True))


def fewest_tasks(methods: int, level: float = LEVEL) -> int:
    """The number of tasks from which on some pair of so many methods can be told apart at all."""
    tasks = 1
    while comb(methods, 2) * 2.0 ** (1 - tasks) > 1 - level:
        tasks += 1
    return tasks


def signed_rank_p(differences: Sequence[float] | np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test, exact also with ties: over all 2^N signs of the ranks.

    Differences of zero carry no sign and are left out.

    Source: Wilcoxon (1945), Biometrics Bulletin 1, 80-83; Pratt and Gibbons (1981), Springer (ties).
    """
    from scipy.stats import rankdata

    values = np.asarray(differences, dtype=float)
    values = values[values != 0]
    if len(values) == 0:
        return 1.0
    doubled = (2 * rankdata(np.abs(values))).astype(int)  # midranks are halves
    chances = np.ones(1)
    for rank in doubled:
        moved = np.concatenate([np.zeros(rank), chances])
        moved[: len(chances)] += chances
        chances = moved / 2
    observed = int(doubled[values > 0].sum())
    lower, upper = chances[: observed + 1].sum(), chances[observed:].sum()
    return float(min(1.0, 2 * min(lower, upper)))


def _cliques(ordered: Sequence[str], p: Mapping[Pair, float], alpha: float) -> tuple[tuple[str, ...], ...]:
    found: list[tuple[str, ...]] = []
    reached = 0
    for start in range(len(ordered)):
        end = start + 1
        while end < len(ordered) and all(p[ordered[i], ordered[end]] >= alpha for i in range(start, end)):
            end += 1
        if end - start > 1 and end > reached:  # else it lies within the clique before
            found.append(tuple(ordered[start:end]))
            reached = end
    return tuple(found)


def _reason(methods: int, tasks: int, least: int, level: float) -> str:
    pairs = comb(methods, 2)
    smallest = min(1.0, pairs * 2.0 ** (1 - tasks))
    return (
        f"{tasks} task{'s are' if tasks > 1 else ' is'} too few to rank {methods} methods: a method better on every "
        f"task has p = 2 / 2^{tasks} by Wilcoxon's signed-rank test, which Holm's correction over {pairs} "
        f"pair{'s' if pairs > 1 else ''} makes {smallest:.2g}, above {1 - level:.2g}. From {least} tasks on some pair "
        "can be told apart."
    )
