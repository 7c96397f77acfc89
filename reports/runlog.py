"""The log: every training that was recorded, in one table, whatever became of it; and those without a score."""

from __future__ import annotations

import math
from collections.abc import Iterator

from reports.metrics import loss_unit, primary_name
from reports.records import Results, ScoreRun
from reports.table import Cell, Column, Table, count, digits, text
from reports.tables import METHOD, POINTS, RATE

TRAINING = ("calibration", "attach", "forward", "backward", "optimiser", "hooks")  # phases of a run, none of scoring
STAGE = Column("stage", "stage", text, align="left", place="terminal")
SEED = Column("seed", "seed", count, place="terminal")
STATUS = Column("status", "status", text, align="left", place="terminal")


def training_seconds(run: ScoreRun) -> float | None:
    """From the bare base to the trained method; None where no step was timed."""
    return sum(float(run.seconds.get(phase, 0.0)) for phase in TRAINING) if "forward" in run.seconds else None


def last_loss(run: ScoreRun) -> float | None:
    """The training loss of the last step taken, in ``loss_unit``; None where there is none, or none that is finite."""
    losses = run.measures.get("training", {}).get("loss") or [None]
    return float(losses[-1]) if losses[-1] is not None and math.isfinite(losses[-1]) else None


def runs_table(results: Results) -> Table:
    """A row a run."""
    columns = (
        METHOD,
        STAGE,
        Column("split", "scored on", text, align="left"),
        RATE,
        *((Column("steps", "steps", count),) if results.racing else ()),
        SEED,
        STATUS,
        Column(results.metric, primary_name(results), digits(3, POINTS), "points", place="terminal"),
        Column("last_training_loss", "last training loss", digits(3), loss_unit(results)),
        Column("training_seconds", "training", digits(3), "s"),
        Column("total_seconds", "whole run", digits(3), "s"),
        Column("reason", "reason", text, align="left", place="data"),
    )
    caption = (
        "Every recorded run of a method, those that failed or diverged included. Search runs are scored on validation "
        "data and final runs on test data: their scores are not comparable. The training loss is that of the last "
        "step, of one batch. Training: from the bare base to the trained method; the whole run adds scoring and what "
        "else was measured. Runs may have shared the machine: times of methods are compared under Speed. Reasons of "
        "failures are in the CSV file."
    )
    return Table("runs", "Runs", caption, columns, tuple(_row(results, run) for run in _in_order(results)))


def _row(results: Results, run: ScoreRun) -> tuple[Cell, ...]:
    steps = (Cell(run.steps),) if results.racing else ()
    place = (Cell(run.label), Cell(run.stage), Cell(run.split), Cell(run.lr), *steps, Cell(run.seed), Cell(run.status))
    measured = (run.score("primary"), last_loss(run), training_seconds(run), run.seconds.get("total"))
    return (*place, *map(Cell, measured), Cell(run.error or ""))


def unscored_table(results: Results) -> Table:
    """The runs that diverged or failed: none of them disappears."""
    columns = (
        METHOD,
        STAGE,
        RATE,
        SEED,
        STATUS,
        Column("reason", "reason", text, align="left", place="terminal"),
    )
    rows = tuple(
        (Cell(r.label), Cell(r.stage), Cell(r.lr), Cell(r.seed), Cell(r.status), Cell(r.error or ""))
        for r in _in_order(results)
        if r.status != "done"
    )
    return Table("unscored", "Runs that failed or diverged", "", columns, rows)


def _in_order(results: Results) -> Iterator[ScoreRun]:
    """By method, the search before the final runs."""
    return (run for label in results.labels for stage in ("search", "final") for run in results.of(label, stage))
