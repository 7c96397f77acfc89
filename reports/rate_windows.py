"""How forgiving each method is of its learning rate: the width of the window in which it is usable."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import fmean

from reports.metrics import primary_name
from reports.rates import searched
from reports.records import Results, ScoreRun
from reports.rounding import percent, plus_minus, significant
from reports.statistics import Difference, Estimate, RateWindow, holm, mean_interval, paired_difference, rate_window
from reports.table import EMPTY, Cell, Column, Table, count, learning_rate, with_half
from reports.tables import EDGE, METHOD, POINTS
from reports.words import MANY, in_words

SHARE = 0.9  # of the best gain over no training
FEWEST = 3  # rates, below which there is no inside of a grid
CUT_NOTE = "Here the searched grid ends: the window may be wider."
NOTES = ((EDGE, CUT_NOTE),)


@dataclass(frozen=True)
class Window:
    """A method's window by its mean scores, and by those of every seed that tried all its rates: seed -> window."""

    whole: RateWindow
    each: dict[int, RateWindow]
    rates: int

    @property
    def cut(self) -> bool:
        """Does the grid end within the window of some seed, or of the mean?"""
        return any(w.cut_low or w.cut_high for w in (self.whole, *self.each.values()))

    @property
    def decades(self) -> dict[int, float]:
        """seed -> decades, at least where the grid cuts a window off."""
        return {seed: window.decades for seed, window in self.each.items()}


def untrained(results: Results) -> float:
    """The validation score of no training: of always giving the most common answer; 0 where that has no score.

    A rate at which a run diverged has this score.
    """
    scored = (run.measures["score"] for run in results.runs if run.stage == "search" and run.status == "done")
    gold: list[int] = next((score["items"]["gold"] for score in scored if "items" in score), [])
    if results.metric != "accuracy" or not gold:
        return 0.0
    return Counter(gold).most_common(1)[0][1] / len(gold)


def windows(results: Results) -> dict[str, Window]:
    """label -> window, of the methods which tried three rates or more and gained anything by training.

    None where trials differ in more than the rate: what a score is due to is not known of a rate alone. Nor where only
    the best rates of a race ran in full: of the others nobody knows whether they were usable.
    """
    if results.space or (results.racing and not results.audited):
        return {}
    floor = untrained(results)
    found = {label: _window(searched(results, label), floor) for label in results.labels}
    return {label: window for label, window in found.items() if window is not None}


def _window(rates: dict[float, list[ScoreRun]], floor: float) -> Window | None:
    gains = {lr: {run.seed: _gain(run, floor) for run in runs} for lr, runs in rates.items()}
    whole = _of({lr: fmean(seeds.values()) for lr, seeds in gains.items()})
    if whole is None:
        return None
    common = sorted(set.intersection(*(set(seeds) for seeds in gains.values())), reverse=True)
    each = {seed: one for seed in common if (one := _of({lr: seeds[seed] for lr, seeds in gains.items()})) is not None}
    return Window(whole, each, len(rates))


def _gain(run: ScoreRun, floor: float) -> float:
    score = run.score("primary")
    return 0.0 if score is None else score - floor


def _of(gains: dict[float, float]) -> RateWindow | None:
    if len(gains) < FEWEST or max(gains.values()) <= 0:
        return None
    return rate_window(list(gains), list(gains.values()), SHARE)


def ends_inside(found: dict[str, Window]) -> bool:
    """Does some window end within its grid? Otherwise the windows say what was searched, and nothing else."""
    return any(not (w.whole.cut_low and w.whole.cut_high) for w in found.values())


def rate_windows_table(results: Results) -> Table | None:
    """A row a method; None where every window is as wide as the grid that was searched."""
    found = windows(results)
    if not ends_inside(found):
        return None
    columns = (
        METHOD,
        Column("low", "from", learning_rate, place="terminal"),
        Column("high", "to", learning_rate, place="terminal"),
        Column("decades", "decades", with_half(), place="terminal", interval=True),
        Column("rates", "rates tried", count),
        Column("seeds", "seeds a rate", count),
    )
    rows = tuple(_row(label, window) for label, window in found.items())
    return Table("rate_windows", "Usable learning rates", _caption(results), columns, rows, NOTES)


def _row(label: str, window: Window) -> tuple[Cell, ...]:
    low, high = (EDGE if cut else "" for cut in (window.whole.cut_low, window.whole.cut_high))
    seeds = len(window.each)
    wide = mean_interval(list(window.decades.values())) if seeds else Estimate(window.whole.decades, None, 0)
    decades = Cell(wide.mean, wide.low, wide.high, mark=EDGE if window.cut else "")
    ends = Cell(window.whole.low, mark=low), Cell(window.whole.high, mark=high)
    return Cell(label), *ends, decades, Cell(window.rates), Cell(seeds) if seeds else EMPTY


def _caption(results: Results) -> str:
    return (
        f"The rates around the best one at which a method keeps {percent(SHARE)} of its best gain in validation "
        f"{primary_name(results)} over no training ({significant(untrained(results) * POINTS, 3)} points: the most "
        "common answer to everything), which is also what a rate counts as at which a run diverged. From and to are by "
        "mean scores, linear in the logarithm of the rate between those that were tried. With several seeds a rate, "
        "decades are the mean over the windows that each seed has by itself, with its 95 % t-interval. A wide window "
        "forgives a rate that was not tuned."
    )


def clear_differences(results: Results) -> dict[str, Difference]:
    """label -> decades more than the baseline has, where that is beyond doubt.

    Windows are paired by seed and Holm-corrected at 5 %. A window that the grid cuts off for some seed is wider than
    what was measured of it: it may be the wider one of a pair, never the narrower one.
    """
    found = windows(results)
    base = found.get(results.baseline)
    if base is None:
        return {}
    differences = {label: paired_difference(w.decades, base.decades) for label, w in found.items() if w is not base}
    known = {label: d for label, d in differences.items() if d is not None}
    adjusted = holm({label: d.p for label, d in known.items()})
    narrow = {label: base if d.mean > 0 else found[label] for label, d in known.items()}
    return {k: d for k, d in known.items() if adjusted[k] < 0.05 and not narrow[k].cut}


def rate_windows_sentence(results: Results) -> str:
    """Which methods need a more, or a less, exact learning rate than the baseline; empty unless that is clear."""
    found = clear_differences(results)
    parts = []
    for word, sign in (("wider", 1), ("narrower", -1)):
        those = {label: d for label, d in found.items() if d.mean * sign > 0}
        if not those:
            continue
        said = (f"{label} ({plus_minus(d.mean, d.half, signed=True)} decades)" for label, d in those.items())
        names = list(said) if len(those) <= MANY else list(those)
        parts.append(f"{word} for {in_words(names, 'methods')}")
    if not parts:
        return ""
    return f"The window of usable learning rates is {' and '.join(parts)} than for {results.baseline}."
