"""The figures about budgets: what score to expect after a number of trials or seconds, and score against seconds."""

from __future__ import annotations

from statistics import fmean
from typing import Any, Literal

import altair as alt

from reports import statistics
from reports.drawing import Figure, compose, inline, looks, score_axis, tips
from reports.metrics import capitalised, primary_name
from reports.rates import scores, searched
from reports.records import Results, ScoreRun
from reports.rounding import plus_minus, significant
from reports.runlog import training_seconds
from reports.table import plain
from reports.tables import POINTS, mean_cell

Budget = Literal["trials", "seconds"]


def expected_trials_figure(results: Results) -> Figure | None:
    """Expected best validation score against the number of learning rates tried."""
    return _expected_figure(results, "trials", "settings tried" if results.space else "learning rates tried")


def expected_seconds_figure(results: Results) -> Figure | None:
    """The same against seconds of training."""
    return _expected_figure(results, "seconds", "seconds of training")


def _expected_figure(results: Results, budget: Budget, title: str) -> Figure | None:
    found = {label: _expected(results, label) for label in results.labels}
    rows = [row for steps in found.values() for row in steps if row[budget] is not None]
    if not rows:
        return None
    colour, shape = looks(results, rows)
    whole = alt.Axis(tickMinStep=1, format="d") if budget == "trials" else alt.Axis()
    x = alt.X(f"{budget}:Q", title=title, axis=whole, scale=alt.Scale(zero=False, padding=14))
    y = score_axis(f"expected best validation {primary_name(results)} (points)")
    shown = [*tips("method:N", "trials:Q"), alt.Tooltip("value:Q", format=".1f", title="expected best")]
    if budget == "seconds":
        shown.append(alt.Tooltip("seconds:Q", format=".3~g"))
    curves = alt.Chart(inline(rows))
    layers = [
        curves.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=colour),
        curves.mark_point(filled=True, size=50, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=shown),
    ]
    ends = (steps[-1] for steps in found.values() if steps and steps[-1][budget] is not None)
    said = "; ".join(f"{row['method']} {row['value']:.1f} after {significant(row[budget], 3)}" for row in ends)
    name = f"Expected best score against {budget}"
    return compose(f"expected_{budget}", name, _expected_caption(results, budget), f"{name}: {said}.", layers)


def _expected_caption(results: Results, budget: Budget) -> str:
    whose = "settings" if results.space else "learning rates"
    drawn = "lie around" if results.space else "are a grid around"
    caption = (
        f"The mean of the best validation score if that many of a method's {whose} were tried in random order "
        f"(unbiased, arXiv 2004.13705). The rates {drawn} the method's own centre: a worse centre makes a "
        "worse curve. A rate at which a run diverged counts as the lowest score of the whole search"
    )
    if budget == "trials":
        return f"{caption}."
    return f"{caption}. Seconds are the mean training time of the method's trials times their number."


def _expected(results: Results, label: str) -> list[dict[str, Any]]:
    """A row a number of trials; none for a method that had no choice."""
    rates = _trials(results, label)
    # Later trials follow earlier ones, and those that a race left over are no chance draw.
    chance = len(rates) <= results.grid(label) and (results.racing is None or results.audited)
    if len(rates) < 2 or not chance:
        return []
    lowest = min(
        (s for name in results.labels for runs in searched(results, name).values() for s in scores(runs)), default=0.0
    )
    lost = [any(run.status == "diverged" for run in runs) for runs in rates.values()]
    values = [lowest if gone else fmean(scores(runs)) for gone, runs in zip(lost, rates.values(), strict=True)]
    spent = [training_seconds(run) for runs in rates.values() for run in runs]
    known = [seconds for seconds in spent if seconds is not None]
    each = sum(known) / len(rates) if len(known) == len(spent) else None
    return [
        {
            "method": plain(label),
            "trials": trials,
            "seconds": None if each is None else trials * each,
            "value": value,
        }
        for trials, value in enumerate(statistics.expected_best(values), start=1)
    ]


def _trials(results: Results, label: str) -> dict[str, list[ScoreRun]]:
    """The search runs of full length by what was tried, without those that failed."""
    tried: dict[str, list[ScoreRun]] = {}
    for run in results.full_length(label):
        if run.status != "failed":
            tried.setdefault(results.setting(run), []).append(run)
    return tried


def seconds_figure(results: Results) -> Figure | None:
    """Test score against seconds of training, each with its interval: a cross a method."""
    rows = [row for label in results.labels if (row := _seconds_datum(results, label))]
    if not rows:
        return None
    colour, shape = looks(results, rows)
    x = alt.X("seconds:Q", title="seconds of training", scale=alt.Scale(zero=False, padding=14))
    y = score_axis(f"{primary_name(results)} (points)")
    points = alt.Chart(inline(rows))
    layers = [
        points.mark_rule(strokeWidth=2).encode(x=x, y=alt.Y("low:Q", title=""), y2="high:Q", color=colour),
        points.mark_rule(strokeWidth=2).encode(x=alt.X("fastest:Q", title=""), x2="slowest:Q", y=y, color=colour),
        points.mark_point(filled=True, size=90, opacity=1).encode(
            x=x, y=y, color=colour, shape=shape, tooltip=tips("method:N", "score:N", "training:N")
        ),
    ]
    caption = (
        "Mean test score against the mean training time of the final runs, from the bare base to the trained "
        "method, both with 95 % t-intervals over seeds. Runs share the machine and are not interleaved, so small "
        "differences of time mean nothing: the section on speed compares steps within interleaved rounds."
    )
    said = "; ".join(f"{row['method']} {row['score']} points in {row['training']} s" for row in rows)
    title = "Score against seconds"
    return compose(
        "seconds", title, caption, f"{capitalised(primary_name(results))} against training time: {said}.", layers
    )


def _seconds_datum(results: Results, label: str) -> dict[str, Any] | None:
    done = [run for run in results.of(label, "final") if run.score("primary") is not None]
    spent = [seconds for run in done if (seconds := training_seconds(run)) is not None]
    if not spent:
        return None
    cell, time = mean_cell(results, label, "primary"), statistics.mean_interval(spent)
    mean, half = float(cell.value or 0) * POINTS, None if cell.half is None else cell.half * POINTS
    return {
        "method": plain(label),
        "seconds": time.mean,
        "fastest": max(0.0, time.mean - (time.half or 0.0)),  # no training takes less than no time
        "slowest": time.mean + (time.half or 0.0),
        "value": mean,
        "low": mean - (half or 0),
        "high": mean + (half or 0),
        "score": plus_minus(mean, half),
        "training": plus_minus(time.mean, time.half),
    }
