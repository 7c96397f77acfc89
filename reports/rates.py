"""What a search found out about each learning rate."""

from __future__ import annotations

from reports.records import Results, ScoreRun
from reports.tables import POINTS

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
