"""The tables of a bench: a step of every method on each shape of batch, what is done once, and PiSSA's starts."""

from __future__ import annotations

from reports.costs import MILLI, PHASES
from reports.records import Json
from reports.rounding import significant
from reports.table import EMPTY, Cell, Column, Table, digits, text, to_its_interval, with_bounds
from reports.tables import MEBI, METHOD, interval_cell

PEFT = "peft:"  # before the label of a method: PEFT's implementation of it
WEIGHTS = {  # who has the frozen weights: what shares them may find them in the caches
    "own": "Every model has frozen weights of its own.",
    "shared": "Models of ours share their frozen weights; PEFT's have their own.",
}
ONCE = ("init", "attach", "merge", "unmerge", "save", "load")


def shape_key(shape: Json) -> str:
    """Name of a shape's table and figure."""
    return f"step_{shape['rows']}x{shape['tokens']}"


def labels(bench: Json) -> tuple[str, ...]:
    """Our methods, in the order in which they were asked for."""
    return tuple(label for label in bench["settings"] if not label.startswith(PEFT))


def tables(bench: Json) -> dict[str, Table]:
    """Every table that has rows, by key."""
    made = [*(step_table(bench, shape) for shape in bench["shapes"]), costs_table(bench), starts_table(bench)]
    return {table.key: table for table in made if table.rows}


def step_table(bench: Json, shape: Json) -> Table:
    """A row for each method of ours, the floor first; what PEFT has of the same method beside it."""
    columns = (
        METHOD,
        *(
            Column(f"{p}_seconds", p if p != "total" else "whole step", to_its_interval(MILLI), "ms", interval=True)
            for p in PHASES
        ),
        Column("ratio_floor", "× floor", with_bounds(), interval=True, place="terminal"),
        Column("ratio_lora", "× lora", with_bounds(), interval=True, place="terminal"),
        Column("ratio_peft", "× PEFT's own", with_bounds(), interval=True, place="terminal"),
        Column("peft_ratio_floor", "PEFT's own × floor", with_bounds(), interval=True),
        Column("saved_bytes", "saved for backward", digits(3, MEBI), "MiB", place="terminal"),
        Column("peft_saved_bytes", "PEFT saves", digits(3, MEBI), "MiB", place="terminal"),
        Column("peak_bytes", "peak memory", digits(3, MEBI), "MiB"),
        Column("peft_peak_bytes", "PEFT's peak", digits(3, MEBI), "MiB"),
    )
    timed, floor = shape["methods"], shape["floor"]
    memory = (Cell(floor["saved_bytes"]), EMPTY, Cell(floor["peak_bytes"]), EMPTY)
    rows = [(Cell("floor"), *_phases(floor), EMPTY, EMPTY, EMPTY, EMPTY, *memory)]
    rows += [_row(label, timed[label], timed.get(PEFT + label)) for label in labels(bench) if label in timed]
    title = f"{shape['rows']} rows of {shape['tokens']} tokens"
    return Table(shape_key(shape), title, _caption(bench, shape), columns, tuple(rows))


def _row(label: str, ours: Json, theirs: Json | None) -> tuple[Cell, ...]:
    ratios = [interval_cell(ours["ratios"].get(reference)) for reference in ("floor", "lora", "peft")]
    other: Json = theirs or {"ratios": {}}
    memory = [Cell(timing.get(kind)) for kind in ("saved_bytes", "peak_bytes") for timing in (ours, other)]
    return (Cell(label), *_phases(ours), *ratios, interval_cell(other["ratios"].get("floor")), *memory)


def _phases(timing: Json) -> list[Cell]:
    return [interval_cell(timing["phases"].get(phase)) for phase in PHASES]


BY_ONEDNN = (
    "Matrices are multiplied by oneDNN in the floor and in all methods of svdbench; PEFT stands on torch's own layers, "
    "as its users have it. SVDBENCH_PRODUCTS=torch compares with torch's products everywhere."
)


def by_onednn(bench: Json) -> bool:
    """Whether ours and PEFT's multiply by unlike libraries; where blocks are compiled, they do not."""
    return bench["environment"].get("products") == "onednn" and not bench.get("compile")


def _caption(bench: Json, shape: Json) -> str:
    threads, weights = int(bench["threads"]), WEIGHTS[bench.get("weights", "shared")]
    return (
        f"Medians of {shape['rounds']} interleaved rounds on {threads} thread{'s' if threads > 1 else ''} of "
        f"{bench['environment'].get('cpu', 'an unknown processor')}, with 95 % intervals; methods are timed in groups, "
        "each with the floor and lora. Ratios are formed within a round; the floor's with itself is known to "
        f"±{significant(float(shape['noise']), 1)}. {weights} The floor is the frozen base: its forward "
        "pass and the gradient of its input. PEFT's own: the same method of PEFT with equal hyperparameters, where it "
        f"has one.{f' {BY_ONEDNN}' if by_onednn(bench) else ''}"
    )


def costs_table(bench: Json) -> Table:
    """A row for each method and each of PEFT's: seconds of what is done once."""
    once = (*ONCE, "compile") if bench.get("compile") else ONCE
    columns = (METHOD, *(Column(f"{what}_seconds", what, digits(2, MILLI), "ms") for what in once))
    found = bench["costs"]
    ordered = [each for label in labels(bench) for each in (label, PEFT + label) if each in found]
    rows = tuple((Cell(label), *(Cell(found[label][what]) for what in once)) for label in ordered)
    caption = (
        "Measured once, or three times if short: orders of magnitude, without an interval. Init: attaching, with the "
        "start computed. Attach: again, with decompositions found in the cache. Load: onto a stock base."
        + (" Compile: on a first batch, forward and backward." if bench.get("compile") else "")
    )
    return Table("costs", "What is done once", caption, columns, rows)


def starts_table(bench: Json) -> Table:
    """A row for each way to PiSSA's start on all layers."""
    columns = (
        Column("start", "start", text, align="left", place="terminal"),
        Column("seconds", "all layers", with_bounds(), "s", interval=True, place="terminal"),
        Column("ratio", "× PEFT's exact one", digits(3), place="terminal"),
        Column("residual", "residual off by", digits(2), place="terminal"),
    )
    found = bench["starts"]
    exact = found["peft exact"]["seconds"]["median"] if found else 1.0
    rows = tuple(
        (Cell(name), interval_cell(s["seconds"]), Cell(s["seconds"]["median"] / exact), Cell(s["residual"]))
        for name, s in found.items()
    )
    caption = (
        "Medians of three, in turns, with the range. Residual: the largest relative distance, over layers, between the "
        "frozen residual and that of PEFT's exact start."
    )
    return Table("starts", "PiSSA's start", caption, columns, rows)
