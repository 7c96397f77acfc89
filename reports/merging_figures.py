"""The figures about merging: what survives rounding, how weights drift, and starts on a quantised base.

What is the same for nearly every method is drawn as its median over the methods, with a band of the middle 80 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

import altair as alt

from reports.drawing import HEIGHT, Figure, category, compose, dashes, inline, log_axis, log_ticks, tips
from reports.merging import EXACT, FORMATS, ROUNDINGS, formats, on_layers, values
from reports.records import Results
from reports.rounding import significant
from reports.starts import STARTS, quantised_rows
from reports.table import plain
from reports.weights import drift_of

Rows = list[dict[str, Any]]
READABLE = 0.09  # decades between two names of methods, below which the second is left to its tooltip


def survival_figure(results: Results) -> Figure | None:
    """The share of the update that is left, against its size relative to the weights."""
    y = alt.Y("value:Q", title="kept of the update (%)", scale=alt.Scale(zero=True))
    caption = (
        "Every method's trained update, scaled to each size: the share of it that is left in the stored weights, the "
        "median over the methods with the middle 80 % as a band. Points: each method at the size that it has trained "
        "to. Stochastic rounding keeps an update of any size on average; the next figure has its price."
    )
    return _survival(results, "survival", "What survives rounding", "kept", 100.0, y, caption)


def survival_error_figure(results: Results) -> Figure | None:
    """The error of the stored update, against its size relative to the weights."""
    found = [v for row in _curve(results, "error", 1.0) for v in (row["low"], row["high"]) if v > 0]
    if not found:
        return None
    axis = alt.Axis(values=log_ticks(found, (1,)), format="~g", labelOverlap=True)
    y = alt.Y("value:Q", title="error of the update", scale=alt.Scale(type="log", nice=False), axis=axis)
    caption = (
        "The norm of what rounding adds to the update or takes from it, divided by that of the update: above 1 the "
        "stored weights hold more rounding than update. Rounding to nearest ends at 1, where nothing of it is left."
    )
    return _survival(results, "survival_error", "Error of the stored update", "error", 1.0, y, caption)


def _survival(results: Results, key: str, title: str, kind: str, scale: float, y: alt.Y, caption: str) -> Figure | None:
    curve, trained = _curve(results, kind, scale), _trained(results, kind, scale)
    if not curve:
        return None
    x = log_axis("size", "size of the update, relative to the weights", [row["size"] for row in curve], steps=(1,))
    colour, dash = category("format", _order(curve, "format"), FORMATS), dashes("rounding", list(ROUNDINGS))
    bounds = {"y": alt.Y("low:Q", title=""), "y2": "high:Q"}
    lines, shown = alt.Chart(inline(curve)), tips("format:N", "rounding:N", "size:Q", "value:Q", "methods:Q")
    layers = [
        lines.mark_area(opacity=0.15).encode(x=x, color=colour, detail="rounding:N", **bounds),
        lines.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash, tooltip=shown),
        *_marks(trained, x, y, colour),
    ]
    caption = f"{caption} {on_layers(results, 'survival')}".rstrip()
    return compose(key, title, caption, f"{title}: {_said(curve)}.", layers, HEIGHT + 60)


def _marks(trained: Rows, x: alt.X, y: alt.Y, colour: alt.Color) -> list[alt.Chart]:
    """Each method on the curves, and its size on the axis, named where there is room."""
    if not trained:
        return []
    sizes = [row for row in trained if row["format"] == trained[0]["format"]]
    sizes = list({row["method"]: row for row in trained}.values())
    points, ticks = alt.Chart(inline(trained)), alt.Chart(inline(sizes))
    names = alt.Chart(inline(_readable(sizes)))
    foot = alt.value(HEIGHT + 60)
    return [
        points.mark_point(filled=True, size=28, opacity=1).encode(
            x=x, y=y, color=colour, tooltip=tips("method:N", "format:N", "size:Q", "value:Q")
        ),
        ticks.mark_tick(color="currentColor", size=9, thickness=1.5, yOffset=-5).encode(
            x=x, y=foot, tooltip=tips("method:N", "size:Q")
        ),
        names.mark_text(color="currentColor", angle=270, align="left", fontSize=10, dx=12, baseline="middle").encode(
            x=x, y=foot, text="method:N"
        ),
    ]


def _readable(rows: Rows) -> Rows:
    """From small to large, those with room before them."""
    kept: Rows = []
    for row in sorted(rows, key=lambda row: row["size"]):
        if not kept or math.log10(row["size"] / kept[-1]["size"]) > READABLE:
            kept.append(row)
    return kept


def _curve(results: Results, kind: str, scale: float) -> Rows:
    """Median and band over the methods for each format, rounding and size; without float32, which loses nothing."""
    groups: dict[tuple[str, str, float], list[float]] = {}
    for label in results.labels:
        for point in results.merging(label).get("survival") or ():
            if point["format"] != EXACT and point.get(kind) is not None:
                place = (point["format"], point["rounding"], float(f"{point['relative_size']:.4g}"))
                groups.setdefault(place, []).append(scale * point[kind])
    return [
        {"format": name, "rounding": rounding, "size": size, **_middle(found)}
        for (name, rounding, size), found in groups.items()
        if kind == "kept" or min(found) > 0
    ]


def _middle(found: Sequence[float]) -> dict[str, float]:
    tenths = quantiles(found, n=10, method="inclusive") if len(found) > 1 else [found[0]]
    return {"value": median(found), "low": tenths[0], "high": tenths[-1], "methods": len(found)}


def _trained(results: Results, kind: str, scale: float) -> Rows:
    field = {"kept": "kept", "error": "update_error"}[kind]
    return [
        {"method": plain(label), "format": name, "size": size, "value": scale * value}
        for label in results.labels
        if (size := results.merging(label).get("relative_size"))
        for name in formats(results)
        if name != EXACT and (value := values(results, label, name).get(field)) is not None
        if kind == "kept" or value > 0
    ]


def _order(rows: Iterable[Mapping[str, Any]], field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in rows))


def _said(curve: Rows) -> str:
    """Each line in words, at its smallest and largest size and in between."""
    lines: dict[tuple[str, str], Rows] = {}
    for row in curve:
        lines.setdefault((row["format"], row["rounding"]), []).append(row)
    parts = []
    for (name, rounding), rows in lines.items():
        ends = (rows[0], rows[len(rows) // 2], rows[-1])
        points = (f"{significant(row['value'])} at {significant(row['size'])}" for row in ends)
        parts.append(f"{name} {rounding} {', '.join(points)}")
    return "; ".join(parts)


def drift_figure(results: Results) -> Figure | None:
    """Distance of the weights from where they were against merge cycles; restoring too, where it leaves any."""
    rows: Rows = [
        {"method": plain(label), "format": name, "way": way, "cycles": cycles, "value": value}
        for label in results.labels
        for name in formats(results, "drift")
        for way in ("subtraction", "restoring")
        for cycles, value in drift_of(results, label, name, way).items()
    ]
    drawn = [row for row in rows if row["value"] > 0]
    if not drawn:
        return None
    x = log_axis("cycles", "merge and unmerge cycles", [row["cycles"] for row in drawn], steps=(1,))
    axis = alt.Axis(values=log_ticks([row["value"] for row in drawn], (1,)), format="~e", labelOverlap=True)
    y = alt.Y("value:Q", title="relative distance of the weights", scale=alt.Scale(type="log", nice=False), axis=axis)
    colour, dash = category("format", _order(drawn, "format"), FORMATS), dashes("way", _order(drawn, "way"))
    middle = alt.Chart(inline(_medians(drawn)))
    layers = [
        alt.Chart(inline(drawn))
        .mark_line(strokeWidth=1, opacity=0.3)
        .encode(x=x, y=y, color=colour, strokeDash=dash, detail="method:N"),
        middle.mark_line(strokeWidth=2.5).encode(x=x, y=y, color=colour, strokeDash=dash),
        middle.mark_point(filled=True, size=60, opacity=1).encode(
            x=x, y=y, color=colour, tooltip=tips("format:N", "way:N", "cycles:Q", "value:Q")
        ),
    ]
    restored = [row["value"] for row in rows if row["way"] == "restoring"]
    sentences = ("Thin: each method; thick: their median. Both axes are logarithmic.", on_layers(results, "drift"))
    caption = " ".join(filter(None, (*sentences, _restoring(restored))))
    said = "; ".join(f"{r['format']} {r['way']} {significant(r['value'])} after {r['cycles']}" for r in _medians(drawn))
    return compose("drift", "Drift over merge cycles", caption, f"Drift: {said}. {_restoring(restored)}", layers)


def _restoring(distances: Sequence[float]) -> str:
    if not distances:
        return "Restoring was not measured."
    if not any(distances):
        return "Restoring leaves a distance of exactly 0 for every method and format, which has no place on this axis."
    return f"Restoring leaves {significant(max(distances))} at most."


def _medians(rows: Rows) -> Rows:
    groups: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        groups.setdefault((row["format"], row["way"], row["cycles"]), []).append(row["value"])
    return [
        {"format": name, "way": way, "cycles": cycles, "value": median(found)}
        for (name, way, cycles), found in groups.items()
    ]


def quantised_figure(results: Results) -> Figure | None:
    """Error of the logits at the start on a quantised base, against the rank of the pair."""
    rows: Rows = [
        {"format": name, "rank": rank, "start": title, "value": errors[kind]["output_error"]}
        for name, rank, errors in quantised_rows(results)
        for kind, title in STARTS.items()
        if kind in errors and errors[kind]["output_error"] > 0
    ]
    if not rows:
        return None
    ranks = sorted({row["rank"] for row in rows})
    places = alt.Scale(type="log", nice=False, padding=20)
    x = alt.X("rank:Q", title="rank", axis=alt.Axis(values=ranks, format="d"), scale=places)
    axis = alt.Axis(values=log_ticks([row["value"] for row in rows], (1, 3)), format="~g", labelOverlap=True)
    y = alt.Y("value:Q", title="error of the logits", scale=alt.Scale(type="log", nice=False, padding=14), axis=axis)
    colour, dash = category("start", list(STARTS.values())), dashes("format", _order(rows, "format"))
    chart = alt.Chart(inline(rows))
    layers = [
        chart.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash),
        chart.mark_point(filled=True, size=60, opacity=1).encode(
            x=x, y=y, color=colour, tooltip=tips("start:N", "format:N", "rank:Q", "value:Q")
        ),
    ]
    caption = (
        "Distance of the logits from those of the float32 base, relative to them, before any training. QLoRA starts "
        "with a pair of zero, so its error is that of quantising alone at every rank."
    )
    said = "; ".join(f"{r['start']} {r['format']} rank {r['rank']} {significant(r['value'])}" for r in rows)
    return compose("quantised", "Starts on a quantised base", caption, f"Error of the logits: {said}.", layers)
