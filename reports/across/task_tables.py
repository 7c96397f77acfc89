"""The tables about the benchmarks themselves: how each was run, and which methods lack one."""

from __future__ import annotations

from dataclasses import replace

from reports.across.folders import Across, benchmark
from reports.across.normalised import scale
from reports.metrics import primary_name
from reports.records import Results
from reports.table import EMPTY, Cell, Column, Table, count, text, with_half
from reports.tables import METHOD, POINTS, in_points, methods_table
from reports.words import listed, span

BENCHMARK = Column("benchmark", "benchmark", text, align="left", place="terminal")


def tasks_table(across: Across) -> Table:
    """A row a benchmark: what it measures, how methods were run on it, and its zero."""
    columns = (
        BENCHMARK,
        Column("measure", "measure", text, align="left", place="terminal"),
        Column("test_items", "test items", count, place="terminal"),
        Column("matched", "matched by", text),
        Column("steps", "steps", text),
        Column("batch_size", "batch", count),
        Column("rates", "rates tried", text),
        Column("seeds", "final seeds", text),
        Column("zero", "normalised zero", with_half(POINTS), "points", place="terminal"),
        Column("margin", "practically equal within", text),
        Column("suite", "suite", text, align="left"),
    )
    zeros = scale(across).zeros
    rows = tuple(_task_row(across, results, zeros[benchmark(results)]) for results in across.results)
    caption = "Steps, batches and budgets may differ between benchmarks; within one they are the same for all methods"
    timed = any(results.time_matched for results in across.results)
    caption += (
        ", but steps where seconds were matched: there they were chosen for the same training time." * timed or "."
    )
    return Table("tasks", "The benchmarks", caption, columns, rows)


def _task_row(across: Across, results: Results, zero: float) -> tuple[Cell, ...]:
    items = max((run.items or 0 for run in results.runs if run.stage == "final"), default=0)
    return (
        Cell(benchmark(results)),
        Cell(primary_name(results)),
        Cell(items or None),
        Cell("seconds" if results.time_matched else "steps"),
        Cell(_steps(across, results)),
        Cell(results.training.get("batch_size")),
        Cell(span(results.points(label) for label in across.labels)),
        Cell(span(len(across.scores(label)[benchmark(results)]) for label in across.labels)),
        Cell(zero),
        Cell(f"±{in_points(results.margin)}"),
        Cell(str(results.suite.get("name", ""))),
    )


def _steps(across: Across, results: Results) -> str:
    """Of all methods, where seconds were matched; else those of the suite."""
    own = [steps for label in across.labels if (steps := results.steps(label))] if results.time_matched else []
    return span(own) if own else "" if results.length is None else str(results.length)


def methods_as_run(across: Across) -> Table:
    """The methods with every hyperparameter; for each benchmark where a search chose some of them on one."""
    tables = [methods_table(results) for results in across.results]
    if not any(results.space for results in across.results):
        return tables[0]
    columns = {column.key: column for table in tables for column in table.columns}
    rows = [
        (Cell(task), *(dict(zip((c.key for c in table.columns), row, strict=True)).get(key, EMPTY) for key in columns))
        for task, table in zip(across.tasks, tables, strict=True)
        for row in table.rows
    ]
    caption = f"What a search chose of the hyperparameters may differ between benchmarks. {tables[0].caption}"
    return replace(tables[0], caption=caption, columns=(BENCHMARK, *columns.values()), rows=tuple(rows))


def left_out_table(across: Across) -> Table:
    """The methods that are not compared, each with its reason; without rows where there are none."""
    columns = (METHOD, Column("missing", "no final runs on", text, align="left", place="terminal"))
    rows = tuple((Cell(label), Cell(listed(list(missing)))) for label, missing in across.left_out.items())
    caption = "A method is compared over the benchmarks only if it has final runs on all of them."
    return Table("left_out", "Methods left out", caption, columns, rows)
