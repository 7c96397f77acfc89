"""The figure of differences at shared learning rates, and of what is left when each method is tuned."""

from __future__ import annotations

from typing import Any

import altair as alt

from reports.comparing import comparisons
from reports.drawing import Figure, compose, inline, log_axis, looks
from reports.metrics import primary_name
from reports.records import Results
from reports.rounding import plus_minus, rate
from reports.shared_rates import shared_rates
from reports.statistics import Difference
from reports.table import plain
from reports.tables import POINTS

BEYOND = 3.0  # points of the frame beyond the differences


def shared_rates_figure(results: Results) -> Figure | None:
    """Difference to the baseline against the shared rate, with its interval; beside it, what is left when tuned."""
    found = shared_rates(results)
    if not found:
        return None
    rows = [_datum(s.label, s.rate, s.difference, s.verdict) for s in found]
    tuned = [
        _datum(label, lr, c.difference, c.words)
        for label, c in comparisons(results, results.baseline).items()
        if c.difference is not None and (lr := results.chosen_lr(label)) is not None
    ]
    colour, shape = looks(results, rows + tuned)
    x = log_axis("rate", "learning rate", [s.rate for s in found], steps=(1, 2, 5))
    # Where a method collapses with some seeds only, the interval is wider than all differences: it is cut off.
    held = [0.0, *(row["value"] for row in rows), *(row[end] for row in tuned for end in ("low", "high"))]
    frame = alt.Scale(domain=[min(held) - BEYOND, max(held) + BEYOND], nice=True)
    title = f"{primary_name(results)} minus {plain(results.baseline)}'s (points)"
    y = alt.Y("value:Q", title=title, scale=frame)
    shown = [alt.Tooltip(f"{name}:N") for name in ("method", "rate", "difference", "verdict")]
    lines, own = alt.Chart(inline(rows)), alt.Chart(inline(tuned))
    low = alt.Y("low:Q", title="")
    layers = [
        alt.Chart(inline([{"zero": 0}])).mark_rule(strokeDash=[4, 4], color="currentColor").encode(y="zero:Q"),
        lines.mark_area(opacity=0.16, clip=True).encode(x=x, y=low, y2="high:Q", color=colour),
        lines.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=colour),
        lines.mark_point(filled=True, size=50, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=shown),
        own.mark_rule(strokeWidth=3).encode(x=x, y=low, y2="high:Q", color=colour),
        own.mark_point(size=190, strokeWidth=2, shape="circle").encode(x=x, y=y, color=colour, tooltip=shown),
    ]
    caption = (
        "Lines: both methods at the same rate, on validation data, with 95 % t-intervals. Rings with a bar: each "
        "method at its own best rate, where the ring stands, on test data with fresh seeds. Intervals "
        "that leave the frame are cut off: the table has them."
    )
    said = "; ".join(
        f"{row['method']} at {rate(s.rate)}: {row['difference']}" for row, s in zip(rows, found, strict=True)
    )
    left = "; ".join(f"{row['method']}: {row['difference']}" for row in tuned)
    words = f"Difference to {plain(results.baseline)} by shared learning rate: {said}. Tuned: {left}."
    return compose("shared_rates", "At one shared learning rate, and tuned", caption, words, layers)


def _datum(label: str, lr: float, difference: Difference, word: str) -> dict[str, Any]:
    mean, half = difference.mean * POINTS, (difference.half or 0.0) * POINTS
    return {
        "method": plain(label),
        "rate": lr,
        "value": mean,
        "low": mean - half,
        "high": mean + half,
        "difference": plus_minus(mean, half, signed=True),
        "verdict": word,
    }
