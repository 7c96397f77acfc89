"""What the curvature at the start would have said about each method's learning rate, beside the rate that was used."""

from __future__ import annotations

from statistics import correlation

from reports.records import Json, Results
from reports.rounding import fixed
from reports.table import EMPTY, Cell, Column, Table, digits, learning_rate
from reports.tables import EDGE, EDGE_NOTE, METHOD

EXPONENT = 0.5  # of the ratio of curvatures: the best of those tried on 37 methods (docs/decisions/013)
FEWEST = 5  # methods from which a rank correlation is worth a number
ABSENT = "¶"
NOTES = ((EDGE, EDGE_NOTE), (ABSENT, "The loss has no finite or no positive curvature here: no forecast."))


def curvature_of(results: Results, label: str) -> Json | None:
    """The curvature which one of the method's runs measured; None where none did."""
    measured = (r.measures["curvature"] for r in results.runs if r.label == label and "curvature" in r.measures)
    return next(measured, None)


def top_of(results: Results, label: str) -> float | None:
    """The top eigenvalue at the method's start, in nats per squared unit of a parameter; None unless it is positive."""
    top = (curvature_of(results, label) or {}).get("top")
    return float(top) if top is not None and top > 0 else None


def forecast_rate(results: Results, label: str) -> float | None:
    """The baseline's own rate times ``(top of the baseline / top of the method) ** EXPONENT``; None without both.

    After arXiv 2602.04998, which finds the exponent 1 in long runs of large models.
    """
    rate, reference, top = (
        results.chosen_lr(results.baseline),
        top_of(results, results.baseline),
        top_of(results, label),
    )
    if rate is None or reference is None or top is None:
        return None
    return float(rate * (reference / top) ** EXPONENT)


def forecast_table(results: Results) -> Table | None:
    """A row a method whose curvature was measured: its forecast beside the rate of its final runs."""
    base = results.baseline
    columns = (
        METHOD,
        Column("top_curvature", "top curvature", digits(2), place="terminal"),
        Column("forecast_rate", "forecast rate", learning_rate, place="terminal"),
        Column("learning_rate", "measured best rate", learning_rate, place="terminal"),
        Column("ratio", "forecast / measured", digits(2), place="terminal"),
        Column("residual", "residual", digits(1)),
        Column("products", "products", digits(2)),
    )
    labels = [label for label in results.labels if label != results.probe and curvature_of(results, label)]
    if not labels:
        return None
    rows = tuple(_row(results, label) for label in labels)
    caption = (
        "Top curvature: the largest eigenvalue of the Hessian of the training loss in the adapter's own tensors, "
        "before any training, by Lanczos; the residual is relative to it. The forecast is the best rate of "
        f"{base} times the square root of {base}'s curvature over the method's; of {base} itself there is none. "
        f"{_agreement(results, labels)} On MiniLM such a forecast ordered families of methods, but hardly "
        "the relatives of LoRA among each other (docs/decisions/013). It knows nothing of the optimiser beyond "
        f"{base}'s rate: a method with rates of its own for some tensors, or with a changed gradient, has the "
        "curvature of one without."
    )
    return Table("forecast", "Forecast of the learning rates", caption, columns, rows, NOTES)


def _row(results: Results, label: str) -> tuple[Cell, ...]:
    found = curvature_of(results, label) or {}
    forecast = None if label == results.baseline else forecast_rate(results, label)
    chosen = results.chosen_lr(label)
    return (
        Cell(label),
        Cell(found.get("top"), mark="" if top_of(results, label) else ABSENT),
        Cell(forecast),
        Cell(chosen, mark=EDGE if results.on_edge(label) else ""),
        Cell(forecast / chosen) if forecast and chosen else EMPTY,
        Cell(found.get("residual")),
        Cell(found.get("products")),
    )


def _agreement(results: Results, labels: list[str]) -> str:
    """How well forecast and measurement agree, over the methods that have both."""
    judged = [k for k in labels if k != results.baseline and results.points(k) > 1]  # whose rate was measured
    both = [(f, m) for k in judged if (f := forecast_rate(results, k)) and (m := results.chosen_lr(k))]
    if len(both) < FEWEST:
        return f"With {len(both)} methods that have both, agreement cannot be judged."
    found = rank_correlation([f for f, _ in both], [m for _, m in both])
    if found is None:
        return "All rates are the same: there is no order to agree with."
    return f"Rank correlation of forecast and measured rate over {len(both)} methods: {fixed(found, 2)}."


def rank_correlation(xs: list[float], ys: list[float]) -> float | None:
    """Spearman's rank correlation, ties by their mean rank; None where one of the lists is constant.

    Raises:
        statistics.StatisticsError: the lists have different lengths.
    """
    if min(len(set(xs)), len(set(ys))) < 2:
        return None
    return correlation(_ranks(xs), _ranks(ys))


def _ranks(values: list[float]) -> list[float]:
    return [sum(v < x for v in values) + (values.count(x) - 1) / 2 for x in values]
