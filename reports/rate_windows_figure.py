"""The figure of usable learning rates: a bar a method."""

from __future__ import annotations

from typing import Any

import altair as alt

from reports.drawing import Figure, compose, inline, log_axis, looks, tips
from reports.rate_windows import SHARE, Window, ends_inside, windows
from reports.records import Results
from reports.rounding import percent, rate, significant
from reports.table import plain


def rate_windows_figure(results: Results) -> Figure | None:
    """Each method's window of usable rates with the rate of its final runs; None where no window ends in its grid."""
    found = windows(results)
    if not ends_inside(found):
        return None
    rows = [_datum(results, label, window) for label, window in found.items()]
    open_ends = [
        {"method": row["method"], "rate": row[end], "way": 90 if end == "high" else -90}
        for row in rows
        for end in ("low", "high")
        if row[f"cut_{end}"]
    ]
    colour, shape = looks(results, rows, legend=False)
    x = log_axis("low", "learning rate", [row[end] for row in rows for end in ("low", "high")], steps=(1, 3))
    y = alt.Y("method:N", title=None, sort=None, axis=alt.Axis(labelLimit=140, ticks=False, domain=False))
    bars = alt.Chart(inline(rows))
    shown = tips("method:N", "window:N", "decades:N")
    layers = [bars.mark_rule(strokeWidth=5, opacity=0.75).encode(x=x, x2="high:Q", y=y, color=colour, tooltip=shown)]
    chosen = alt.Chart(inline([row for row in rows if row["rate"]]))
    at = alt.X("rate:Q", title="")
    layers.append(chosen.mark_point(filled=True, size=90, opacity=1).encode(x=at, y=y, color=colour, shape=shape))
    if open_ends:
        arrows = alt.Chart(inline(open_ends)).mark_point(shape="triangle", size=70, filled=True, opacity=1)
        angle = alt.Angle("way:Q", scale=None)
        layers.append(arrows.encode(x=at, y=y, color=colour, angle=angle))
    caption = (
        f"Where a method keeps {percent(SHARE)} of its best gain over no training, by the mean validation scores of "
        "its search; the symbol is at the rate of its final runs. An arrowhead: the searched grid ends there, and the "
        "window may be wider."
    )
    said = "; ".join(f"{row['method']} {row['window']} ({row['decades']} decades)" for row in rows)
    height = max(110, 28 * len(rows))
    return compose("rate_windows", "Usable learning rates", caption, f"Usable rates: {said}.", layers, height)


def _datum(results: Results, label: str, window: Window) -> dict[str, Any]:
    whole = window.whole
    least = "at least " if whole.cut_low or whole.cut_high else ""
    return {
        "method": plain(label),
        "low": whole.low,
        "high": whole.high,
        "cut_low": whole.cut_low,
        "cut_high": whole.cut_high,
        "rate": results.chosen_lr(label),
        "window": f"{rate(whole.low)} to {rate(whole.high)}",
        "decades": f"{least}{significant(whole.decades)}",
    }
