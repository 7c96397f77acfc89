"""What is said of a method over all benchmarks at once: mean rank, robust means, chances, and verdicts counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from reports.across.folders import Across
from reports.across.normalised import normalised, scale
from reports.comparing import comparisons
from reports.statistics import (
    ENOUGH,
    Bounded,
    CriticalDifference,
    Refusal,
    critical_difference,
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
    interval_over_tasks,
    probability_of_improvement,
    task_ranks,
)
from reports.statistics.across import TaskScores
from reports.table import Cell

RNG_SEED = 2108_13264  # of every bootstrap in the report: the same records give the same numbers


@dataclass(frozen=True)
class Aggregate:
    """One method over all benchmarks.

    Args:
        ranks: benchmark -> its rank by the mean score, 1 is best.
        mean, iqm: of the normalised scores, with their intervals where the number of seeds allows one.
        improvement: the chance that a run of it beats a run of the baseline; empty for the baseline.
        verdicts: against the baseline, benchmarks by verdict; empty for the baseline.
    """

    ranks: Mapping[str, float]
    mean: Cell
    iqm: Cell
    improvement: Cell
    verdicts: Counter[str]

    @property
    def mean_rank(self) -> float:
        return fmean(self.ranks.values())


def aggregates(across: Across) -> dict[str, Aggregate]:
    """Every compared method over all benchmarks."""
    scores, step = normalised(across), _step(across)
    ranks, verdicts = ranks_by_task(across), verdicts_by_task(across)
    return {
        label: Aggregate(
            ranks[label],
            _mean(scores[label], step),
            _iqm(scores[label]),
            _improvement(scores[label], scores[across.baseline]) if label != across.baseline else Cell(None),
            Counter(verdicts.get(label, {}).values()),
        )
        for label in across.labels
    }


def ranks_by_task(across: Across) -> dict[str, dict[str, float]]:
    """Method -> benchmark -> rank by the mean score among the compared methods."""
    found = task_ranks(task_means(across))
    return {label: dict(zip(across.tasks, row, strict=True)) for label, row in found.items()}


def verdicts_by_task(across: Across) -> dict[str, dict[str, str]]:
    """Method -> benchmark -> the verdict against the baseline in that benchmark's own report."""
    found = {
        task: comparisons(results, across.baseline) for task, results in zip(across.tasks, across.results, strict=True)
    }
    others = [label for label in across.labels if label != across.baseline]
    return {label: {task: compared[label].verdict for task, compared in found.items()} for label in others}


def ranking(across: Across) -> CriticalDifference | Refusal:
    """What a critical-difference diagram of the normalised scores would show, or why there is none."""
    return critical_difference(task_means(across))


def task_means(across: Across) -> dict[str, list[float]]:
    """Method -> the mean of its normalised scores on every benchmark."""
    return {label: [fmean(runs) for runs in tasks.values()] for label, tasks in normalised(across).items()}


def enough_seeds(across: Across) -> bool:
    """Has every method the seeds on every benchmark from which on a bootstrap covers what it says?"""
    return min(len(runs) for label in across.labels for runs in across.scores(label).values()) >= ENOUGH


def _rng() -> np.random.Generator:
    """One stream a number: a method's interval does not depend on which others are there."""
    return np.random.default_rng(RNG_SEED)


def _step(across: Across) -> float:
    """The largest step in which a benchmark's normalised scores move."""
    found, tasks = scale(across), zip(across.tasks, across.results, strict=True)
    return max(results.resolution / found.room(task) for task, results in tasks)


def _mean(tasks: TaskScores, step: float) -> Cell:
    interval = interval_over_tasks(tasks, _rng(), resolution=step)
    return _cell(interval, fmean(fmean(runs) for runs in tasks.values()))


def _iqm(tasks: TaskScores) -> Cell:
    return _cell(interquartile_interval(tasks, _rng()), interquartile_mean(tasks))


def _improvement(tasks: TaskScores, baseline: TaskScores) -> Cell:
    return _cell(improvement_interval(tasks, baseline, _rng()), probability_of_improvement(tasks, baseline))


def _cell(interval: Bounded | None, alone: float) -> Cell:
    """The number with its interval, or as it is ``alone`` where there is none."""
    return Cell(alone) if interval is None else Cell(interval.value, interval.low, interval.high)
