"""The tables about costs: of a training step, of merging, and of one forward pass afterwards."""

from __future__ import annotations

from reports.records import Json, Results
from reports.rounding import bracketed, significant
from reports.table import EMPTY, Cell, Column, Table, digits, to_its_interval, with_bounds
from reports.tables import MEBI, METHOD, interval_cell

MILLI = 1e3
INPUTS = {"token": "one token", "batch": "a batch"}
SERVINGS = ("adapted", "folded", "merged")
PHASES = ("forward", "backward", "optimiser", "hooks", "total")


def speed_table(results: Results) -> Table | None:
    """Time and memory of a step; None where speed was not measured."""
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
    )
    measured = speed.get("methods", {})
    rows = [_floor_row(speed), *(_speed_row(label, measured[label]) for label in results.labels if label in measured)]
    caption = _speed_caption(speed) + (f" {PEERS}" if _unlike_products(results) else "")
    return Table("speed", "Speed", caption, columns, tuple(rows))


PEERS = "Methods of another library (peft:...) stand on torch's own layers, the others multiply by oneDNN."


def _unlike_products(results: Results) -> bool:
    libraries = {str((record.get("environment") or {}).get("products")) for record in results.records}
    return "onednn" in libraries and any(
        (results.method(label) or {}).get("name", "").startswith("peft:") for label in results.labels
    )


def _milliseconds(key: str, header: str) -> Column:
    return Column(f"{key}_seconds", header, to_its_interval(MILLI), "ms", interval=True)


def _floor_row(speed: Json) -> tuple[Cell, ...]:
    floor = speed["floor"]
    phases = (interval_cell(floor.get(phase)) for phase in PHASES)
    memory = (Cell(floor.get("saved_bytes")), Cell(floor.get("peak_bytes")))
    return (Cell("floor"), *phases, EMPTY, EMPTY, *memory, EMPTY)


def _speed_row(label: str, method: Json) -> tuple[Cell, ...]:
    phases = (interval_cell(method.get(phase)) for phase in PHASES)
    ratios = (interval_cell(method.get("ratio_baseline")), interval_cell(method.get("ratio_floor")))
    sizes = (Cell(method.get("saved_bytes")), Cell(method.get("peak_bytes")), Cell(method.get("init_seconds")))
    return (Cell(label), *phases, *ratios, *sizes)


def _speed_caption(speed: Json) -> str:
    threads = int(speed.get("threads", 1))
    noise = significant(float(speed.get("noise", 0.0)), 1)
    return (
        f"Medians of {speed.get('rounds')} interleaved rounds on {threads} thread{'s' if threads > 1 else ''}, "
        f"{speed.get('batch_size')} rows of {speed.get('tokens')} tokens a step, with 95 % intervals (those of the "
        "times are in the CSV file). Ratios are formed within a round, so drift of the machine cancels; the floor's "
        f"ratio with itself is known to ±{noise}. The floor is the frozen base: its forward pass and the gradient of "
        "its input. Saved for backward: activations kept. Peak memory: what a step adds at its highest."
    )


def latency_of(results: Results, label: str, given: str, serving: str) -> Json | None:
    """``seconds`` and ``ratio`` to the base of one forward pass; None where there is none."""
    method: Json = (results.speed or {}).get("methods", {}).get(label) or {}
    found: Json | None = ((method.get("latency") or {}).get(given) or {}).get(serving)
    return found


def latency_table(results: Results) -> Table:
    """A row a method: one forward pass with the adapter as it is, as a folded pair, and merged, against the base."""
    places = [(given, serving) for given in INPUTS for serving in SERVINGS]
    columns = (
        METHOD,
        *(
            Column(f"{given}_{serving}_ratio", f"{INPUTS[given]}, {serving}", with_bounds(), "× base", interval=True)
            for given, serving in places
        ),
        *(
            Column(f"{given}_{serving}_seconds", "", to_its_interval(MILLI), "ms", interval=True, place="data")
            for given, serving in places
        ),
    )
    rows = []
    for label in results.labels:
        found = [latency_of(results, label, *place) or {} for place in places]
        if any(found):
            cells = (interval_cell(value.get(kind)) for kind in ("ratio", "seconds") for value in found)
            rows.append((Cell(label), *cells))
    return Table("latency", "Latency", _latency_caption(results.speed or {}), columns, tuple(rows))


def _latency_caption(speed: Json) -> str:
    rounds = f"Medians of {speed.get('latency_rounds')} interleaved rounds"
    parts = [f"{rounds}; ratios to the base are formed within a round, with 95 % intervals."]
    if rows := speed.get("latency_rows"):
        parts.append(f" A batch is {rows} rows of {speed.get('tokens')} tokens.")
    if base := speed.get("base_latency"):
        taken = (
            f"{significant(base[g]['median'] * MILLI, 3)} ms for {name}" for g, name in INPUTS.items() if base.get(g)
        )
        parts.append(f" The base takes {' and '.join(taken)}.")
    if noise := speed.get("latency_noise"):
        known = (f"{bracketed(*bounds(noise[g]))} for {name}" for g, name in INPUTS.items() if noise.get(g))
        rounds = f"in {n} rounds" if (n := speed.get("latency_pooled_rounds")) else ""
        parts.append(f" Copies of it timed twice {rounds} are to themselves as {' and '.join(known)}.")
    parts.append(
        " Adapted: the method as it trains. Folded: the exact low-rank pair computed once, two thin products; "
        "absent where the pair would be as wide as the layer. Merged: the base's own products. The times are in the "
        "CSV file."
    )
    return "".join(parts)


def bounds(interval: Json) -> tuple[float, float, float]:
    """(median, low, high) of a measured interval."""
    return interval["median"], interval["low"], interval["high"]


def merge_cost_table(results: Results) -> Table:
    """Seconds and memory of merging all layers once: a row a method."""
    columns = (
        METHOD,
        Column("seconds", "time to merge", digits(2, MILLI), "ms", place="terminal"),
        Column("extra_bytes", "extra memory", digits(3, MEBI), "MiB", place="terminal"),
    )
    costs = {label: cost for label in results.labels if (cost := results.merging(label).get("cost"))}
    rows = tuple(
        (Cell(label), Cell(cost.get("seconds")), Cell(cost.get("extra_bytes"))) for label, cost in costs.items()
    )
    caption = (
        "All layers merged once: the median of a few rounds in a run that shares the machine, without an interval, so "
        "an order of magnitude. Extra memory: tensors at their highest, above what was there before, measured once."
    )
    return Table("merge_cost", "Cost of merging", caption, columns, rows)
