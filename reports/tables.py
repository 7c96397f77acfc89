"""The table of results, the methods as they were run, and what other tables of scores share with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from reports import statistics
from reports.comparing import best_method, comparisons, level, unbeaten_probe
from reports.metrics import NAMES, primary_name, second, times_hundred
from reports.records import Json, Measure, Results
from reports.rounding import percent, significant
from reports.statistics import look_level
from reports.table import (
    EMPTY,
    Cell,
    Column,
    Table,
    count,
    digits,
    learning_rate,
    text,
    to_its_interval,
    with_bounds,
    with_half,
)
from reports.words import listed, span

POINTS, MEBI = 100.0, 1 / 2**20
EDGE, UNPAIRED, LOST = "†", "‡", "§"
EDGE_NOTE = "On the edge of its searched grid: a wider grid may find a better rate."
LOST_NOTE = "Some seeds diverged: the mean is over the others, and no claim of being better rests on it."
UNPAIRED_NOTE = "Fewer than two seeds in common with the baseline: no interval."
METHOD = Column("method", "method", text, align="left", place="terminal")
RATE = Column("learning_rate", "learning rate", learning_rate, place="terminal")


def main_table(results: Results) -> Table:
    """The results: what each method scores, against the baseline and the probe, and what it costs."""
    base = results.baseline
    columns = (
        METHOD,
        RATE,
        Column("trainable_parameters", "trainable parameters", count, place="terminal"),
        Column(results.metric, primary_name(results), with_half(POINTS), "points", interval=True, place="terminal"),
        Column(second(results), NAMES[second(results)], with_half(POINTS), "points", interval=True),
        difference_column(base),
        Column("verdict", "verdict", text, align="left", place="terminal", brief=_short_verdict),
        _step_time_column(base),
        Column("saved_bytes", "saved for backward", digits(3, MEBI), "MiB"),
        Column("peak_bytes", "peak memory", digits(3, MEBI), "MiB"),
        Column("seeds", "seeds", count),
        Column("remark", "remark", text, align="left"),
    )
    best, against = best_method(results), comparisons(results, base)
    remarks = remark_texts(results)
    rows = tuple(
        (
            Cell(label),
            *_scores(results, label, best),
            *comparison_cells(results, label, against),
            *_costs(results, label),
            Cell(len(results.outcomes(label))),
            Cell(remarks[label]),
        )
        for label in results.labels
    )
    notes = ((EDGE, EDGE_NOTE), (UNPAIRED, UNPAIRED_NOTE), (LOST, LOST_NOTE))
    family = sum(comparison.difference is not None for comparison in against.values())
    return Table("main", "Results", main_caption(results, best, family), columns, rows, notes)


def difference_column(base: str) -> Column:
    """The paired difference to the method ``base``."""
    show = with_half(POINTS, signed=True)
    return Column("difference", f"against {base}", show, "points", interval=True, place="terminal")


def _short_verdict(cell: Cell) -> str:
    """For 80 columns: ``equal``, ``undecided +12``."""
    words = str(cell.value).replace("practically equal", "equal")
    return words.replace("(", "").replace(" seeds)", "").replace(" seed)", "")


def in_points(share: float) -> str:
    """``0.5 points``."""
    return f"{significant(share * POINTS, 1)} points"


def _step_time_column(base: str) -> Column:
    show, unit = with_bounds(), f"× {base}"
    return Column("step_time_ratio", "step time", show, unit, interval=True, place="terminal", brief=to_its_interval())


def _scores(results: Results, label: str, best: str | None) -> tuple[Cell, ...]:
    trainable = results.parameters(label).get("trainable")
    edge = EDGE if results.on_edge(label) else ""
    return (
        Cell(results.chosen_lr(label), mark=edge),  # of a method that trains only the head: the head's
        Cell(trainable),
        mean_cell(results, label, "primary", best=label == best),
        mean_cell(results, label, second(results)),
    )


def mean_cell(results: Results, label: str, measure: Measure, best: bool = False) -> Cell:
    """Mean over the final seeds with its t-interval; empty without a score."""
    outcomes = results.outcomes(label, measure)
    if not outcomes:
        return EMPTY
    resolution = results.resolution if measure == "primary" else 0.0
    estimate = statistics.mean_interval(list(outcomes.values()), resolution=resolution)
    mark = LOST if results.diverged_seeds(label) else ""
    return Cell(estimate.mean, estimate.low, estimate.high, mark=mark, best=best)


def comparison_cells(results: Results, label: str, against: dict[str, statistics.Comparison]) -> tuple[Cell, Cell]:
    """Difference to the baseline with its interval, and the verdict; ``against`` is what ``comparisons`` gave."""
    if label == results.baseline:
        return EMPTY, Cell("baseline")
    difference = against[label].difference
    if difference is None:
        return Cell(None, mark=UNPAIRED), EMPTY
    return Cell(difference.mean, difference.low, difference.high), Cell(against[label].words)


def _costs(results: Results, label: str) -> tuple[Cell, ...]:
    speed = (results.speed or {}).get("methods", {}).get(label)
    if speed is None:
        return EMPTY, EMPTY, EMPTY
    return interval_cell(speed.get("ratio_baseline")), Cell(speed.get("saved_bytes")), Cell(speed.get("peak_bytes"))


def interval_cell(interval: Json | None) -> Cell:
    """A measured {median, low, high} as a cell."""
    return Cell(interval["median"], interval["low"], interval["high"]) if interval else EMPTY


def remark_texts(results: Results) -> dict[str, str]:
    """What a reader must know about a method's numbers, in words."""
    unbeaten = unbeaten_probe(results)
    remarks = {}
    for label in results.labels:
        finals = results.of(label, "final")
        parts = ["does not beat the probe"] if label in unbeaten else []
        for status in ("diverged", "failed"):
            number = sum(run.status == status for run in finals)
            parts += [f"{number} of {len(finals)} seeds {status}"] if number else []
        parts += [] if finals else ["no final runs yet"]
        remarks[label] = "; ".join(parts)
    return remarks


def main_caption(results: Results, best: str | None, family: int) -> str:
    """How the numbers came about and what they do not say."""
    finals = [run for run in results.runs if run.stage == "final"]
    items = max((run.items or 0 for run in finals), default=0)
    seeds = span(results.final_seeds(label) for label in results.labels)
    most = seeds if " " in seeds else f"up to {seeds}"
    return (
        f"Test scores of {results.suite['model']} on {results.suite['benchmark']} ({items:,} items): mean over {most} "
        f"seeds with the half-width of the 95 % t-interval. The interval covers what changes with the seed "
        f"(order of the data, initialisation), not the choice of test items: for that see every pair. "
        f"{times_hundred(results)}"
        f"Differences to {results.baseline} are paired by seed, with {percent(level(results), 3)} t-intervals. "
        f"Verdicts are Holm-corrected at {percent(1 - level(results), 3)} over these {family} comparisons; "
        "the intervals and the remark about the probe are not. "
        f"{verdict_words(results)} Only a method whose paired difference to every other one has an interval above zero "
        f"is set in bold: {best or 'here none'}. Trainable parameters are the adapter's; the task head, the same for "
        "all, is not counted. Step time is the median ratio within interleaved rounds with its 95 % interval."
        + (" Numbers of steps differ: they were chosen for the same training time." if results.time_matched else "")
    )


def verdict_words(results: Results) -> str:
    """What the words of a verdict mean, for captions."""
    return (
        f"Practically equal: within ±{in_points(results.margin)}, by two one-sided tests. Undecided (+n seeds): "
        "so many more would decide it with 80 % power, if mean and spread stay as observed; without a number it takes "
        "over 1,000, or a seed diverged." + _looks(results.looks)
    )


def _looks(looks: tuple[int, ...]) -> str:
    """How seeds were added, if they were."""
    if len(looks) == 1:
        return ""
    share = percent(1 - look_level(len(looks)), 3)
    return (
        f" Seeds were added while a pair was undecided, at {listed(list(map(str, looks)))} seeds: each look is judged "
        f"at {share}, its part of 5 %."
    )


def methods_table(results: Results) -> Table:
    """The methods with every hyperparameter, and the sizes that follow from them."""
    sizes = {
        "trainable": Column("trainable_parameters", "trainable parameters", count, place="terminal"),
        "share": Column("share", "share of the base", digits(2, POINTS), "%"),
        "stored_bytes": Column("stored_bytes", "adapter file", digits(3, 1 / 1024), "KiB"),
        "tensor_bytes": Column("tensor_bytes", "tensors in it", digits(4, 1 / 1024), "KiB", place="terminal"),
        "left_after_merging": Column("left_after_merging", "left after merging", count),
    }
    if not results.budget_in_bytes:
        del sizes["tensor_bytes"]
    columns = (
        METHOD,
        Column("name", "implementation", text, align="left", place="terminal"),
        Column("hyperparameters", "hyperparameters", text, align="left", place="terminal"),
        *sizes.values(),
    )
    rows = tuple(_method_row(results, label, sizes) for label in results.labels)
    caption = f"Counts are the adapter's; the task head, the same for all, is not counted.{_budget_said(results)}"
    return Table("methods", "Methods as run", caption, columns, rows)


def _budget_said(results: Results) -> str:
    """By what sizes were matched, if they were."""
    budget = results.suite.get("budget")
    if not budget:
        return ""
    spent = "bytes of the tensors in the adapter file" if results.budget_in_bytes else "trainable parameters"
    return (
        f" Sizes were matched by {spent}: a method whose size the suite left open has the largest within {budget}; one "
        "whose size is given, or which has none, may be above or below."
    )


def _method_row(results: Results, label: str, sizes: Iterable[str]) -> tuple[Cell, ...]:
    method, counts = results.method(label), results.parameters(label)
    settings: dict[str, Any] = method.get("hyperparameters") or {}
    written = ", ".join(f"{name} = {value}" for name, value in settings.items())
    return (Cell(label), Cell(str(method["name"])), Cell(written), *(Cell(counts.get(name)) for name in sizes))
