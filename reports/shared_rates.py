"""What a comparison at one shared learning rate would say, at every rate, and what remains once each method is tuned.

The scores at shared rates are those of the search, on validation data, with several seeds a rate; the tuned ones are of
the final runs, with fresh seeds on test data. A method that collapses at a rate counts there with what it scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from reports.comparing import comparisons
from reports.metrics import primary_name
from reports.records import Results
from reports.rounding import plus_minus, rate
from reports.statistics import Comparison, Difference, Outcomes, equivalence_p, holm, paired_difference, verdict
from reports.table import EMPTY, Cell, Column, Table, text, to_its_interval
from reports.tables import METHOD, POINTS, RATE, difference_column

SEVERAL = 2  # seeds a rate, below which a difference has no interval


@dataclass(frozen=True)
class Shared:
    """One method against the baseline, both at the same rate. ``score``: mean validation score of the method."""

    label: str
    rate: float
    score: float
    difference: Difference
    verdict: str


def shared_rates(results: Results) -> list[Shared]:
    """Every method at every rate which the search tried of it and of the baseline with two seeds or more.

    Verdicts are Holm-corrected over all of them.
    """
    base = _searched(results, results.baseline)
    found: dict[tuple[str, float], tuple[float, Difference]] = {}
    for label in results.labels:
        for lr, outcomes in _searched(results, label).items() if label != results.baseline else ():
            difference = paired_difference(outcomes, base.get(lr, {}), resolution=_resolution(results))
            if difference is not None:
                found[label, lr] = fmean(outcomes.values()), difference
    p_zero = holm({place: difference.p for place, (_, difference) in found.items()})
    p_equal = holm({place: equivalence_p(d, results.margin) for place, (_, d) in found.items()})
    return [
        Shared(*place, score, d, verdict(d, p_zero[place], margin=results.margin, p_equal=p_equal[place]))
        for place, (score, d) in found.items()
    ]


def _searched(results: Results, label: str) -> dict[float, Outcomes]:
    """rate -> seed -> validation score, of runs of full length; rates at which a seed diverged are left out. Where
    trials differ in more than the rate, none is shared."""
    rates: dict[float, dict[int, float | None]] = {}
    for run in results.full_length(label) if not results.space else ():
        rates.setdefault(run.lr, {})[run.seed] = run.score("primary")
    return {
        lr: {seed: score for seed, score in seeds.items() if score is not None}
        for lr, seeds in rates.items()
        if len(seeds) >= SEVERAL and None not in seeds.values()
    }


def _resolution(results: Results) -> float:
    """The step of a validation accuracy."""
    counts = [run.items for run in results.runs if run.stage == "search" and run.items]
    return 1 / min(counts) if counts and results.metric == "accuracy" else 0.0


def shared_rates_table(results: Results) -> Table:
    """A row for each method and shared rate, and one for each method at its own best rate."""
    columns = (
        METHOD,
        RATE,
        Column("at", "compared", text, align="left", place="terminal"),
        Column("score", primary_name(results), to_its_interval(POINTS), "points", place="terminal"),
        difference_column(results.baseline),
        Column("verdict", "verdict", text, align="left", place="terminal"),
    )
    found = shared_rates(results)
    tuned = comparisons(results, results.baseline) if found else {}
    rows = [row for label in tuned for row in _rows(results, label, found, tuned[label])]
    caption = (
        "At a shared rate: validation scores of the search, both methods at that rate with the same seeds. Tuned: "
        "test scores with fresh seeds, each method at its own best rate. Differences are paired by seed, with 95 % "
        f"t-intervals; verdicts are Holm-corrected at 5 %: over these {len(found)} comparisons at shared rates, and "
        "over the methods for the tuned ones. A rate at which the method or the baseline diverged with some seed has "
        "no row."
    )
    return Table("shared_rates", "At one shared learning rate, and tuned", caption, columns, tuple(rows))


def _rows(results: Results, label: str, found: list[Shared], tuned: Comparison) -> Iterator[tuple[Cell, ...]]:
    for shared in (s for s in found if s.label == label):
        said = Cell(shared.verdict)
        yield (
            Cell(label),
            Cell(shared.rate),
            Cell("at a shared rate"),
            Cell(shared.score),
            _cell(shared.difference),
            said,
        )
    scores = results.outcomes(label).values()
    mean = Cell(fmean(scores)) if scores else EMPTY
    yield (Cell(label), Cell(results.chosen_lr(label)), Cell("tuned"), mean, _cell(tuned.difference), Cell(tuned.words))


def _cell(difference: Difference | None) -> Cell:
    return EMPTY if difference is None else Cell(difference.mean, difference.low, difference.high)


def shared_rates_sentences(results: Results) -> list[str]:
    """For every method: at which shared rates it looks better or worse, by how much at most, and what tuning leaves."""
    found = shared_rates(results)
    tuned = comparisons(results, results.baseline) if found else {}
    own = {label: [s for s in found if s.label == label] for label in tuned}
    return [_sentence(results, label, own[label], tuned[label]) for label in tuned if own[label]]


def _sentence(results: Results, label: str, found: list[Shared], tuned: Comparison) -> str:
    said = [_looks(found, word) for word in ("better", "worse")]
    shared = " and ".join(part for part in said if part) or "is told apart at none of them"
    left = "tuned, there is no comparison yet"
    if tuned.difference is not None and tuned.difference.half is not None:
        value = plus_minus(tuned.difference.mean * POINTS, tuned.difference.half * POINTS, signed=True)
        left = f"each at its own best rate, the difference is {value} points: {tuned.words}"
    return f"At one learning rate shared with {results.baseline}, {label} {shared}; {left}."


def _looks(found: list[Shared], word: str) -> str:
    those = [s for s in found if s.verdict == word]
    if not those:
        return ""
    most = max(those, key=lambda s: abs(s.difference.mean))
    value = plus_minus(most.difference.mean * POINTS, (most.difference.half or 0) * POINTS, signed=True)
    return f"looks {word} at {len(those)} of {len(found)} rates (by {value} points at {rate(most.rate)})"
