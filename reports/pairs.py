"""Every pair of methods with its verdict."""

from __future__ import annotations

from reports.comparing import level, pair_comparisons
from reports.metrics import capitalised, primary_name
from reports.new_items import Held, held
from reports.records import Results
from reports.rounding import percent
from reports.statistics import Comparison, Pair
from reports.table import EMPTY, Cell, Column, Table, count, text, with_half
from reports.tables import METHOD, POINTS, verdict_words

THREE_QUESTIONS = (
    "Three questions are not the same. Would it come out again with new seeds on these questions? That is the "
    "difference and its verdict. Would these very weights do so on new questions? What merging does to a score is "
    "judged like that. Would it come out again with new seeds on new questions of this kind? That is the difference "
    "with new questions, whose interval takes in what changes with the seed and what changes with the question; a "
    "verdict holds there if it is beyond that interval, corrected for all pairs, and is open otherwise."
)


def pairs_table(results: Results) -> Table:
    """A row for each pair of methods that share two seeds or more; without rows where there are none."""
    found = {pair: c for pair, c in pair_comparisons(results).items() if c.difference is not None}
    columns = (
        METHOD,
        Column("against", "against", text, align="left", place="terminal"),
        Column("difference", "difference", with_half(POINTS, signed=True), "points", interval=True, place="terminal"),
        Column("verdict", "verdict", text, align="left", place="terminal"),
        Column("seeds", "seeds in common", count, place="terminal"),
        Column("new_items", "with new questions", with_half(POINTS, signed=True), "points", interval=True),
        Column("holds", "verdict on new questions", text, align="left"),
    )
    items = held(results, found)
    rows = tuple((*_row(pair, c), *_new_items(items.get(pair))) for pair, c in found.items())
    return Table("pairs", "Every pair", _caption(results, len(found), bool(items)), columns, rows)


def _row(pair: Pair, comparison: Comparison) -> tuple[Cell, ...]:
    label, other = pair
    difference = comparison.difference
    interval, seeds = EMPTY, EMPTY
    if difference is not None:
        interval, seeds = Cell(difference.mean, difference.low, difference.high), Cell(difference.n)
    return Cell(label), Cell(other), interval, Cell(comparison.words), seeds


def _new_items(found: Held | None) -> tuple[Cell, Cell]:
    if found is None:
        return EMPTY, EMPTY
    return Cell(found.difference.mean, found.difference.low, found.difference.high), Cell(found.word)


def _caption(results: Results, pairs: int, items: bool) -> str:
    return (
        f"{capitalised(primary_name(results))} of the first method minus that of the second, paired by seed, with the "
        f"{percent(level(results), 3)} t-interval, which is not corrected for the number of pairs. Verdicts are "
        f"Holm-corrected at {percent(1 - level(results), 3)} over these {pairs} pairs, more than in the results "
        f"above: a verdict there may be open here. {verdict_words(results)}" + (f" {THREE_QUESTIONS}" if items else "")
    )
