"""A search over several hyperparameters: its ranges, what of it a method has, and what was chosen."""

from __future__ import annotations

from typing import Any

from reports.records import Results, ScoreRun
from reports.words import listed

SCALES = ("linear", "log", "int", "int-log")  # as `evaluation.spec` has them, which reports do not import


def ranges(results: Results, names: list[str]) -> str:
    """``rank 2 to 64 (int-log), alpha 8, 16 or 32``."""
    return "; ".join(f"{name} {_range(results.space[name])}" for name in names)


def _range(values: list[Any]) -> str:
    if len(values) == 3 and values[2] in SCALES:
        return f"{shown(values[0])} to {shown(values[1])} ({values[2]})"
    return listed([shown(value) for value in values]).replace(" and ", " or ")


def beside_the_rate(results: Results) -> list[str]:
    """The names of the space but for the learning rate."""
    return [name for name in results.space if name != "lr"]


def searched_of(results: Results, label: str) -> list[str]:
    """What of the space, beside the rate, differs between the method's trials."""
    runs = results.of(label, "search")
    return [name for name in beside_the_rate(results) if len({str(value_of(run, name)) for run in runs}) > 1]


def value_of(run: ScoreRun, name: str) -> Any:
    """The run's own value of a hyperparameter, else of a training setting; None where it has neither."""
    own = run.record["run"]
    return (own["method"].get("hyperparameters") or {}).get(name, (own.get("training") or {}).get(name))


def values(results: Results, run: ScoreRun) -> str:
    """What a run has of the space beside its rate."""
    names = searched_of(results, run.label)
    return ", ".join(f"{name} = {shown(value_of(run, name))}" for name in names)


def shown(value: Any) -> str:
    """As a suite would say it, numbers to 3 significant digits, to which they were drawn."""
    return f"{value:.3g}".replace("e-0", "e-") if isinstance(value, float) else str(value)
