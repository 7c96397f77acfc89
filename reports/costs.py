"""The tables about costs: what merging changes, and what a step takes in time and memory."""

from __future__ import annotations

from reports.records import Json, Results
from reports.rounding import significant
from reports.table import EMPTY, Cell, Column, Table, digits, text, to_its_interval, with_bounds, yes_no
from reports.tables import MEBI, METHOD, POINTS, interval_cell

MILLI = 1e3
PHASES = ("forward", "backward", "optimiser", "hooks", "total")


def merging_table(results: Results) -> Table:
    """How far the merged model is from the adapted one: a row for each method and dtype of the stored weights."""
    columns = (
        METHOD,
        Column("dtype", "weights", text, align="left", place="terminal"),
        Column("error", "error", digits(2), place="terminal"),
        Column("max_logit_change", "largest logit change", digits(2), place="terminal"),
        Column("flipped", "flipped", digits(2, POINTS), "%", place="terminal"),
        Column("accuracy_adapted", "accuracy adapted", digits(3, POINTS), "points", place="terminal"),
        Column("accuracy_merged", "accuracy merged", digits(3, POINTS), "points", place="terminal"),
        Column("effect", "effect of the method", digits(2)),
        Column("restored", "base restored", yes_no, align="left"),
        Column("remark", "remark", text, align="left", place="terminal"),
    )
    rows = tuple(row for label in results.labels for row in _merging_rows(results, label))
    items = max(((results.merging(label) or {}).get("items", 0) for label in results.labels), default=0)
    caption = (
        f"First final seed, {items:,} test items. The error is the distance of the merged from the adapted logits "
        "divided by that of the adapted from the base logits (the effect, here relative to the base logits): 0 is a "
        "perfect merge, 1 loses as much as the method did. Flipped: items whose prediction changes. Weights are stored "
        "in the dtype, all arithmetic is float32. Base restored: without the adapter every bit of the base is back."
    )
    return Table("merging", "Merge behaviour", caption, columns, rows)


def _merging_rows(results: Results, label: str) -> list[tuple[Cell, ...]]:
    merge = results.merging(label)
    if merge is None or not merge.get("dtypes"):
        remark = _merge_remark(merge) if merge else _why_unmerged(results, label)
        return [(Cell(label), *(EMPTY,) * 8, Cell(remark))]
    kinds = ("error", "max_logit_change", "flipped", "accuracy_adapted", "accuracy_merged", "effect")
    return [
        (
            Cell(label),
            Cell(dtype),
            *(Cell(values.get(kind)) for kind in kinds),
            Cell(merge.get("restored")),
            Cell(_merge_remark(merge)),
        )
        for dtype, values in merge["dtypes"].items()
    ]


def _merge_remark(merge: Json) -> str:
    if merge.get("mergeable", True) is None:
        return "not measured"
    if not merge.get("mergeable", True):
        return "cannot be merged"
    if overflowed := [dtype for dtype, values in merge.get("dtypes", {}).items() if values.get("overflow")]:
        return f"{' and '.join(overflowed)} cannot hold the weights"
    errors = [values.get("error") for values in merge.get("dtypes", {}).values()]
    return "does not change the base" if errors and all(error is None for error in errors) else ""


def _why_unmerged(results: Results, label: str) -> str:
    finals = results.of(label, "final")
    if not finals:
        return "no final runs yet"
    return "diverged" if any(run.status == "diverged" for run in finals) else "not measured"


def speed_table(results: Results) -> Table | None:
    """Time and memory of a step and of one forward pass; None where speed was not measured."""
    speed = results.speed
    if not speed:
        return None
    base = results.baseline
    columns = (
        METHOD,
        *(_milliseconds(phase, phase if phase != "total" else "whole step") for phase in PHASES),
        Column("ratio_baseline", f"× {base}", with_bounds(), interval=True, place="terminal"),
        Column("ratio_floor", "× floor", with_bounds(), interval=True, place="terminal"),
        Column("saved_bytes", "saved for backward", digits(3, MEBI), "MiB"),
        Column("peak_bytes", "peak memory", digits(3, MEBI), "MiB"),
        Column("init_seconds", "init", digits(2), "s"),
        _milliseconds("latency_adapted", "latency adapted"),
        _milliseconds("latency_merged", "latency merged"),
    )
    measured = speed.get("methods", {})
    rows = [_floor_row(speed), *(_speed_row(label, measured[label]) for label in results.labels if label in measured)]
    return Table("speed", "Speed", _speed_caption(speed), columns, tuple(rows))


def _milliseconds(key: str, header: str) -> Column:
    return Column(f"{key}_seconds", header, to_its_interval(MILLI), "ms", interval=True)


def _floor_row(speed: Json) -> tuple[Cell, ...]:
    floor = speed["floor"]
    phases = (interval_cell(floor.get(phase)) for phase in PHASES)
    memory = (Cell(floor.get("saved_bytes")), Cell(floor.get("peak_bytes")))
    return (Cell("floor"), *phases, EMPTY, EMPTY, *memory, EMPTY, interval_cell(speed.get("base_latency")), EMPTY)


def _speed_row(label: str, method: Json) -> tuple[Cell, ...]:
    phases = (interval_cell(method.get(phase)) for phase in PHASES)
    ratios = (interval_cell(method.get("ratio_baseline")), interval_cell(method.get("ratio_floor")))
    sizes = (Cell(method.get("saved_bytes")), Cell(method.get("peak_bytes")), Cell(method.get("init_seconds")))
    latency = method.get("latency") or {}
    return (
        Cell(label),
        *phases,
        *ratios,
        *sizes,
        *(interval_cell(latency.get(kind)) for kind in ("adapted", "merged")),
    )


def _speed_caption(speed: Json) -> str:
    threads = int(speed.get("threads", 1))
    noise = significant(float(speed.get("noise", 0.0)), 1)
    return (
        f"Medians of {speed.get('rounds')} interleaved rounds on {threads} thread{'s' if threads > 1 else ''}, "
        f"{speed.get('batch_size')} rows of {speed.get('tokens')} tokens a step, with 95 % intervals (those of the "
        "times are in the CSV file). Ratios are formed within a round, so drift of the machine cancels; the floor's "
        f"ratio with itself is known to ±{noise}. The floor is the frozen base: its forward pass and the gradient of "
        "its input; its latency is that of the base model. Latency: one forward pass of one row. Saved for backward: "
        "activations kept. Peak memory: what a step adds at its highest."
    )
