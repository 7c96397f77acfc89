"""What racing saved, and what it lost against the full grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from reports.metrics import primary_name
from reports.records import Measure, Results, ScoreRun
from reports.rounding import fixed, significant
from reports.runlog import TRAINING
from reports.statistics import promoted, rung_sizes, rung_steps, share_of_steps
from reports.table import EMPTY, Cell, Column, Table, count, digits, learning_rate, text
from reports.tables import METHOD, POINTS
from reports.words import in_words, span

SEARCH = (*TRAINING, "evaluation")  # phases of a run that a search must pay for
MEASURES: tuple[Measure, Measure] = ("primary", "loss")
Found = dict[float, tuple[float, float] | None]  # rate -> mean validation score and loss; None where a seed diverged


@dataclass(frozen=True)
class Race:
    """A method's race, complete, beside the full grid if that is complete too.

    Args:
        rates: how many started.
        steps, seconds: what the race took, as shares of the full grid's. Seconds without an audit are an estimate:
            the grid's runs are taken to last as long as those of the race's last rung.
        choice, best: the race's rate and the grid's, with their scores in runs of full length.
    """

    label: str
    rates: int
    steps: float
    seconds: float | None
    choice: tuple[float, float] | None
    best: tuple[float, float] | None

    @property
    def regret(self) -> float | None:
        """What the race's choice scores less than the grid's best, a share; None without an audit."""
        return None if self.choice is None or self.best is None else self.best[1] - self.choice[1]

    @property
    def same(self) -> bool | None:
        """Did the race choose the grid's rate? Not if it was left without one; None where the grid has none either."""
        return None if self.best is None else self.choice is not None and self.choice[0] == self.best[0]


def races(results: Results) -> list[Race]:
    """Of every method whose race is complete; none where nothing raced."""
    return [race for label in results.labels if (race := _race(results, label))]


def _race(results: Results, label: str) -> Race | None:
    number, full = results.points(label), results.length
    if results.racing is None or full is None or number < 2:
        return None
    rungs = _rungs(results, label, number, full)
    if rungs is None:
        return None
    last, grid = rungs[-1], results.full_length(label) if results.audited else []
    complete = len(grid) == number * results.search_seeds and all(run.status != "failed" for run in grid)
    seconds, whole = _seconds([run for rung in rungs for run in rung]), _seconds(grid if complete else last)
    whole = whole if whole is None or complete else whole / len(last) * number * results.search_seeds
    return Race(
        label=label,
        rates=number,
        steps=share_of_steps(number, full, results.racing, results.rungs),
        seconds=seconds / whole if seconds and whole else None,
        choice=_best(_found(last)),
        best=_best(_found(grid)) if complete else None,
    )


def _rungs(results: Results, label: str, number: int, full: int) -> list[list[ScoreRun]] | None:
    """The runs of each rung; None while one is missing or failed. Who reached a rung follows from the one before."""
    assert results.racing is not None
    lengths = rung_steps(full, results.racing, results.rungs)
    sizes = rung_sizes(number, results.racing, results.rungs)
    searched, rungs = results.of(label, "search"), list[list[ScoreRun]]()
    rates = list(dict.fromkeys(run.lr for run in searched))
    for length, size in zip(lengths, sizes, strict=True):
        if rungs:
            rates = promoted(_found(rungs[-1]), size)
        rungs.append([run for run in searched if run.steps == length and run.lr in rates])
        if len(rungs[-1]) != size * results.search_seeds or any(run.status == "failed" for run in rungs[-1]):
            return None
    return rungs


def _found(runs: list[ScoreRun]) -> Found:
    """By ascending rate, as the race takes them."""
    rates: dict[float, list[ScoreRun]] = {}
    for run in sorted(runs, key=lambda run: run.lr):
        rates.setdefault(run.lr, []).append(run)
    return {lr: _mean(seeds) for lr, seeds in rates.items()}


def _mean(seeds: list[ScoreRun]) -> tuple[float, float] | None:
    scores, losses = ([run.score(measure) for run in seeds] for measure in MEASURES)
    known = [[value for value in values if value is not None] for values in (scores, losses)]
    if min(map(len, known)) < len(seeds):
        return None
    return math.fsum(known[0]) / len(seeds), math.fsum(known[1]) / len(seeds)


def _best(found: Found) -> tuple[float, float] | None:
    """The best rate and its mean score; None where every rate diverged."""
    first = next(iter(promoted(found, 1)), None)
    result = None if first is None else found[first]
    return None if first is None or result is None else (first, result[0])


def _seconds(runs: list[ScoreRun]) -> float | None:
    """What training and scoring took; None where it is not known of every run."""
    if not runs or not all("forward" in run.seconds for run in runs):
        return None
    return math.fsum(float(run.seconds.get(phase, 0.0)) for run in runs for phase in SEARCH)


def racing_table(results: Results) -> Table | None:
    """A row for each method that raced."""
    found, primary = races(results), primary_name(results)
    if not found:
        return None
    saved = [
        METHOD,
        Column("rates", "rates", count, place="terminal"),
        Column("steps_saved", "training steps saved", digits(3, POINTS), "%", place="terminal"),
        Column("seconds_saved", "seconds saved", digits(2, POINTS), "%", place="terminal"),
        Column("chosen_rate", "the race's rate", learning_rate, place="terminal"),
        Column("chosen_score", f"its validation {primary}", digits(3, POINTS), "points"),
    ]
    lost = [
        Column("grid_rate", "the full grid's rate", learning_rate, place="terminal"),
        Column("grid_score", f"its validation {primary}", digits(3, POINTS), "points"),
        Column("regret", "regret", digits(2, POINTS), "points", place="terminal"),
        Column("same", "same choice", text, align="left", place="terminal"),
    ]
    columns = tuple(saved + lost if results.audited else saved)
    rows = tuple(_row(race)[: len(columns)] for race in found)
    return Table("racing", "What racing saved and lost", _caption(results), columns, rows)


def _row(race: Race) -> tuple[Cell, ...]:
    seconds = EMPTY if race.seconds is None else Cell(1 - race.seconds)
    ends = [Cell(value) for pair in (race.choice, race.best) for value in pair or (None, None)]
    same = "" if race.same is None else "yes" if race.same else "no"
    return (Cell(race.label), Cell(race.rates), Cell(1 - race.steps), seconds, *ends, Cell(race.regret), Cell(same))


def _caption(results: Results) -> str:
    assert results.racing is not None
    assert results.length is not None
    lengths = rung_steps(results.length, results.racing, results.rungs)
    shape = (
        f"All rates ran for {lengths[0]} of {lengths[-1]} steps with the schedule scaled to them, and of every rung "
        f"the best one in {results.racing} went on. Saved: against running every rate in full. Seconds are those of "
        "training and of scoring, which does not get shorter with the runs"
    )
    if not results.audited:
        return f"{shape}; the full grid's are estimated from the runs of full length. The regret was not measured."
    return (
        f"{shape}. Regret: the validation score of the full grid's best rate minus that of the race's, both in runs of "
        "full length with the same seeds. It is never below zero, as the race's rate is one of the grid's, and of a "
        "best score, which flatters the grid."
    )


def _time(share: float) -> str:
    """Small models on short texts may take longer to score than to train."""
    percent = significant(100 * abs(1 - share), 2)
    return f" and {percent} % of its seconds" if share < 1 else f", but took {percent} % more seconds"


def racing_sentences(results: Results) -> list[str]:
    """What racing saved over all methods, and what it lost; empty where nothing raced."""
    found = races(results)
    if not found:
        return []
    steps = span(round(100 * (1 - race.steps)) for race in found)
    seconds = [race.seconds for race in found if race.seconds is not None]
    time = _time(fmean(seconds)) if len(seconds) == len(found) else ""
    saved = f"Racing saved {steps} % of the training steps of the full grid{time}"
    judged = [race.same for race in found if race.same is not None]
    if not judged:
        why = "" if results.audited else " (protocol.racing_audit = true runs the full grid beside it)"
        return [f"{saved}; its regret was not measured{why}.", *_left_without(found)]
    chose = f"chose the same rate for {sum(judged)} of {len(judged)} methods"
    return [f"{saved}, {chose}{_lost(results, found)}.", *_left_without(found)]


def _lost(results: Results, found: list[Race]) -> str:
    """The regret of the races that have one."""
    regrets = {race.label: race.regret for race in found if race.regret is not None}
    if not regrets:
        return ""
    worst = max(regrets, key=lambda label: regrets[label])
    over = " where it kept a rate" if any(race.same is not None and race.regret is None for race in found) else ""
    lost = f"{fixed(POINTS * fmean(regrets.values()), 2)} points of validation {primary_name(results)} on average{over}"
    return f", and lost {lost}" + (f", at most {fixed(POINTS * regrets[worst], 2)} ({worst})" if regrets[worst] else "")


def _left_without(found: list[Race]) -> list[str]:
    """The races in which every rate of the last rung diverged, and what the full grid has then."""
    without = {race.label: race.best for race in found if race.choice is None}
    if not without:
        return []
    kept = {label: best for label, best in without.items() if best is not None}
    scores = [f"{label} {fixed(POINTS * score, 1)}" for label, (_, score) in kept.items()]
    grid = f", while the full grid has one ({in_words(scores, 'methods')} points)" if kept else ""
    return [f"Racing left {in_words(list(without), 'methods')} without a rate: all that it promoted diverged{grid}."]
