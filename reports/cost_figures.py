"""The figures about costs: a row a method, and on it the ratios of its time to that of a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from reports.after_merging import LATENCY
from reports.costs import INPUTS, SERVINGS, bounds, latency_of
from reports.drawing import Figure, Labelled, compose, inline, looks, tips
from reports.records import Json, Results
from reports.rounding import bracketed
from reports.table import plain
from reports.words import MANY

ROW, NARROW_ROW = 44, 28  # pixels of height for a method; where there are many


def speed_figure(results: Results) -> Figure | None:
    """Step time as a ratio to the baseline and to the floor, with intervals."""
    measured = (results.speed or {}).get("methods", {})
    kinds = {"ratio_baseline": f"against {plain(results.baseline)}", "ratio_floor": "against the floor"}
    labels = [label for label in results.labels if label in measured]
    rows = [ratio_datum(label, name, measured[label][kind]) for label in labels for kind, name in kinds.items()]
    if not rows:
        return None
    caption = (
        "Median ratios of whole training steps, formed within interleaved rounds, with 95 % intervals. 1 is dotted."
    )
    words = f"Step time ratios: {said(rows)}."
    layers = ratio_layers(results, rows, "step time, ratio", list(kinds.values()))
    return compose("speed", "Speed", caption, words, layers, height(rows))


def latency_figure(results: Results, given: str) -> Figure | None:
    """A forward pass of ``given`` (a key of INPUTS) as a ratio to the base: adapted, folded and merged."""
    found = [(k, s, latency_of(results, k, given, s)) for k in results.labels for s in SERVINGS]
    rows = [ratio_datum(label, serving, value["ratio"]) for label, serving, value in found if value]
    if not rows:
        return None
    same = alt.Chart(inline([{"from": 1 - LATENCY, "to": 1 + LATENCY}]))
    band = same.mark_rect(color="currentColor", opacity=0.1).encode(x=alt.X("from:Q", title=""), x2="to:Q")
    caption = (
        f"One forward pass of {INPUTS[given]}: median ratios to the base, formed within interleaved rounds, with 95 % "
        f"intervals. The band is ±{100 * LATENCY:.0f} % around the base. A method that cannot be folded or merged has "
        "no such point."
    )
    layers = [band, *ratio_layers(results, rows, "latency, ratio to the base", list(SERVINGS))]
    title = f"Latency of {INPUTS[given]}"
    return compose(f"latency_{given}", title, caption, f"{title}: {said(rows)}.", layers, height(rows))


def ratio_layers(
    results: Labelled, rows: Sequence[dict[str, Any]], title: str, references: list[str]
) -> list[alt.Chart]:
    """Points with their intervals, a row a method, a shape for each of ``references``; from ``ratio_datum``."""
    ordered = list(dict.fromkeys(row["method"] for row in rows))
    x = alt.X("value:Q", title=title, axis=alt.Axis(tickCount=6), scale=alt.Scale(zero=False, padding=12))
    y = alt.Y("method:N", title=None, sort=ordered, axis=alt.Axis(labelLimit=110, ticks=False, domain=False))
    offset = alt.YOffset("against:N", sort=references, scale=alt.Scale(paddingOuter=0.6))
    colour, _ = looks(results, rows, legend=False)
    one = alt.Chart(inline([{"one": 1}]))
    ratios = alt.Chart(inline(rows))
    return [
        one.mark_rule(color="currentColor", strokeDash=[2, 3], opacity=0.6).encode(x="one:Q"),
        ratios.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q", title=""), x2="high:Q", y=y, yOffset=offset, color=colour
        ),
        ratios.mark_point(filled=True, size=80, opacity=1).encode(
            x=x,
            y=y,
            yOffset=offset,
            color=colour,
            shape=_reference_shape(references),
            tooltip=tips("method:N", "against:N", "ratio:N"),
        ),
    ]


def _reference_shape(references: list[str]) -> alt.Shape:
    key = alt.Legend(orient="bottom", symbolFillColor="currentColor", symbolStrokeColor="currentColor")
    scale = alt.Scale(domain=references, range=["circle", "diamond", "triangle-up"][: len(references)])
    return alt.Shape("against:N", title=None, sort=references, scale=scale, legend=key)


def ratio_datum(label: str, against: str, ratio: Json) -> dict[str, Any]:
    """A measured ratio as the row of a figure."""
    median, low, high = bounds(ratio)
    shown = bracketed(median, low, high)
    return {"method": plain(label), "against": against, "value": median, "low": low, "high": high, "ratio": shown}


def said(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in words."""
    return "; ".join(f"{row['method']} {row['against']} {row['ratio']}" for row in rows)


def height(rows: Sequence[dict[str, Any]]) -> int:
    """Of the figure, in pixels."""
    methods = len({row["method"] for row in rows})
    return max(160, (ROW if methods <= MANY else NARROW_ROW) * methods)
