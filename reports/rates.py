"""What a search found out about each learning rate."""

from __future__ import annotations

from reports.metrics import NAMES, loss_unit, primary_name, second
from reports.records import Results, ScoreRun
from reports.space import values
from reports.table import Cell, Column, Table, Value, count, digits, text
from reports.tables import METHOD, POINTS, RATE

Rates = dict[float, list[ScoreRun]]  # learning rate -> its search runs


def searched(results: Results, label: str) -> Rates:
    """A method's search runs of full length by learning rate, ascending. Failed runs are left out: they say nothing of
    a rate."""
    rates: Rates = {}
    for run in results.full_length(label):
        if run.status != "failed":
            rates.setdefault(run.lr, []).append(run)
    return rates


def scores(runs: list[ScoreRun]) -> list[float]:
    """Validation scores in points, of the runs that have one."""
    return [score * POINTS for run in runs if (score := run.score("primary")) is not None]


def rates_table(results: Results) -> Table:
    """Every trial of the search, with its validation score."""
    primary, other = primary_name(results), second(results)
    steps = (Column("steps", "steps", count, place="terminal"),) if results.racing else ()
    setting = (Column("setting", "beside the rate", text, align="left", place="terminal"),) if results.space else ()
    columns = (
        METHOD,
        RATE,
        *steps,
        *setting,
        Column(f"validation_{results.metric}", f"validation {primary}", digits(3, POINTS), "points", place="terminal"),
        Column(f"validation_{other}", f"validation {NAMES[other]}", digits(3, POINTS), "points"),
        Column("validation_loss", "validation loss", digits(3), loss_unit(results)),
        Column("status", "status", text, align="left", place="terminal"),
        Column("chosen", "chosen", text, align="left", place="terminal"),
    )
    rows = tuple(_rate_row(results, run) for label in results.labels for run in results.of(label, "search"))
    caption = (
        "Every run of the search, on validation data, with seeds that the final runs do not use; where a rate has "
        "several, their mean counts. The scores choose a rate, they do not compare methods."
    )
    if results.racing:
        caption += " The rates race: scores after different numbers of steps do not compare, and only full runs decide."
    return Table("learning_rates", "Learning rates", caption, columns, rows)


def _rate_row(results: Results, run: ScoreRun) -> tuple[Cell, ...]:
    final = next(iter(results.of(run.label, "final")), None)
    same = final is not None and results.setting(final) == results.setting(run)
    chosen: Value = "chosen" if same and results.is_full(run) else ""
    scores = [Cell(run.score(measure)) for measure in ("primary", second(results), "loss")]
    extra = [Cell(run.steps)] if results.racing else []
    extra += [Cell(values(results, run))] if results.space else []
    return (Cell(run.label), Cell(run.lr), *extra, *scores, Cell(run.status), Cell(chosen))
