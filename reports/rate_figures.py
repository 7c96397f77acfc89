"""The figure about learning rates: what each method scores at every rate that was searched."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import altair as alt

from reports.drawing import Figure, compose, inline, log_axis, looks, score_axis, tips
from reports.metrics import primary_name
from reports.rates import Rates, scores, searched
from reports.records import Results
from reports.rounding import rate
from reports.table import plain

CROSS = "M-0.8,-0.8L0.8,0.8M-0.8,0.8L0.8,-0.8"  # drawn, not a character: fonts differ in what they have


def rates_figure(results: Results) -> Figure | None:
    """Validation score against the learning rate, a line a method; chosen and diverged runs are marked.

    Where a rate was run with several seeds the line is their mean, with a band from the lowest to the highest.
    """
    found = {label: searched(results, label) for label in results.labels}
    means = [row for label in found for row in _means(results, label, found[label])]
    if not means or max(map(len, found.values())) < 2:  # nothing was chosen among single rates
        return None
    lowest, several = min(row["low"] for row in means), any(row["seeds"] > 1 for row in means)
    lost = [
        {"method": plain(label), "rate": lr, "value": lowest, "diverged": diverged}
        for label, rates in found.items()
        for lr, runs in rates.items()
        if (diverged := sum(run.status == "diverged" for run in runs))
    ]
    points = [
        {"method": plain(label), "rate": lr, "value": score}
        for label, rates in found.items()
        for lr, runs in rates.items()
        for score in (scores(runs) if len(runs) > 1 else ())
    ]
    x = log_axis("rate", "learning rate", [lr for rates in found.values() for lr in rates], steps=(1, 3))
    layers = _layers(results, x, means, points, lost)
    caption = _caption(results, several, bool(lost))
    said = "; ".join(f"{row['method']} {rate(row['rate'])}: {row['value']:.1f}" for row in means)
    return compose(
        "rates", "Learning rates", caption, f"Validation {primary_name(results)} by learning rate: {said}.", layers
    )


def _means(results: Results, label: str, rates: Rates) -> list[dict[str, Any]]:
    chosen = results.chosen_lr(label)
    return [
        {
            "method": plain(label),
            "rate": lr,
            "value": fmean(found),
            "low": min(found),
            "high": max(found),
            "seeds": len(found),
            "chosen": lr == chosen,
        }
        for lr, runs in rates.items()
        if (found := scores(runs))
    ]


def _layers(
    results: Results,
    x: alt.X,
    means: list[dict[str, Any]],
    points: list[dict[str, Any]],
    lost: list[dict[str, Any]],
) -> list[alt.Chart]:
    y = score_axis(f"validation {primary_name(results)} (points)")
    colour, shape = looks(results, means + lost)
    shown = [
        *tips("method:N", "rate:Q"),
        alt.Tooltip("value:Q", format=".1f", title=primary_name(results)),
        *tips("seeds:Q"),
    ]
    lines = alt.Chart(inline(means))
    chosen = lines.transform_filter("datum.chosen")
    layers = [] if results.space else [lines.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=colour)]
    layers += [
        lines.mark_point(filled=True, size=50, opacity=1).encode(x=x, y=y, tooltip=shown, color=colour, shape=shape),
        chosen.mark_point(size=190, strokeWidth=2, shape="circle").encode(x=x, y=y, color=colour),
    ]
    if points and not results.space:
        band = lines.mark_area(opacity=0.16).encode(x=x, y=alt.Y("low:Q", title=""), y2="high:Q", color=colour)
        single = alt.Chart(inline(points)).mark_point(filled=True, size=14, opacity=0.55)
        layers = [band, single.encode(x=x, y=y, color=colour), *layers]
    if lost:
        crosses = alt.Chart(inline(lost)).mark_point(shape=CROSS, size=110, strokeWidth=2.5)
        layers.append(crosses.encode(x=x, y=y, color=colour, tooltip=tips("method:N", "rate:Q", "diverged:Q")))
    return layers


def _caption(results: Results, several: bool, lost: bool) -> str:
    caption = "One validation run a rate."
    if results.space:
        caption = "Trials differ in more than the rate, so no line joins them."
    elif several:
        caption = "Mean validation score; small points are single seeds, the band reaches from the lowest to the "
        caption += "highest of them: it shows their spread, it is no confidence interval."
    caption += " Runs of the race that were shortened are left out." if results.racing else ""
    caption += " A ring marks the rate that the final runs use"
    return caption + ("; ✕ at the bottom marks a rate at which a run diverged." if lost else ".")
