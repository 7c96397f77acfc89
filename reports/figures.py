"""The figures: one Vega-Lite definition each, for the interactive page and for static SVG alike."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import altair as alt

from reports.budget_figures import expected_seconds_figure, expected_trials_figure, seconds_figure
from reports.cost_figures import latency_figure, speed_figure
from reports.curve_figures import curve_seconds_figure, curve_steps_figure
from reports.drawing import Figure, compose, inline, log_axis, looks, score_axis, tips
from reports.merging_figures import drift_figure, quantised_figure, survival_error_figure, survival_figure
from reports.metrics import capitalised, primary_name
from reports.rate_figures import rates_figure
from reports.rate_windows_figure import rate_windows_figure
from reports.records import Results
from reports.rounding import plus_minus
from reports.shared_rates_figure import shared_rates_figure
from reports.spectra_figures import defects_figure, similarity_figure, spectrum_figure
from reports.table import plain
from reports.tables import POINTS, mean_cell

GAP = 0.02  # share of the axis between two methods in the score figure
MANY = 12  # methods up to which they can stand side by side at one parameter count without leaving their places


def figures(results: Results) -> dict[str, Figure]:
    """Those for which there are data, by key, in the order of the page."""
    made = (
        score_figure(results),
        seconds_figure(results),
        rates_figure(results),
        rate_windows_figure(results),
        shared_rates_figure(results),
        expected_trials_figure(results),
        expected_seconds_figure(results),
        curve_steps_figure(results),
        curve_seconds_figure(results),
        survival_figure(results),
        survival_error_figure(results),
        drift_figure(results),
        quantised_figure(results),
        spectrum_figure(results),
        similarity_figure(results),
        defects_figure(results),
        speed_figure(results),
        latency_figure(results, "token"),
        latency_figure(results, "batch"),
    )
    return {figure.key: figure for figure in made if figure is not None}


def score_figure(results: Results) -> Figure | None:
    """Score with its interval against the number of trainable parameters (logarithmic); of many, a row a method."""
    scored = [_score_datum(results, label) for label in results.labels if results.outcomes(label)]
    if len(scored) > MANY:
        return _ranked_figure(results, scored)
    rows = [row for row in scored if row["parameters"] is not None]
    counted = _side_by_side([row for row in rows if row["parameters"]])
    if not counted:
        return None
    x = log_axis("drawn", "trainable parameters (adapter)", [row["parameters"] for row in counted], steps=(1, 2, 5))
    y, bounds = score_axis(f"{primary_name(results)} (points)"), {"y": alt.Y("low:Q", title=""), "y2": "high:Q"}
    (colour, shape), shown = looks(results, rows), tips("method:N", "parameters:Q", f"{results.metric}:N")
    # Zero has no place on a logarithmic axis: a method without parameters is a level to beat.
    level = alt.Chart(inline([row for row in rows if row["parameters"] == 0]))
    points = alt.Chart(inline(counted))
    layers = [
        level.mark_rect(opacity=0.12).encode(color=colour, **bounds),
        level.mark_rule(strokeDash=[5, 4], strokeWidth=1.5).encode(y=y, color=colour, tooltip=shown),
        points.mark_rule(strokeWidth=2).encode(x=x, color=colour, **bounds),
        points.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, tooltip=shown, color=colour, shape=shape),
    ]
    caption = (
        f"Mean test {primary_name(results)} with 95 % t-intervals over seeds. A method without trainable parameters of "
        "its own is drawn as a dashed line with its interval as a band; methods with nearly the same count stand side "
        "by side."
    )
    said = "; ".join(
        f"{row['method']} {row[results.metric]} points with {row['parameters']:,} parameters" for row in rows
    )
    words = f"{capitalised(primary_name(results))} against trainable parameters: {said}."
    return compose("score", "Score against parameters", caption, words, layers)


def _ranked_figure(results: Results, rows: list[dict[str, Any]]) -> Figure:
    """A row a method, best mean first; the baseline's mean is dotted."""
    ordered = [row["method"] for row in sorted(rows, key=lambda row: -row["value"])]
    x = alt.X("value:Q", title=f"{primary_name(results)} (points)", scale=alt.Scale(zero=False, padding=14))
    y = alt.Y("method:N", title=None, sort=ordered, axis=alt.Axis(labelLimit=140, ticks=False, domain=False))
    colour, shape = looks(results, rows, legend=False)
    points = alt.Chart(inline(rows))
    baseline = [row for row in rows if row["method"] == plain(results.baseline)]
    layers = [
        alt.Chart(inline(baseline)).mark_rule(color="currentColor", strokeDash=[2, 3], opacity=0.6).encode(x=x),
        points.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=""), x2="high:Q", y=y, color=colour),
        points.mark_point(filled=True, size=80, opacity=1).encode(
            x=x, y=y, color=colour, shape=shape, tooltip=tips("method:N", "parameters:Q", f"{results.metric}:N")
        ),
    ]
    caption = (
        f"Mean test {primary_name(results)} with 95 % t-intervals over seeds, best mean first; that of "
        f"{plain(results.baseline)} is dotted. "
        "An order of means is not a ranking: the table says which differences are beyond their interval."
    )
    said = "; ".join(f"{row['method']} {row[results.metric]} points" for row in rows)
    height = max(160, 22 * len(rows))
    return compose(
        "score", "Score", caption, f"{capitalised(primary_name(results))} of each method: {said}.", layers, height
    )


def _score_datum(results: Results, label: str) -> dict[str, Any]:
    cell = mean_cell(results, label, "primary")
    mean = float(cell.value or 0) * POINTS
    half = None if cell.half is None else cell.half * POINTS
    return {
        "method": plain(label),
        "parameters": results.parameters(label).get("trainable"),
        "value": mean,
        "low": mean - (half or 0),
        "high": mean + (half or 0),
        results.metric: plus_minus(mean, half),
    }


def _side_by_side(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds where to draw each count, so that intervals of methods of nearly equal size do not cover each other.

    On the logarithmic axis neighbours stand at least GAP of its length apart, at the least squared distance from their
    true places: isotonic regression, by pooling adjacent violators.
    """
    ordered = sorted(rows, key=lambda row: row["parameters"])
    places = [math.log10(row["parameters"]) for row in ordered]
    gap = GAP * max(places[-1] - places[0], 0.5) if places else 0.0
    blocks: list[list[float]] = []
    for i, place in enumerate(places):
        blocks.append([place - i * gap])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    levels = [fmean(block) for block in blocks for _ in block]
    return [
        row | {"drawn": 10 ** (level + i * gap)} for i, (row, level) in enumerate(zip(ordered, levels, strict=True))
    ]
