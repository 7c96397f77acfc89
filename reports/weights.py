"""The tables about stored weights: drift over merge and unmerge cycles, and what of the factors can be recovered."""

from __future__ import annotations

from reports.merging import formats, on_layers
from reports.records import Json, Results
from reports.table import Cell, Column, Table, count, digits
from reports.tables import METHOD

WAYS = ("restoring", "subtraction")


def drift_of(results: Results, label: str, format: str, way: str) -> dict[int, float]:
    """Number of cycles -> relative distance of the weights from where they were; empty where not measured."""
    drift: Json = ((results.merging(label).get("drift") or {}).get(format) or {}).get(way) or {}
    return {int(cycles): value for cycles, value in drift.items() if value is not None}


def drift_table(results: Results) -> Table:
    """A row a method: what subtraction leaves after so many cycles in every format, and restoring at worst."""
    stored = formats(results, "drift")
    cycles = sorted(
        {n for label in results.labels for name in stored for way in WAYS for n in drift_of(results, label, name, way)}
    )
    places = [(name, n) for name in stored for n in cycles]
    columns = (
        METHOD,
        *(
            Column(
                f"subtraction_{name}_{n}",
                f"{name}, {n} cycle{'s' if n > 1 else ''}",
                digits(2),
                place="terminal" if n == cycles[-1] else "document",
            )
            for name, n in places
        ),
        Column("restoring", "restoring, largest", digits(2), place="terminal"),
    )
    rows = []
    for label in results.labels:
        subtracted = [drift_of(results, label, name, "subtraction").get(n) for name, n in places]
        restored = [value for name in stored for value in drift_of(results, label, name, "restoring").values()]
        if restored or any(value is not None for value in subtracted):
            rows.append((Cell(label), *map(Cell, subtracted), Cell(max(restored, default=None))))
    caption = (
        "Distance of the base's weights from where they were, divided by their norm, after so many times merging and "
        "unmerging. Subtraction computes the update again and takes it away, which leaves the rounding of every cycle. "
        "Restoring puts a kept copy back; its column is the largest over all formats and numbers of cycles. "
        + on_layers(results, "drift")
    )
    return Table("drift", "Drift over merge cycles", caption.rstrip(), columns, tuple(rows))


def factors_table(results: Results) -> Table:
    """A row a method with an exact low-rank pair: its defects, and what the merged weight alone gives back."""
    found = {label: factors for label in results.labels if (factors := results.merging(label).get("factors"))}
    stored = tuple(dict.fromkeys(name for factors in found.values() for name in factors.get("recovered") or {}))
    columns = (
        METHOD,
        Column("rank", "rank", count, place="terminal"),
        Column("defect_before", "defect before", digits(2)),
        Column("defect_after", "defect after", digits(2)),
        *(
            Column(f"singular_values_{name}", f"singular values, {name}", digits(2), place="terminal")
            for name in stored
        ),
        *(Column(f"subspace_{name}", f"subspaces, {name}", digits(4), place="terminal") for name in stored),
    )
    rows = tuple(_factors_row(label, factors, stored) for label, factors in found.items())
    caption = (
        "Defect: the largest distance of the adapter's stored factors from orthonormal columns, before merging and "
        "after unmerging; empty where the method has none. The rest is recovered from the difference of merged and "
        "base weight: the relative error of the singular values, and the smallest cosine between the recovered and the "
        "true singular subspaces (1: the same)."
    )
    return Table("factors", "Factors after merging", caption, columns, rows)


def _factors_row(label: str, factors: Json, stored: tuple[str, ...]) -> tuple[Cell, ...]:
    recovered: Json = factors.get("recovered") or {}
    return (
        Cell(label),
        *(Cell(factors.get(kind)) for kind in ("rank", "defect_before", "defect_after")),
        *(Cell((recovered.get(name) or {}).get(kind)) for kind in ("singular_values", "subspace") for name in stored),
    )
