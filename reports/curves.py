"""Validation curves of the final runs, and how long each method takes to the score of the tuned baseline."""

from __future__ import annotations

import math
from statistics import median

from reports.metrics import primary_name
from reports.records import Json, Results, ScoreRun
from reports.rounding import fixed, percent, significant
from reports.statistics import MedianTime, mean_interval, median_time, paired_difference, time_to_target
from reports.table import EMPTY, Cell, Column, Show, Table, text, with_half
from reports.tables import METHOD, POINTS

NEVER = "never"
Times = dict[int, tuple[float, float]]  # seed -> (steps, seconds), infinite for never


def points_of(run: ScoreRun) -> list[Json]:
    """``step``, ``seconds`` of training so far, ``score`` and ``loss`` at every look; empty where none was taken."""
    found: list[Json] = run.measures.get("curve", {}).get("points", [])
    return found


def watched(results: Results, label: str) -> list[ScoreRun]:
    """The final runs of a method that were to be looked at while they trained; failed ones are left out."""
    return [run for run in results.of(label, "final") if run.status != "failed" and "curve" in run.measures]


def target(results: Results) -> float | None:
    """The median over the baseline's final runs of their last validation score; None without any."""
    runs = [run for run in watched(results, results.baseline) if run.status == "done" and points_of(run)]
    return median(float(points_of(run)[-1]["score"]) for run in runs) if runs else None


def step_seconds(results: Results, label: str) -> float | None:
    """Median seconds of a training step, from the speed measurement; None without it."""
    total = (results.speed or {}).get("methods", {}).get(label, {}).get("total")
    return float(total["median"]) if total else None


def seconds_at(results: Results, label: str, point: Json) -> float:
    """Seconds of training until a point of a curve: by the measured speed where there is one, else the run's own."""
    each = step_seconds(results, label)
    return float(point["seconds"]) if each is None else each * int(point["step"])


def times(results: Results, label: str, score: float) -> Times:
    """To a validation score: never where a run did not have it at any look, or diverged."""
    found = {}
    for run in watched(results, label):
        points = points_of(run) if run.status == "done" else []
        steps = time_to_target(((p["step"], p["score"]) for p in points), score)
        seconds = time_to_target(((seconds_at(results, label, p), p["score"]) for p in points), score)
        found[run.seed] = steps, seconds
    return found


def until(places: int | None = None) -> Show:
    """``48 [32, never]``: with so many decimals, else three digits."""

    def one(value: float) -> str:
        if not math.isfinite(value):
            return NEVER
        return significant(value, 3) if places is None else fixed(value, places)

    def show(cell: Cell) -> str:
        middle = one(float(cell.value or 0))
        return middle if cell.low is None or cell.high is None else f"{middle} [{one(cell.low)}, {one(cell.high)}]"

    return show


def time_table(results: Results) -> Table | None:
    """A row a method whose final runs were looked at; None where the baseline has no curve."""
    score = target(results)
    if score is None:
        return None
    base, unit, sign = results.baseline, *(("seconds", "s") if results.time_matched else ("steps", "steps"))
    columns = (
        METHOD,
        Column("reached", "runs that got there", text, place="terminal"),
        Column("steps", "steps until then", until(0), "median", interval=True, place="terminal"),
        Column("seconds", "seconds until then", until(), "median", interval=True, place="terminal"),
        Column(f"mean_{unit}", f"{unit}, a miss as the whole run", with_half(), "mean", interval=True),
        Column("difference", f"the same, against {base}", with_half(signed=True), sign, interval=True),
    )
    found = {label: times(results, label, score) for label in results.labels if watched(results, label)}
    rows = tuple(_row(results, label, found) for label in found)
    return Table(
        "times",
        f"Time to the score of {'the tuned ' if results.points(base) > 1 else ''}{base}",
        _caption(results, score, found),
        columns,
        rows,
    )


def _row(results: Results, label: str, found: dict[str, Times]) -> tuple[Cell, ...]:
    steps, seconds = (median_time([pair[i] for pair in found[label].values()]) for i in (0, 1))
    base, (own, known) = results.baseline, (_capped(results, name, found[name]) for name in (label, results.baseline))
    gap = _gap(results, label)
    mean = mean_interval(list(own.values()), resolution=gap) if own else None
    coarser = max(gap, _gap(results, base))
    difference = paired_difference(own, known, resolution=coarser) if label != base else None
    ends = (EMPTY if one is None else Cell(one.mean, one.low, one.high) for one in (mean, difference))
    reached = Cell(f"{steps.reached} of {steps.n}")
    return Cell(label), reached, _median_cell(steps), _median_cell(seconds), *ends


def _capped(results: Results, label: str, runs: Times) -> dict[int, float]:
    """seed -> steps, or seconds where those were matched; for a miss those of its own whole run. Empty if unknown."""
    place, each = (1, _pace(results, label)) if results.time_matched else (0, 1.0)
    if each is None:
        return {}
    whole = {run.seed: each * _length(run) for run in watched(results, label)}
    return {seed: pair[place] if math.isfinite(pair[place]) else whole[seed] for seed, pair in runs.items()}


def _pace(results: Results, label: str) -> float | None:
    """Seconds a step: as measured, else the median over the method's runs; None where none was ever looked at."""
    last = (points_of(run)[-1] for run in watched(results, label) if points_of(run))
    return step_seconds(results, label) or median([p["seconds"] / p["step"] for p in last] or [0.0]) or None


def _median_cell(found: MedianTime) -> Cell:
    return Cell(found.median, found.low, found.high)


def _length(run: ScoreRun) -> int:
    """Steps that a run was to take."""
    assert run.steps is not None
    return run.steps


def _gap(results: Results, label: str) -> float:
    """Between two looks at a method, in steps, or in seconds where those were matched: times are known no better."""
    runs = watched(results, label)
    gap = max(map(_length, runs)) / max(max(len(points_of(run)) for run in runs), 1)
    return gap * (_pace(results, label) or 0.0) if results.time_matched else gap


def _looks(results: Results) -> str:
    """How often runs were looked at."""
    if not results.time_matched:
        return f"about every {significant(_gap(results, results.baseline), 3)} steps"
    count = max(len(points_of(run)) for run in watched(results, results.baseline))
    return f"at {count} moments evenly spread over the steps of each"


def _median_words(covered: dict[int, float]) -> str:
    """seeds -> coverage, in a sentence."""
    if not covered:
        return "One seed gives no interval."
    said = "; ".join(f"{percent(share, 3)} of {n} seeds" for n, share in covered.items())
    return f"Medians are with their interval from order statistics, which covers the true median with at least {said}."


def _caption(results: Results, score: float, found: dict[str, Times]) -> str:
    base = results.baseline
    curves = [run.measures["curve"] for run in watched(results, base)]
    covered = {n: median_time([1.0] * n).coverage for n in sorted({len(runs) for runs in found.values()}) if n > 1}
    timed = (
        "the median step of the section on speed times the steps" if step_seconds(results, base) else "the run's own"
    )
    return (
        f"The target is {significant(score * POINTS, 3)} points: the median of {base}'s last validation "
        f"{primary_name(results)} over its final runs. Every method is looked at in "
        f"its final runs, on the same {curves[0]['items']} validation examples, {_looks(results)}; nothing "
        "is interpolated. A run that never has the score, or diverges, counts as never: it is longer than every time. "
        f"{_median_words(covered)} In the mean a miss counts as its own whole run, so it is "
        "a lower bound where there are misses; its interval, and that of the difference, which is paired by seed, are "
        f"t-intervals of 95 %. {base} meets its own median in half of its runs, most often near their end, when the "
        f"learning rate has fallen: the schedule is part of what is compared. Seconds of training: {timed}."
    )
