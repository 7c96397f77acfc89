"""The figures of validation curves: score against steps and against seconds of training."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import altair as alt

from reports.curves import points_of, seconds_at, step_seconds, target, watched
from reports.drawing import Figure, compose, inline, looks, score_axis, tips
from reports.metrics import primary_name
from reports.records import Results
from reports.rounding import plus_minus, significant
from reports.statistics import mean_interval
from reports.table import plain
from reports.tables import POINTS


def curve_steps_figure(results: Results) -> Figure | None:
    """Mean validation score of the final runs against the step, with its interval over seeds."""
    return _figure(results, "step", "training steps")


def curve_seconds_figure(results: Results) -> Figure | None:
    """The same against seconds of training."""
    return _figure(results, "seconds", "seconds of training")


def _figure(results: Results, axis: str, title: str) -> Figure | None:
    curves = {label: _means(results, label) for label in results.labels}
    rows = [row for curve in curves.values() for row in curve]
    if len({row["step"] for row in rows}) < 2:
        return None
    colour, shape = looks(results, rows)
    whole = alt.Axis(tickMinStep=1, format="d") if axis == "step" else alt.Axis()
    x = alt.X(f"{axis}:Q", title=title, axis=whole, scale=alt.Scale(nice=False, zero=axis == "seconds", padding=8))
    y = score_axis(f"validation {primary_name(results)} (points)")
    shown = tips("method:N", "step:Q", "score:N", "runs:Q")
    lines = alt.Chart(inline(rows))
    layers = [
        lines.mark_area(opacity=0.14).encode(x=x, y=alt.Y("low:Q", title=""), y2="high:Q", color=colour),
        lines.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=colour),
        lines.mark_point(filled=True, size=36, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=shown),
    ]
    goal = target(results)
    if goal is not None:
        level = alt.Chart(inline([{"value": goal * POINTS}]))
        layers.append(level.mark_rule(strokeDash=[5, 4], color="currentColor", opacity=0.7).encode(y=y))
    ends = "; ".join(f"{curve[-1]['method']} {curve[-1]['score']} at the end" for curve in curves.values() if curve)
    words = f"Validation {primary_name(results)} against {title}: {ends}."
    return compose(f"curve_{axis}", f"Score against {title}", _caption(results, axis, goal), words, layers)


def _means(results: Results, label: str) -> list[dict[str, Any]]:
    """A row a step at which some run of the method has a score."""
    found: dict[int, list[tuple[float, float]]] = {}
    runs = watched(results, label)
    step_of_score = POINTS / runs[0].measures["curve"]["items"] if runs and results.metric == "accuracy" else 0.0
    for run in runs:
        for point in points_of(run):
            place = float(point["score"]) * POINTS, seconds_at(results, label, point)
            found.setdefault(int(point["step"]), []).append(place)
    return [
        _row(label, step, *zip(*places, strict=True), resolution=step_of_score)
        for step, places in sorted(found.items())
    ]


def _row(
    label: str, step: int, scores: tuple[float, ...], seconds: tuple[float, ...], *, resolution: float
) -> dict[str, Any]:
    mean = mean_interval(scores, resolution=resolution)
    return {
        "method": plain(label),
        "step": step,
        "seconds": fmean(seconds),
        "value": mean.mean,
        "low": mean.mean - (mean.half or 0.0),
        "high": mean.mean + (mean.half or 0.0),
        "score": plus_minus(mean.mean, mean.half),
        "runs": len(scores),
    }


def _caption(results: Results, axis: str, goal: float | None) -> str:
    caption = (
        "Mean over the final runs, at the learning rate in the table of results, on a fixed sample of validation data, "
        "with bands of 95 % t-intervals over seeds. The rates fall to zero over a run: a curve says how a run of this "
        "length goes, not what a shorter one would have reached."
    )
    if goal is not None:
        caption += f" Dashed: {plain(results.baseline)}'s median at the end, {significant(goal * POINTS, 3)} points."
    if axis == "seconds" and step_seconds(results, results.baseline) is not None:
        caption += " Seconds are the median step of the section on speed, of rows of another length, times the steps."
    elif axis == "seconds":
        caption += " Seconds are the runs' own, which shared the machine; scoring is not in them."
    return caption
