"""The tables of scores across benchmarks: the aggregates, the scores side by side, and every verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from reports.across.aggregates import Aggregate, aggregates, enough_seeds, ranks_by_task
from reports.across.folders import Across, benchmark
from reports.across.normalised import Scale, scale
from reports.across.task_tables import BENCHMARK, left_out_table, methods_as_run, tasks_table
from reports.comparing import best_method, comparisons
from reports.metrics import primary_name
from reports.records import Results
from reports.rounding import bracketed, fixed
from reports.statistics import ENOUGH, VERDICTS
from reports.table import EMPTY, Cell, Column, Table, count, digits, text, with_half
from reports.tables import (
    EDGE,
    EDGE_NOTE,
    LOST,
    LOST_NOTE,
    METHOD,
    POINTS,
    RATE,
    UNPAIRED,
    UNPAIRED_NOTE,
    comparison_cells,
    difference_column,
    mean_cell,
    remark_texts,
)


def all_tables(across: Across) -> dict[str, Table]:
    """Every table that has rows, by key; ``main`` is the one over all benchmarks."""
    makers: Sequence[Callable[[Across], Table]] = (
        aggregate_table,
        scores_table,
        verdicts_table,
        tasks_table,
        left_out_table,
        methods_as_run,
    )
    made = (make(across) for make in makers)
    return {table.key: table for table in made if table.rows}


def aggregate_table(across: Across) -> Table:
    """A row a method: what is said of it over all benchmarks."""
    columns = (
        METHOD,
        Column("mean_rank", "mean rank", digits(3), place="terminal"),
        Column("normalised_mean", "mean", _hundredths, "normalised", interval=True),
        Column("normalised_iqm", "IQM", _hundredths, "normalised", interval=True, place="terminal"),
        Column("improvement", f"chance to beat {across.baseline}", _hundredths, interval=True, place="terminal"),
        *(Column(word.replace(" ", "_"), word, count, place="terminal") for word in VERDICTS),
    )
    found = aggregates(across)
    rows = tuple(_aggregate_row(label, found[label], label == across.baseline) for label in across.labels)
    return Table("main", "Over all benchmarks", _aggregate_caption(across), columns, rows)


def _aggregate_row(label: str, found: Aggregate, is_baseline: bool) -> tuple[Cell, ...]:
    counts = (EMPTY if is_baseline else Cell(found.verdicts[word]) for word in VERDICTS)
    return (Cell(label), Cell(found.mean_rank), found.mean, found.iqm, found.improvement, *counts)


def _hundredths(cell: Cell) -> str:
    """A number around 0 to 1, with its interval if it has one."""
    if cell.low is None:
        return fixed(float(cell.value or 0), 2)
    return bracketed(float(cell.value or 0), cell.low, cell.high, least=2)


def _aggregate_caption(across: Across) -> str:
    tasks, base = len(across.tasks), across.baseline
    return (
        f"Final test runs on {tasks} benchmarks, which all count the same and are taken as they are: nothing here "
        "speaks of other benchmarks. Mean rank: by the mean score on each benchmark among these methods, 1 is best. "
        f"{scale_words(scale(across))} {_interval_words(across)} Chance to beat {base}: that a run scores above a run "
        f"of {base} on a benchmark drawn at random, ties counting half; 0.5 is no difference. The last columns count "
        f"benchmarks by the verdict against {base}, paired by seed and Holm-corrected within each benchmark, not over "
        "them."
    )


def scale_words(found: Scale) -> str:
    """What a normalised score is, and why the zero is what it is."""
    if found.why:
        return f"Normalised scores are the scores themselves, where 1 is perfect: {found.why}."
    return (
        "Normalised scores: 0 is the mean score of the probe, which trains the task head alone, and 1 a perfect score, "
        "so that a score is the share it wins of what the probe leaves. No method with an adapter sets "
        "either end; both are taken as known."
    )


def _interval_words(across: Across) -> str:
    words = "IQM: the interquartile mean, that is the mean of the middle half of all normalised scores"
    sizes = {len(runs) for label in across.labels for runs in across.scores(label).values()}
    uneven = "" if len(sizes) == 1 else ", in which a benchmark with more seeds weighs more"
    if enough_seeds(across):
        how = "Intervals are 95 %, by a bootstrap that draws seeds anew within each benchmark"
        return f"{words}{uneven}. {how}; they are not corrected for the number of methods."
    return (
        f"{words}{uneven}. Intervals are 95 % t-intervals over seeds of the mean; a bootstrap covers what it says from "
        f"{ENOUGH} seeds of every method and benchmark on, so below that the IQM and the "
        "chance stand without one."
    )


def scores_table(across: Across) -> Table:
    """A row a method, a score with its interval and a rank a benchmark."""
    columns = [METHOD]
    for task, results in zip(across.tasks, across.results, strict=True):
        key, measure = f"{task}_{results.metric}", primary_name(results)
        columns += [
            Column(key, task, with_half(POINTS), measure, interval=True, place="terminal"),
            Column(f"{task}_rank", "rank", _rank, place="terminal"),
        ]
    ranks, best = ranks_by_task(across), [best_method(results) for results in across.results]
    rows = tuple(
        (
            Cell(label),
            *chain.from_iterable(
                (score_cell(results, label, label == winner), Cell(ranks[label][benchmark(results)]))
                for results, winner in zip(across.results, best, strict=True)
            ),
        )
        for label in across.labels
    )
    caption = (
        "Test scores in points, hundredths of one, each method at its own learning rate: mean over the seeds of the "
        "final runs with the half-width of the 95 % t-interval. The rank is by the mean; neighbours whose verdict is "
        "open may change places. Bold: better than every other method of the benchmark beyond the interval of the "
        "paired difference."
    )
    return Table("scores", "Scores by benchmark", caption, tuple(columns), rows, ((LOST, _lost_note(across)),))


def score_cell(results: Results, label: str, best: bool = False) -> Cell:
    """Mean over the final seeds that have a score; only a mark where every run diverged."""
    cell = mean_cell(results, label, "primary", best)
    return cell if cell.value is not None else Cell(None, mark=LOST)


def _lost_note(across: Across) -> str:
    counts = "scores 0 points" if scale(across).why else "counts as one of the probe, normalised 0"
    return f"{LOST_NOTE} For its rank, and in every number over all benchmarks, a diverged run {counts}."


def _rank(cell: Cell) -> str:
    return f"{float(cell.value or 0):g}"


def verdicts_table(across: Across) -> Table:
    """A row for each benchmark and method: as in that benchmark's own report."""
    columns = (
        BENCHMARK,
        METHOD,
        RATE,
        Column("score", "score", with_half(POINTS), "points", interval=True, place="terminal"),
        difference_column(across.baseline),
        Column("verdict", "verdict", text, align="left", place="terminal"),
        Column("seeds", "seeds", count),
        Column("remark", "remark", text, align="left"),
    )
    rows = tuple(chain.from_iterable(_verdict_rows(across, results) for results in across.results))
    caption = (
        f"Differences to {across.baseline} are paired by seed; verdicts are those of each benchmark's own report, "
        "Holm-corrected over its methods."
    )
    notes = ((EDGE, EDGE_NOTE), (UNPAIRED, UNPAIRED_NOTE), (LOST, _lost_note(across)))
    return Table("verdicts", "Every verdict", caption, columns, rows, notes)


def _verdict_rows(across: Across, results: Results) -> list[tuple[Cell, ...]]:
    against, remarks = comparisons(results, results.baseline), remark_texts(results)
    return [
        (
            Cell(benchmark(results)),
            Cell(label),
            Cell(results.chosen_lr(label), mark=EDGE if results.on_edge(label) else ""),
            score_cell(results, label),
            *comparison_cells(results, label, against),
            Cell(len(results.outcomes(label))),
            Cell(remarks[label]),
        )
        for label in across.labels
    ]
