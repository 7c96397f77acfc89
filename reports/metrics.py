"""How a benchmark's measures are called; all are shown in points, hundredths of one."""

from __future__ import annotations

from reports.records import Measure, Results

NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "matthews": "Matthews correlation",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
}
REGRESSION = ("spearman", "pearson")


def primary_name(results: Results) -> str:
    """What the benchmark is judged by, in words."""
    return NAMES.get(results.metric, results.metric)


def second(results: Results) -> Measure:
    """The measure that is shown beside the primary one."""
    others: dict[str, Measure] = {"spearman": "pearson", "pearson": "spearman", "macro_f1": "accuracy"}
    return others.get(results.metric, "macro_f1")


def loss_unit(results: Results) -> str:
    """Of the validation loss."""
    return "variances" if results.metric in REGRESSION else "nats"


def capitalised(name: str) -> str:
    """At the start of a sentence."""
    return name[0].upper() + name[1:]


def times_hundred(results: Results) -> str:
    """A sentence on what a point is, where that is not plain."""
    if results.metric == "accuracy":
        return ""
    return f"The {primary_name(results)} is given in points, hundredths of one. "
