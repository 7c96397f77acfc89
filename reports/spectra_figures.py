"""The figures about spectra: singular values of the updates, how alike their directions are, defects over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from reports.drawing import HEIGHT, Figure, compose, inline, log_ticks, looks, tips
from reports.records import Results
from reports.rounding import significant
from reports.spectra import between_methods, between_seeds, by_chance, directions_of, spectrum_of
from reports.table import plain

Rows = list[dict[str, Any]]
CELL = 26  # pixels a method gets in the square of similarities


def spectrum_figure(results: Results) -> Figure | None:
    """Singular values of each method's update, as shares of the largest, against their number."""
    rows: Rows = [
        {"method": plain(label), "number": number, "value": value}
        for label in results.labels
        for number, value in enumerate((spectrum_of(results, label).get("update") or {}).get("values") or (), start=1)
    ]
    if not rows:
        return None
    axis = alt.Axis(values=log_ticks([row["value"] for row in rows], (1,)), format="~g", labelOverlap=True)
    x = alt.X("number:Q", title="singular value, from the largest", axis=alt.Axis(format="d", tickMinStep=1))
    y = alt.Y("value:Q", title="share of the largest", scale=alt.Scale(type="log", nice=False), axis=axis)
    layers = _curves(results, rows, x, y, ("number:Q", "value:Q"), size=30)
    caption = (
        "Singular values of the update divided by the largest, the median over the layers, 64 at most; the vertical "
        "axis is logarithmic. A line ends where the update has no further direction."
    )
    ends = {row["method"]: row for row in rows}
    said = "; ".join(f"{name} has {row['number']}, the last {significant(row['value'])}" for name, row in ends.items())
    return compose("spectrum", "Spectrum of the update", caption, f"Singular values of the update: {said}.", layers)


def _curves(results: Results, rows: Rows, x: alt.X, y: alt.Y, told: Sequence[str], *, size: int) -> list[alt.Chart]:
    """A line a method with points on it, which tell what they are."""
    colour, shape = looks(results, rows)
    chart, shown = alt.Chart(inline(rows)), tips("method:N", *told)
    return [
        chart.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=colour),
        chart.mark_point(filled=True, size=size, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=shown),
    ]


def similarity_figure(results: Results) -> Figure | None:
    """A square of methods: how alike their updates' input directions are, and on the diagonal, those of their seeds."""
    labels = [label for label in results.labels if any(map(directions_of, results.of(label, "final")))]
    found = {(one, other): _alike(results, one, other) for one in labels for other in labels}
    rows: Rows = [
        {"method": plain(one), "other": plain(other), "value": value, "said": significant(value)}
        for (one, other), value in found.items()
        if value is not None
    ]
    if not rows:
        return None
    order = [plain(label) for label in labels]
    x = alt.X("other:N", title=None, sort=order, axis=alt.Axis(labelAngle=-60, labelLimit=110))
    y = alt.Y("method:N", title=None, sort=order, axis=alt.Axis(labelLimit=110))
    shade = alt.Color(
        "value:Q",
        title="similarity",
        scale=alt.Scale(scheme="viridis", domain=[0, 1]),  # even in lightness: also read in print and without colours
        legend=alt.Legend(orient="bottom", gradientLength=200),
    )
    chart = alt.Chart(inline(rows))
    layers = [chart.mark_rect().encode(x=x, y=y, color=shade, tooltip=tips("method:N", "other:N", "value:Q"))]
    if len(order) <= 12:  # more numbers than that cannot be read on a phone
        ink = alt.condition("datum.value > 0.6", alt.value("black"), alt.value("white"))
        layers.append(chart.mark_text(fontSize=11).encode(x=x, y=y, text="said:N", color=ink))
    chances = [c for one in labels for run in results.of(one, "final") if (c := by_chance(directions_of(run), "right"))]
    caption = (
        "How alike the leading input directions of two updates are, on a few layers: 1 where one span lies in the "
        f"other, 0 where they are orthogonal, about {significant(max(chances))} by chance. On the diagonal between the "
        "final seeds of one method; elsewhere between two methods with the same seed."
    )
    own = "; ".join(f"{row['method']} {row['said']}" for row in rows if row["method"] == row["other"])
    words = f"Similarity of the updates' directions between seeds: {own or 'one seed only'}."
    return compose("similarity", "Similarity of the updates", caption, words, layers, max(160, CELL * len(order)))


def _alike(results: Results, one: str, other: str) -> float | None:
    if one == other:
        return between_seeds(results, one, "right")
    return between_methods(results, one, other, "right")


def defects_figure(results: Results) -> Figure | None:
    """Distance from orthonormal columns over training, of the methods that constrain a factor."""
    rows: Rows = [
        {"method": plain(label), "step": row["step"], "value": row["largest"], "mean": row["mean"]}
        for label in results.labels
        for row in spectrum_of(results, label).get("defects") or ()
    ]
    drawn = [row for row in rows if row["value"] > 0]
    if not drawn:
        return None
    axis = alt.Axis(values=log_ticks([row["value"] for row in drawn], (1,)), format="~e", labelOverlap=True)
    x = alt.X("step:Q", title="step", axis=alt.Axis(format="d", tickMinStep=1))
    y = alt.Y("value:Q", title="largest defect", scale=alt.Scale(type="log", nice=False), axis=axis)
    layers = _curves(results, drawn, x, y, ("step:Q", "value:Q", "mean:Q"), size=50)
    caption = (
        "The largest distance of a constrained factor X with r columns from orthonormal ones, ||XᵀX − I|| / √r, over "
        "all layers, in the first final run. The vertical axis is logarithmic; a distance of exactly 0 has no place on "
        "it."
    )
    ends = {row["method"]: row for row in drawn}
    said = "; ".join(f"{name} {significant(row['value'])} after {row['step']} steps" for name, row in ends.items())
    return compose("defects", "Orthogonality defect over training", caption, f"Largest defect: {said}.", layers, HEIGHT)
