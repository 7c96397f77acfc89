"""What the command line shows as tables on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from evaluation.display import duration
from evaluation.protocol import Plan
from evaluation.sizes import Sizes
from evaluation.space import owned
from evaluation.spec import Entry, Record, ScoreRun, Suite
from evaluation.strategies import strategy

ALIKE = 1.5  # a factor between the lengths of timed rows and of texts that is not worth a word


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of equal keys; the keys are the headings."""
    headings = [key.replace("_", " ") for key in rows[0]]
    table = Table(*headings, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for row in rows:
        table.add_row(*map(in_words, row.values()))
    return table


def in_words(value: object) -> str:
    """A JSON value as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == []:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def plan_table(plan: Plan, rows: Iterable[Mapping[str, Any]]) -> Table:
    """What a suite would run, from the rows of ``estimate``."""
    table = Table("method", "stage", "learning rates or seeds", "runs left", "runs done", "about", box=box.SIMPLE_HEAD)
    for row in rows:
        counts = (str(row["runs"]), str(row["done"]))
        table.add_row(row["method"], row["stage"], _setting(plan, row), *counts, duration(row["seconds"]))
    return table


def _setting(plan: Plan, row: Mapping[str, Any]) -> str:
    """What varies within one row of the plan."""
    suite = plan.suite
    if row["stage"] == "speed" and suite.speed:
        return f"{suite.speed.rounds} interleaved rounds{_pace(suite, suite.speed.tokens, row)}"
    if row["stage"] == "quantised" and suite.quantised:
        return f"ranks {', '.join(map(str, suite.quantised.ranks))}"
    entry = next(e for e in suite.methods if e.label == row["method"])
    if row["stage"] == "search":
        return _tried(plan, entry)
    rate = f"{plan.rate(entry, {}):g}" if not suite.trials_of(entry) else "the best rate"
    rate = "the best setting" if suite.searched else rate
    seeds, cap = suite.seeds_of(entry), suite.protocol.max_seeds
    return f"seed{'s 1 to' if seeds > 1 else ''} {seeds} at {rate}{f' (up to {cap})' if cap else ''}"


def _pace(suite: Suite, timed: int, row: Mapping[str, Any]) -> str:
    """What the speed run decides where seconds are matched; with a word if its rows are not about as long as texts."""
    if suite.match == "steps":
        return ""
    texts = round(row.get("tokens", timed))
    far = not texts / ALIKE <= timed <= texts * ALIKE
    advice = f"; timed on rows of {timed} tokens, while the median text has {texts}: write speed.tokens = {texts}"
    return f", first: they decide the steps of each method{advice if far else ''}"


def _tried(plan: Plan, entry: Entry) -> str:
    """The settings of a method's search."""
    suite = plan.suite
    seeds = f", with {suite.protocol.search_seeds} seeds" if suite.protocol.search_seeds > 1 else ""
    if suite.searched:
        return f"{suite.trials_of(entry)} settings of {', '.join(sorted({'lr', *owned(suite, entry)}))}{seeds}"
    rates = dict.fromkeys(run.lr for run in plan.search(entry).runs)
    more = suite.trials_of(entry) - len(rates)
    said = ", ".join(f"{rate:g}" for rate in rates) + (f" and {more} more" if more else "")
    if suite.protocol.racing is None:
        return said + seeds
    lengths = Counter(steps or suite.training.steps for steps in strategy(suite, entry).lengths)
    return f"{said}: {', '.join(f'{n} for {steps} steps' for steps, n in lengths.items())}{seeds}"


def status_table(records: Iterable[Record]) -> Table:
    """How many runs of each method, stage and status there are."""

    def place(record: Record) -> tuple[str, str, str]:
        run = record.run
        if isinstance(run, ScoreRun):
            return run.method.name, run.stage, record.status
        return "all", run.kind, record.status

    table = Table("method", "stage", "status", "runs", box=box.SIMPLE_HEAD)
    for (name, stage, state), n in sorted(Counter(map(place, records)).items()):
        table.add_row(name, stage, state, str(n))
    return table


def merging_table(behaviour: Mapping[str, Any]) -> Table:
    """What ``measures.merging`` found: a row for each format and way of rounding."""
    heads = ("weights", "rounded", "error", "largest logit change", "flipped", "accuracy", "merged", "update kept")
    table = Table(*heads, box=box.SIMPLE_HEAD)
    if not behaviour["formats"]:
        table.add_row("none", "", "cannot be merged: it depends on the input")
    for format, values in behaviour["formats"].items():
        if values["overflow"]:
            table.add_row(format, "nearest", "cannot hold the weights")
            continue
        for way, found in (("nearest", values), ("stochastic", values["stochastic"])):
            if found:
                changes = [_short(found[kind]) for kind in ("error", "max_logit_change")]
                shares = (found["flipped"], values["accuracy_adapted"], found["accuracy_merged"], found["kept"])
                table.add_row(format, way, *changes, *map(_percent, shares))
    return table


def _short(number: float | None) -> str:
    return "-" if number is None else f"{number:.2g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def sizes_table(counted: Sizes) -> Table:
    """What each method trains and stores."""
    table = Table("method", "size", box=box.SIMPLE_HEAD)
    for column in ("trainable", "share", "file", "optimiser", "gradients"):
        table.add_column(column, justify="right")
    for row in counted.methods:
        share = "-" if row.share is None else "< 0.001 %" if 0 < row.share < 1e-5 else f"{100 * row.share:.3g} %"
        counts = ["-" if row.trainable is None else f"{row.trainable:,}", share]
        memory = map(in_bytes, (row.file_bytes, row.optimiser_bytes, row.gradient_bytes))
        table.add_row(row.method, row.size, *counts, *memory)
    return table


def in_bytes(number: int | None) -> str:
    """Bytes as people read them."""
    if number is None:
        return "-"
    units = ["B", "kB", "MB", "GB", "TB"]
    power = 0
    while number / 1000**power >= 999.5 and power < len(units) - 1:
        power += 1
    value = number / 1000**power
    return f"{value:,.0f} {units[power]}" if value >= 100 else f"{value:.3g} {units[power]}"
