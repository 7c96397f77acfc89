"""What changed between two results folders, A and B, and whether it is more than noise: pure functions of two Results.

A difference in accuracy is B less A. Where model, data and training settings are the same, one seed gives both the same
data order, the same head and the same draw for the adapter, so the seeds are pairs; otherwise the seeds of each side
are a sample of its own (Welch 1947). The p-values of all methods are corrected together (Holm).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from scipy.special import stdtr, stdtrit

from reports.changes import (
    Change,
    StepChange,
    merge_changes,
    setting_changes,
    size_changes,
    step_changes,
    version_changes,
)
from reports.records import Results, ScoreRun
from reports.statistics import LEVEL, Estimate, Outcomes, holm, mean_interval, paired_difference

Pair = tuple[Any, Any]  # of A, of B
How = Literal["paired", "independent"]
Word = Literal[
    "better", "worse", "within noise", "equal", "the same runs", "one seed", "lost seeds", "other test data", "no score"
]

SHARED = ("model", "benchmark", "limit", "training")  # of two runs whose equal seeds draw equal numbers


@dataclass(frozen=True)
class Shift:
    """The mean of B less that of A, in the unit of the scores, with its interval and its corrected p-value."""

    mean: float
    half: float
    p: float
    how: How


@dataclass(frozen=True)
class MethodDifference:
    """One method in both: learning rates of the final runs, mean accuracies, and what may be said of them.

    ``verdict`` is about B: *better* and *worse* are beyond noise. *equal*: computed anew, and every score the same.
    *lost seeds*: the better side's mean leaves diverged runs out, and no claim of being better rests on that.
    """

    label: str
    rates: Pair
    accuracies: tuple[Estimate | None, Estimate | None]
    diverged: tuple[int, int]
    shift: Shift | None
    verdict: Word


@dataclass(frozen=True)
class Differences:
    """Everything that two results folders do not share."""

    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    settings: tuple[Change, ...]
    versions: tuple[Change, ...]
    methods: tuple[MethodDifference, ...]
    sizes: tuple[Change, ...]
    steps: tuple[StepChange, ...]
    merges: tuple[Change, ...]


def differences(a: Results, b: Results) -> Differences:
    """What two results folders do not share."""
    common = [label for label in a.labels if label in b.labels]
    return Differences(
        only_a=tuple(label for label in a.labels if label not in b.labels),
        only_b=tuple(label for label in b.labels if label not in a.labels),
        settings=setting_changes(a, b, common),
        versions=version_changes(a, b),
        methods=_corrected([_method(label, a, b) for label in common]),
        sizes=size_changes(a, b, common),
        steps=step_changes(a, b, common),
        merges=merge_changes(a, b, common),
    )


# ---- accuracy -------------------------------------------------------------------------------------------------------


def _method(label: str, a: Results, b: Results) -> MethodDifference:
    scores = a.outcomes(label), b.outcomes(label)
    step = max(a.resolution, b.resolution)
    means = tuple(mean_interval(list(side.values()), resolution=step) if side else None for side in scores)
    runs = a.of(label, "final"), b.of(label, "final")
    shift, verdict = None, _without_a_test(runs, scores)
    if verdict is None:
        shift = _shift(scores, step, paired=_same(runs[0][0], runs[1][0], SHARED, ("model", "data")))
        verdict = "one seed" if shift is None else "within noise"
    return MethodDifference(
        label,
        rates=(a.chosen_lr(label), b.chosen_lr(label)),
        accuracies=(means[0], means[1]),
        diverged=(a.diverged_seeds(label), b.diverged_seeds(label)),
        shift=shift,
        verdict=verdict,
    )


def _without_a_test(runs: tuple[list[ScoreRun], list[ScoreRun]], scores: tuple[Outcomes, Outcomes]) -> Word | None:
    """What can be said before anything is estimated; None if that is nothing."""
    if not all(scores):
        return "no score"
    if not _same(runs[0][0], runs[1][0], ("benchmark", "limit", "split"), ("data",)):
        return "other test data"
    a, b = ({run.seed: run for run in side} for side in runs)
    common = [seed for seed in a if seed in b]
    if not common or any(_result(a[seed]) != _result(b[seed]) for seed in common):
        return None
    if all(a[seed].record["key"] == b[seed].record["key"] for seed in common):
        return "the same runs"
    return "equal" if len(common) == len(a) == len(b) else None


def _result(run: ScoreRun) -> Pair:
    return run.status, run.measures.get("score")  # with every item's outcome


def _same(a: ScoreRun, b: ScoreRun, names: tuple[str, ...], digests: tuple[str, ...]) -> bool:
    """Do two runs agree in these settings and in the digests of these inputs?"""
    first, second = (run.record["run"] for run in (a, b))
    identities = first.get("identity") or {}, second.get("identity") or {}
    alike = all(first.get(name) == second.get(name) for name in names)
    return alike and all(identities[0].get(name) == identities[1].get(name) for name in digests)


def _shift(scores: tuple[Outcomes, Outcomes], step: float, paired: bool) -> Shift | None:
    """By pairs if there are two, else by two samples; None with fewer than two seeds on a side."""
    a, b = scores
    found = paired_difference(b, a, resolution=step) if paired else None
    if found is not None:
        return Shift(found.mean, found.half or 0.0, found.p, "paired")
    return welch_difference(a, b, resolution=step)


def welch_difference(a: Outcomes, b: Outcomes, level: float = LEVEL, resolution: float = 0.0) -> Shift | None:
    """Mean of b less mean of a as two independent samples, with Welch's t-interval; None with fewer than two in one.

    Args:
        a, b: seed -> score.
        level: coverage, 0 to 1.
        resolution: smallest step of the scores, 0 if they have none; no smaller spread than its rounding is believed.

    Source: Welch (1947), Biometrika 34, 28-35; degrees of freedom after Satterthwaite (1946).
    """
    if min(len(a), len(b)) < 2:
        return None
    (mean_a, part_a), (mean_b, part_b) = (_mean_and_square_error(list(side.values()), resolution) for side in (a, b))
    mean, square = mean_b - mean_a, part_a + part_b
    if square == 0:  # equal scores without a step: their spread is not known
        return Shift(mean, 0.0, 1.0, "independent")
    freedom = square**2 / (part_a**2 / (len(a) - 1) + part_b**2 / (len(b) - 1))
    error = math.sqrt(square)
    half = float(stdtrit(freedom, (1 + level) / 2)) * error
    return Shift(mean, half, float(2 * stdtr(freedom, -abs(mean) / error)), "independent")


def _mean_and_square_error(numbers: list[float], resolution: float) -> tuple[float, float]:
    mean = math.fsum(numbers) / len(numbers)
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1)
    return mean, max(variance, resolution**2 / 12) / len(numbers)


def _corrected(methods: list[MethodDifference]) -> tuple[MethodDifference, ...]:
    """With p-values and verdicts that hold for all methods together."""
    adjusted = holm({method.label: method.shift.p for method in methods if method.shift})
    return tuple(_judged(method, adjusted.get(method.label)) for method in methods)


def _judged(method: MethodDifference, p: float | None) -> MethodDifference:
    if method.shift is None or p is None:
        return method
    up = method.shift.mean > 0
    word: Word = "within noise" if p >= 1 - LEVEL else "better" if up else "worse"
    if word != "within noise" and method.diverged[up]:
        word = "lost seeds"
    shift = Shift(method.shift.mean, method.shift.half, p, method.shift.how)
    return MethodDifference(method.label, method.rates, method.accuracies, method.diverged, shift, word)
