"""Scores of different benchmarks on one scale: 0 is the probe's score, 1 is a perfect one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from reports.across.folders import Across, benchmark
from reports.records import Results
from reports.rounding import significant
from reports.statistics.across import TaskScores
from reports.words import listed

LOST = 0.0  # of a diverged run, normalised: whoever has one keeps the head alone, or guesses
PERFECT = 1.0  # by every measure that a benchmark is judged by
LEAST_ROOM = 10  # margins between the zero and a perfect score: less would blow what is practically equal up to a tenth


@dataclass(frozen=True)
class Scale:
    """What every benchmark's zero is; ``why`` says why that is not the probe's score, where it is not."""

    zeros: Mapping[str, float]
    why: str = ""

    def of(self, task: str, score: float | None) -> float:
        """(score - zero) / (1 - zero): the share that is won of what the zero leaves to be won; ``LOST`` for no score.

        Source: Murphy (1988), Monthly Weather Review 116, 2417-2424 (skill score); Agarwal et al. (2021), arXiv
        2108.13264 (normalised by references that take no part in the comparison of methods).
        """
        return LOST if score is None else (score - self.zeros[task]) / self.room(task)

    def room(self, task: str) -> float:
        """What the zero of a benchmark leaves to be won."""
        return PERFECT - self.zeros[task]


def scale(across: Across) -> Scale:
    """The mean score of the probe as every benchmark's zero; 0 for all of them where one has no such probe.

    Neither end is the score of a method that is compared, so none is favoured, and adding or leaving out a method moves
    no other one's number. Within a benchmark the map is affine and rising: ranks, chances and verdicts are untouched.
    """
    zeros = {benchmark(results): _probe_score(results) for results in across.results}
    without = [task for task, zero in zeros.items() if zero is None]
    if without:
        return _raw(across, f"there is no score of a probe on {listed(without)}")
    known = {task: zero for task, zero in zeros.items() if zero is not None}
    least = {benchmark(results): LEAST_ROOM * results.margin for results in across.results}
    if full := [task for task, zero in known.items() if PERFECT - zero < least[task]]:
        points = significant(100 * max(least.values()), 2)
        return _raw(across, f"the probe leaves less than {points} points to be won on {listed(full)}")
    return Scale(known)


def normalised(across: Across) -> dict[str, TaskScores]:
    """Method -> benchmark -> the scores of its final runs on the common scale."""
    known = scale(across)
    return {
        label: {task: [known.of(task, score) for score in scores] for task, scores in across.scores(label).items()}
        for label in across.labels
    }


def _raw(across: Across, why: str) -> Scale:
    return Scale(dict.fromkeys(across.tasks, 0.0), why)


def _probe_score(results: Results) -> float | None:
    scores = results.outcomes(results.probe) if results.probe is not None else {}
    return fmean(scores.values()) if scores else None
