"""The tables about merged outputs: how far they are from the adapter's, in every format a base is stored in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from reports.metrics import REGRESSION
from reports.records import Json, Results
from reports.statistics import Bounded, paired_proportions
from reports.table import EMPTY, Cell, Column, Table, digits, text, with_bounds, yes_no
from reports.tables import METHOD, POINTS
from reports.words import span

FORMATS = ("float32", "bfloat16", "float16", "int8", "nf4")  # of stored weights; the first loses nothing
EXACT, *LOSSY = FORMATS
OF_CLASSES = ("flipped", "accuracy_adapted", "accuracy_merged", "difference")
ROUNDINGS = ("nearest", "stochastic")
SERVED = {  # ways to serve an adapter on a quantised base
    "beside": "beside the quantised weight",
    "bfloat16": "merged, kept in bfloat16",
    "original": "merged into the original, bfloat16",
    "requantised": "merged, quantised again",
}


def formats(results: Results, part: str = "formats") -> tuple[str, ...]:
    """The storage formats of which some method has this part of the merge measurement, in the records' order."""
    return tuple(dict.fromkeys(f for label in results.labels for f in results.merging(label).get(part) or {}))


def values(results: Results, label: str, format: str) -> Json:
    """What was measured of one method in one format; empty without a measurement or if outputs overflowed."""
    found: Json = (results.merging(label).get("formats") or {}).get(format) or {}
    return {} if found.get("overflow") else found


def on_layers(results: Results, part: str) -> str:
    """A sentence on how many layers a part was measured; empty where the records do not say."""
    counts = {count for label in results.labels if (count := results.merging(label).get(f"{part}_layers"))}
    if not counts:
        return ""
    which = "the first and the last" if counts == {2} else "spread over the model"
    return f"Measured on {span(counts)} layer{'s' * (counts != {1})} of each method, {which}."


def paired(results: Results) -> list[str]:
    """The methods whose update has an exact low-rank pair, of less than full rank, which was measured."""
    return [label for label in results.labels if results.merging(label).get("factors")]


def accuracy_change(measured: Json, items: int) -> Bounded | None:
    """Accuracy merged minus adapted, on the same items; None where it was not counted."""
    gained, lost = measured.get("gained"), measured.get("lost")
    return None if gained is None or lost is None or not items else paired_proportions(gained, lost, items)


def merging_table(results: Results) -> Table:
    """A row a method: the size of its update, and in every format the error of merging and what the update keeps."""
    stored = formats(results)
    rounded = [name for name in stored if name != EXACT]
    columns = (
        METHOD,
        Column("relative_size", "size of the update", digits(2)),
        Column("effect", "effect on the logits", digits(2)),
        *(Column(f"error_{name}", f"error, {name}", digits(2), place="terminal") for name in stored),
        *(Column(f"kept_{name}", f"kept, {name}", digits(3, POINTS), "%") for name in rounded),
        Column("restored", "base restored", yes_no, align="left"),
        Column("remark", "remark", text, align="left", place="terminal"),
    )
    measured = any(results.merging(label) for label in results.labels)
    rows = tuple(_merging_row(results, label, stored, rounded) for label in results.labels if measured)
    caption = (
        f"First final seed, {_items(results):,} test items, weights rounded to nearest. The error is the distance of "
        "the merged from the adapted logits divided by that of the adapted from the base logits (the effect, here "
        "relative to the base logits): 0 is a perfect merge, 1 loses as much as the method did. Kept: the share of the "
        "update that is left in the stored weights. Size of the update: its norm divided by that of the weights it "
        "changes. Weights are stored in the format, all arithmetic is float32. Base restored: without the adapter "
        "every bit of the base is back."
    )
    return Table("merging", "Merge behaviour", caption, columns, rows)


def _merging_row(results: Results, label: str, stored: Iterable[str], rounded: Iterable[str]) -> tuple[Cell, ...]:
    merge = results.merging(label)
    effect = next((v["effect"] for v in (values(results, label, name) for name in stored) if "effect" in v), None)
    return (
        Cell(label),
        Cell(merge.get("relative_size")),
        Cell(effect),
        *(Cell(values(results, label, name).get("error")) for name in stored),
        *(Cell(values(results, label, name).get("kept")) for name in rounded),
        Cell(merge.get("restored")),
        Cell(_remark(results, label)),
    )


def _items(results: Results) -> int:
    return max((results.merging(label).get("items", 0) for label in results.labels), default=0)


def _remark(results: Results, label: str) -> str:
    merge = results.merging(label)
    if not merge:
        return _why_unmerged(results, label)
    if merge.get("mergeable", True) is None:
        return "not measured"
    if not merge.get("mergeable", True):
        return "cannot be merged"
    measured = merge.get("formats") or {}
    if overflowed := [name for name, found in measured.items() if found.get("overflow")]:
        return f"{' and '.join(overflowed)} cannot hold the weights"
    unchanged = measured and all(found.get("error") is None for found in measured.values())
    return "does not change the base" if unchanged else ""


def _why_unmerged(results: Results, label: str) -> str:
    finals = results.of(label, "final")
    if not finals:
        return "no final runs yet"
    return "diverged" if any(run.status == "diverged" for run in finals) else "not measured"


def merging_full_table(results: Results) -> Table:
    """A row for each method, format and rounding, with the accuracy before and after and their paired difference."""
    columns = (
        METHOD,
        Column("format", "format", text, align="left", place="terminal"),
        Column("rounding", "rounding", text, align="left", place="terminal"),
        Column("error", "error", digits(2), place="terminal"),
        Column("max_logit_change", "largest logit change", digits(2)),
        Column("flipped", "flipped", digits(2, POINTS), "%", place="terminal"),
        Column("accuracy_adapted", "accuracy adapted", digits(3, POINTS), "points"),
        Column("accuracy_merged", "accuracy merged", digits(3, POINTS), "points"),
        Column(
            "difference",
            "merged against adapted",
            with_bounds(POINTS, least=1),
            "points",
            interval=True,
            place="terminal",
        ),
        Column("kept", "kept", digits(3, POINTS), "%", place="terminal"),
        Column("update_error", "error of the update", digits(2)),
    )
    rows = tuple(
        _full_row(results, label, name, rounding)
        for label in results.labels
        for name in formats(results)
        for rounding in ROUNDINGS
        if values(results, label, name) and (rounding == ROUNDINGS[0] or values(results, label, name).get(rounding))
    )
    caption = (
        "Differences are over the same test items, with Tango's 95 % score interval, which covers the choice of the "
        "items and not the seed. Flipped: items whose prediction changes. Error of the update: the norm of what "
        "rounding adds or takes, divided by that of the update. Stochastic rounding goes up or down by chance, so that "
        "the update is kept on average, at a larger error."
    )
    table = Table("merging_full", "Merging in every format", caption, columns, rows)
    return _without(table, OF_CLASSES) if results.metric in REGRESSION else table


def _full_row(results: Results, label: str, name: str, rounding: str) -> tuple[Cell, ...]:
    adapted = values(results, label, name)
    measured: Json = adapted if rounding == ROUNDINGS[0] else adapted[rounding]
    items = results.merging(label).get("items", 0)
    change = accuracy_change(measured, items)
    return (
        Cell(label),
        Cell(name),
        Cell("none" if name == EXACT else rounding),
        *(Cell(measured.get(kind)) for kind in ("error", "max_logit_change", "flipped")),
        Cell(adapted.get("accuracy_adapted")),
        Cell(measured.get("accuracy_merged")),
        EMPTY if change is None else Cell(change.value, change.low, change.high),
        *(Cell(measured.get(kind)) for kind in ("kept", "update_error")),
    )


def deployments_table(results: Results) -> Table:
    """Four ways to serve an adapter on a quantised base: a row for each method and format."""
    columns = (
        METHOD,
        Column("format", "format", text, align="left", place="terminal"),
        *(
            column
            for kind, name in SERVED.items()
            for column in (
                Column(f"{kind}_error", f"{name}: error", digits(2), place="terminal"),
                Column(f"{kind}_accuracy", f"{name}: accuracy", digits(3, POINTS), "points"),
            )
        ),
    )
    served = (
        (label, name, values(results, label, name).get("deployments"))
        for label in results.labels
        for name in formats(results)
    )
    rows = tuple(
        (
            Cell(label),
            Cell(name),
            *(Cell((ways.get(kind) or {}).get(what)) for kind in SERVED for what in ("error", "accuracy")),
        )
        for label, name, ways in served
        if ways
    )
    caption = (
        "Errors are distances from the logits of the adapter on the float32 base, divided by that adapter's effect: "
        "quantising the base is part of them. The adapters were trained on the float32 base, so that keeping the pair "
        "or adapter in float32 beside the quantised weight has an error too. Only the layers with an adapter differ "
        "between the four ways, the rest of the model is quantised; merged into the original: those layers hold their "
        "weight of before quantising."
    )
    table = Table("deployments", "Adapters on a quantised base", caption, columns, rows)
    counted = [f"{kind}_accuracy" for kind in SERVED]
    return _without(table, counted) if results.metric in REGRESSION else table


def _without(table: Table, names: Sequence[str]) -> Table:
    """The table without these columns: numbers have no accuracy, and nothing flips."""
    left = [i for i, column in enumerate(table.columns) if column.key not in names]
    columns = tuple(table.columns[i] for i in left)
    return replace(table, columns=columns, rows=tuple(tuple(row[i] for i in left) for row in table.rows))
