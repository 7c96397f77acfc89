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
    """What of the space, beside the rate, the method has, whether or not its trials happen to differ in it."""
    return [name for name in beside_the_rate(results) if _has(results, label, name)]


def _has(results: Results, label: str, name: str) -> bool:
    """A hyperparameter is in the runs of the methods that have it. A training setting is in all runs: one that means
    nothing to the method stays as the suite gives it while the same trials of other methods differ in it."""
    if any(name in (run.record["run"]["method"].get("hyperparameters") or {}) for run in results.of(label, "search")):
        return True
    own = tried(results, label, name)
    if own != [(results.suite.get("training") or {}).get(name)]:
        return bool(own)
    return not any(len(tried(results, other, name)) > 1 for other in results.labels)


def tried(results: Results, label: str, name: str) -> list[Any]:
    """The different values that the method's trials have."""
    found: list[Any] = []
    for value in (value_of(run, name) for run in results.of(label, "search")):
        found += [value] if value is not None and value not in found else []
    return found


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
