"""What changed between two results folders, in words and tables, for the terminal, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from reports.changes import ERROR_FACTOR, ERROR_FLOOR, Change
from reports.difference import Differences, MethodDifference, Word
from reports.render import escape_markdown, to_markdown, to_rich
from reports.rounding import plus_minus, significant
from reports.statistics import Estimate
from reports.table import EMPTY, Cell, Column, Table, learning_rate, plain, text, with_bounds, with_half
from reports.tables import METHOD, POINTS, interval_cell
from reports.words import in_words

NAMES = ("A", "B")
LISTED: dict[Word, str] = {
    "the same runs": "The same runs in both",
    "equal": "Computed anew, with every score the same",
    "one seed": "Not decided, for want of a second seed",
    "lost seeds": "Not decided, some seeds of the better side diverged",
    "other test data": "Not comparable, the test data differ",
    "no score": "Without a score on one side",
}


def sentences(found: Differences) -> list[str]:
    """What changed, in words, the accuracies first."""
    said = [*_accuracy_sentences(found), *_other_sentences(found)]
    for side, labels in zip(NAMES, (found.only_a, found.only_b), strict=True):
        said += [f"Only in {side}: {in_words(labels, 'methods')}."] if labels else []
    return said


def _accuracy_sentences(found: Differences) -> Iterator[str]:
    tested = [method for method in found.methods if method.shift]
    beyond = False
    for word in ("better", "worse"):
        named = [f"{m.label} ({_points(m)})" for m in tested if m.verdict == word]
        beyond = beyond or bool(named)
        if named:
            yield f"{word.capitalize()} in B beyond noise: {in_words(named, 'methods')}."
    if tested and not beyond:
        yield f"No accuracy changed beyond noise: {len(tested)} methods tested, Holm-corrected at 95 %."
    elif not found.methods:
        yield "No method is in both."
    for verdict, what in LISTED.items():
        labels = [method.label for method in found.methods if method.verdict == verdict]
        if labels:
            yield f"{what}: {in_words(labels, 'methods')}."
    if moved := [method.label for method in found.methods if None not in method.rates and len(set(method.rates)) > 1]:
        yield f"Another learning rate was chosen for {in_words(moved, 'methods')}."


def _points(method: MethodDifference) -> str:
    assert method.shift is not None
    return f"{plus_minus(method.shift.mean * POINTS, method.shift.half * POINTS, signed=True)} points"


def _other_sentences(found: Differences) -> Iterator[str]:
    for changes, what in ((found.settings, "settings"), (found.versions, "versions or machines")):
        named = [change.what for change in changes]
        yield f"Different {what}: {in_words(named, what)}." if named else f"No different {what}."
    if found.sizes:
        yield f"{len(found.sizes)} sizes of adapters differ."
    if found.steps:
        apart = [step.label for step in found.steps if step.apart]
        ratios = f"Of {len(found.steps)} step-time ratios to the baseline"
        yield (
            f"{ratios}, those with intervals apart: {in_words(apart, 'methods')}."
            if apart
            else f"{ratios}, none moved."
        )
    if found.merges:
        yield f"{len(found.merges)} errors of merging differ by a factor of {significant(ERROR_FACTOR)} or more."


def tables(found: Differences) -> list[Table]:
    """Every table that has rows."""
    made = [
        _accuracy_table(found),
        _change_table("settings", "Settings", "", found.settings),
        _change_table("versions", "Versions and machines", "", found.versions),
        _change_table("sizes", "Sizes", "", found.sizes),
        _step_table(found),
        _change_table("merging", "Errors of merging", MERGING, found.merges),
    ]
    return [table for table in made if table.rows]


MERGING = (
    "Distance of merged from adapted outputs, as a share of the adapter's effect, in the first final run. Measured "
    f"once, so without an interval: changes by less than a factor of {significant(ERROR_FACTOR)}, and errors below "
    f"{significant(ERROR_FLOOR)}, are left out."
)


def _accuracy_table(found: Differences) -> Table:
    columns = (
        METHOD,
        *(Column(f"learning_rate_{s.lower()}", f"learning rate, {s}", learning_rate, place="terminal") for s in NAMES),
        *(
            Column(
                f"accuracy_{s.lower()}", f"accuracy, {s}", with_half(POINTS), "points", place="terminal", interval=True
            )
            for s in NAMES
        ),
        Column("difference", "B less A", with_half(POINTS, signed=True), "points", place="terminal", interval=True),
        Column("seeds", "seeds", text, place="terminal", align="left"),
        Column("verdict", "verdict", text, place="terminal", align="left"),
    )
    rows = tuple(
        (
            Cell(m.label),
            *map(Cell, m.rates),
            *map(_estimate, m.accuracies),
            Cell(m.shift.mean, m.shift.mean - m.shift.half, m.shift.mean + m.shift.half) if m.shift else EMPTY,
            Cell(_seeds(m)),
            Cell(m.verdict),
        )
        for m in found.methods
    )
    caption = (
        "Mean accuracies with 95 % intervals. Paired: equal seeds share data order, head and the adapter's draw; "
        "independent: two samples (Welch). Verdicts are about B, Holm-corrected over the methods tested; the intervals "
        "are not corrected. Equal: computed anew, and every score is the same."
    )
    return Table("difference", "Accuracy", caption, columns, rows)


def _estimate(found: Estimate | None) -> Cell:
    return EMPTY if found is None else Cell(found.mean, found.low, found.high)


def _seeds(method: MethodDifference) -> str:
    """How many on each side, how they were compared, and how many are missing because they diverged."""
    counts = [0 if estimate is None else estimate.n for estimate in method.accuracies]
    said = [str(counts[0]) if len(set(counts)) == 1 else f"{counts[0]} and {counts[1]}"]
    said += [method.shift.how] if method.shift else []
    said += [f"{n} diverged in {side}" for n, side in zip(method.diverged, NAMES, strict=True) if n]
    return ", ".join(said)


def _change_table(key: str, title: str, caption: str, changes: Iterable[Change]) -> Table:
    columns = (
        Column("what", "what", text, align="left", place="terminal"),
        *(Column(side.lower(), side, text, align="left", place="terminal") for side in NAMES),
    )
    rows = tuple((Cell(change.what), Cell(_value(change.a)), Cell(_value(change.b))) for change in changes)
    return Table(key, title, caption, columns, rows)


def _value(value: Any) -> str:
    """A setting as TOML people would write it, or a measurement to few digits."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return significant(value, 3)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _step_table(found: Differences) -> Table:
    columns = (
        METHOD,
        *(Column(f"ratio_{s.lower()}", s, with_bounds(), place="terminal", interval=True) for s in NAMES),
    )
    moved = [step for step in found.steps if step.apart]
    rows = tuple((Cell(step.label), interval_cell(step.a), interval_cell(step.b)) for step in moved)
    caption = "Step time as a multiple of the baseline's, with 95 % intervals, where the two intervals do not meet."
    return Table("steps", "Step time", caption, columns, rows)


def terminal(found: Differences, names: tuple[str, str]) -> RenderableType:
    """For ``rich.print``: the tables, which folder is which, and what changed."""
    heads = [Text(f"{side} is {plain(name)}") for side, name in zip(NAMES, names, strict=True)]
    return Group(*map(to_rich, tables(found)), Text(), *heads, *(Text(f"• {plain(s)}") for s in sentences(found)))


def markdown(found: Differences, names: tuple[str, str]) -> str:
    """The same as a document."""
    heads = [f"{side}: {escape_markdown(name)}\n" for side, name in zip(NAMES, names, strict=True)]
    said = "".join(f"- {escape_markdown(sentence)}\n" for sentence in sentences(found))
    return "\n".join(["# What changed from A to B\n", *heads, said, *map(to_markdown, tables(found))])


def as_json(found: Differences, names: tuple[str, str]) -> dict[str, Any]:
    """Everything, in full precision, in the units of the records."""
    return {**dict(zip(("a", "b"), names, strict=True)), "sentences": sentences(found), **asdict(found)}
