"""The figures across benchmarks: scores and differences side by side, the profile, and the ranking if there is one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import altair as alt

from reports.across.aggregates import ranking
from reports.across.folders import Across, benchmark
from reports.across.normalised import normalised
from reports.across.tables import score_cell
from reports.comparing import comparisons
from reports.drawing import Figure, compose, inline, looks, tips
from reports.rounding import plus_minus, significant
from reports.statistics import CriticalDifference, score_profile
from reports.statistics.across import TaskScores
from reports.table import Cell, plain
from reports.tables import POINTS

BEYOND = 3.0  # points which the frame may always leave beside the means
ROW, BETWEEN = 15, 16  # pixels: of a method within a benchmark, and between two benchmarks
Rows = list[dict[str, Any]]


def figures(across: Across) -> dict[str, Figure]:
    """Those for which there are data, by key, in the order of the page."""
    made = (scores_figure(across), differences_figure(across), profile_figure(across), ranking_figure(across))
    return {figure.key: figure for figure in made if figure is not None}


def scores_figure(across: Across) -> Figure | None:
    """Every method's score with its interval, benchmark by benchmark."""
    rows = [
        _datum(benchmark(results), label, score_cell(results, label))
        for results in across.results
        for label in across.labels
        if results.outcomes(label)
    ]
    caption = "Mean test score with 95 % t-intervals over seeds. Benchmarks have measures of their own: see the table."
    return _by_task(across, "scores", "Scores by benchmark", "test score (points)", caption, rows)


def differences_figure(across: Across) -> Figure | None:
    """Every method's paired difference to the baseline with its interval, benchmark by benchmark."""
    rows = []
    for results in across.results:
        found = comparisons(results, across.baseline)
        differences = {label: found[label].difference for label in across.labels if label != across.baseline}
        for label, d in differences.items():
            if d is not None:
                rows.append(_datum(benchmark(results), label, Cell(d.mean, d.low, d.high), signed=True))
    base = plain(across.baseline)
    caption = (
        f"Mean difference to {base}, paired by seed, with t-intervals as in the table of verdicts. They are not "
        "corrected for the number of methods; the verdicts are."
    )
    axis = f"test score minus {base}'s (points)"
    return _by_task(across, "differences", f"Difference to {base}", axis, caption, rows, zero=True)


def profile_figure(across: Across) -> Figure:
    """The share of runs above every normalised score."""
    scores = normalised(across)
    every = sorted({score for tasks in scores.values() for runs in tasks.values() for score in runs})
    pad = (every[-1] - every[0]) * 0.03 or 0.1
    rows: Rows = []
    for label, tasks in scores.items():
        # A method's share changes at its own scores only.
        places = sorted({every[0] - pad, *(score for runs in tasks.values() for score in runs), every[-1] + pad})
        shares = score_profile(tasks, places)
        rows += [{"method": plain(label), "score": p, "share": 100 * s} for p, s in zip(places, shares, strict=True)]
    colour, _ = looks(across.results[0], rows)
    lines = alt.Chart(inline(rows)).mark_line(interpolate="step-after", strokeWidth=2)
    x = alt.X("score:Q", title="normalised score", scale=alt.Scale(zero=False, nice=False))
    y = alt.Y("share:Q", title="runs above it (%)", scale=alt.Scale(domain=[0, 100]))
    caption = (
        "The share of a method's runs that score above each normalised score, every benchmark counting the same: a "
        "line that is higher everywhere is better everywhere. The lines have no intervals; where they cross, neither "
        "method is better as a whole."
    )
    said = "; ".join(f"half of {plain(label)}'s runs are above {_middle(tasks)}" for label, tasks in scores.items())
    words = f"Performance profile over {len(across.tasks)} benchmarks: {said}."
    return compose("profile", "Performance profile", caption, words, [lines.encode(x=x, y=y, color=colour)])


def ranking_figure(across: Across) -> Figure | None:
    """The critical-difference diagram: mean ranks, and bars over methods that cannot be told apart; None if refused."""
    found = ranking(across)
    if not isinstance(found, CriticalDifference):
        return None
    rows: Rows = [{"method": plain(label), "row": plain(label), "rank": rank} for label, rank in found.ranks.items()]
    bars: Rows = [
        {"row": "not told apart" + " " * i, "low": found.ranks[group[0]], "high": found.ranks[group[-1]]}
        for i, group in enumerate(found.cliques)
    ]
    order = [row["row"] for row in [*rows, *bars]]
    ends = alt.Scale(domain=[0.5, len(rows) + 0.5], nice=False)
    x = alt.X("rank:Q", title="mean rank (1 is best)", scale=ends, axis=alt.Axis(tickMinStep=1))
    y = alt.Y("row:N", title=None, sort=order, axis=alt.Axis(labelLimit=140, ticks=False, domain=False))
    colour, shape = looks(across.results[0], rows, legend=False)
    points, spans = alt.Chart(inline(rows)), alt.Chart(inline(bars))
    layers = [
        points.mark_point(filled=True, size=90, opacity=1).encode(
            x=x, y=y, color=colour, shape=shape, tooltip=tips("method:N", "rank:Q")
        ),
    ]
    if bars:
        bar = spans.mark_rule(strokeWidth=5, strokeCap="round", color="currentColor", opacity=0.7)
        layers.append(bar.encode(x=alt.X("low:Q", title=""), x2="high:Q", y=y))
    caption = (
        "Mean rank over the benchmarks. A bar below spans neighbouring methods of which no pair is told apart by "
        "Wilcoxon's signed-rank test over the benchmarks, Holm-corrected at 5 %."
    )
    said = "; ".join(f"{row['method']} {significant(row['rank'], 3)}" for row in rows)
    words = f"Critical-difference diagram, mean ranks: {said}. {len(bars)} groups are not told apart."
    return compose("ranking", "Critical-difference diagram", caption, words, layers, 60 + 26 * len(order))


def _datum(task: str, label: str, cell: Cell, signed: bool = False) -> dict[str, Any]:
    """A score or a difference in points, to be drawn and said."""
    value, half = float(cell.value or 0) * POINTS, None if cell.half is None else cell.half * POINTS
    ends = {"low": value - (half or 0), "high": value + (half or 0)}
    return {"benchmark": plain(task), "method": plain(label), "value": value, **ends} | {
        "points": plus_minus(value, half, signed)
    }


def _by_task(
    across: Across, key: str, title: str, axis: str, caption: str, rows: Rows, zero: bool = False
) -> Figure | None:
    """A block of rows a benchmark, a row a method, in the order of the tables."""
    if not rows:
        return None
    drawn = [plain(label) for label in across.labels if any(row["method"] == plain(label) for row in rows)]
    colour, shape = looks(across.results[0], rows)
    frame = _frame(rows)
    x = alt.X("value:Q", title=axis, scale=alt.Scale(domain=frame, nice=True))
    if any(row["low"] < frame[0] or row["high"] > frame[1] for row in rows):
        caption += " Intervals that leave the frame are cut off: the table has them."
    y = alt.Y(
        "benchmark:N",
        title=None,
        sort=list(map(plain, across.tasks)),
        scale=alt.Scale(paddingInner=0.25, paddingOuter=0.15),
        axis=alt.Axis(labelLimit=110, ticks=False, domain=False, grid=True, tickBand="extent"),
    )
    place = alt.YOffset("method:N", sort=drawn, scale=alt.Scale(paddingOuter=0.3))
    points = alt.Chart(inline(rows))
    layers = [
        points.mark_rule(strokeWidth=2, clip=True).encode(
            x=alt.X("low:Q", title=""), x2="high:Q", y=y, yOffset=place, color=colour
        ),
        points.mark_point(filled=True, size=70, opacity=1).encode(
            x=x, y=y, yOffset=place, color=colour, shape=shape, tooltip=tips("benchmark:N", "method:N", "points:N")
        ),
    ]
    if zero:
        line = alt.Chart(inline([{"value": 0}])).mark_rule(strokeDash=[4, 4], color="currentColor")
        layers.insert(0, line.encode(x=x))
    return compose(key, title, caption, f"{title}: {_said(rows)}.", layers, _height(across, len(drawn)))


def _frame(rows: Rows) -> list[float]:
    """Every mean, and intervals up to as far beyond as the means are apart: few seeds may give any width."""
    means = [row["value"] for row in rows]
    beyond = max(max(means) - min(means), BEYOND)
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    margin = BEYOND / 10  # a point on the frame would be cut in half
    return [max(low, min(means) - beyond) - margin, min(high, max(means) + beyond) + margin]


def _height(across: Across, methods: int) -> int:
    return len(across.tasks) * (ROW * methods + BETWEEN)


def _said(rows: Iterable[dict[str, Any]]) -> str:
    return "; ".join(f"{row['benchmark']}, {row['method']}: {row['points']} points" for row in rows)


def _middle(tasks: TaskScores) -> str:
    """The score which half of the runs exceed, every benchmark counting the same."""
    places = sorted({score for runs in tasks.values() for score in runs})
    shares = score_profile(tasks, places)
    return significant(next(place for place, share in zip(places, shares, strict=True) if share <= 0.5))
