"""Where training starts: every method's distance from the base, the verdict on it, and starts on a quantised base."""

from __future__ import annotations

import math
from collections.abc import Iterator

from reports.merging import paired
from reports.metrics import primary_name
from reports.records import Json, Results
from reports.rounding import plus_minus, significant
from reports.table import Cell, Column, Table, count, digits, text, with_half, yes_no
from reports.tables import METHOD, POINTS, mean_cell
from reports.words import MANY, Verdict, refuted

PRESERVING = 1e-5  # largest logit change at the start, relative to the largest logit, that counts as none
STARTS = {"qlora": "QLoRA", "loftq": "LoftQ", "qpissa": "QPiSSA"}


def change_of(start: Json) -> float:
    """Relative to the largest logit; infinite where outputs are not finite."""
    change = start["relative_change"]
    return math.inf if change is None else float(change)


def start_of(results: Results, label: str) -> Json | None:
    """The start that lies farthest from the base, of all final seeds; None where not measured."""
    return max(results.starts(label), key=change_of, default=None)


def start_table(results: Results) -> Table:
    """A row a method: how far it begins from the pretrained function, and where it ends."""
    columns = (
        METHOD,
        Column("preserving", "preserving", yes_no, align="left", place="terminal"),
        Column("exact_init", "declared exact", yes_no, align="left"),
        Column("relative_change", "relative logit change", digits(2), place="terminal"),
        Column("max_logit_change", "largest logit change", digits(2)),
        Column("loss_base", "loss of the base", digits(4), "nats"),
        Column("loss_start", "loss at the start", digits(4), "nats", place="terminal"),
        Column(
            results.metric,
            f"final {primary_name(results)}",
            with_half(POINTS),
            "points",
            interval=True,
            place="terminal",
        ),
    )
    kinds = ("exact_init", "relative_change", "max_logit_change", "loss_base", "loss_start")
    rows = tuple(
        (
            Cell(label),
            Cell(change_of(start) < PRESERVING),
            *(Cell(start.get(kind)) for kind in kinds),
            mean_cell(results, label, "primary"),
        )
        for label in results.labels
        if (start := start_of(results, label))
    )
    caption = (
        "Base against freshly attached adapter, before any training, both with the same fresh head; of several seeds "
        "the one that changes most. Preserving: no logit changes by more than "
        f"{PRESERVING:.0e} of the largest one, in float32.".replace("e-0", "e-")
    )
    return Table("start", "Starts", caption, columns, rows)


def quantised_rows(results: Results) -> Iterator[tuple[str, int, Json]]:
    """(format, rank, errors of every start), by format and rising rank."""
    for name, ranks in (results.quantised or {}).items():
        for rank in sorted(ranks, key=int):
            yield name, int(rank), ranks[rank]


def quantised_table(results: Results) -> Table:
    """Errors of starting from a quantised base in three ways: a row for each format and rank."""
    columns = (
        Column("format", "format", text, align="left", place="terminal"),
        Column("rank", "rank", count, place="terminal"),
        *(Column(f"{kind}_weight_error", f"{name}: weights", digits(3)) for kind, name in STARTS.items()),
        *(
            Column(f"{kind}_output_error", f"{name}: logits", digits(3), place="terminal")
            for kind, name in STARTS.items()
        ),
    )
    rows = tuple(
        (
            Cell(name),
            Cell(rank),
            *(Cell((errors.get(kind) or {}).get(what)) for what in ("weight_error", "output_error") for kind in STARTS),
        )
        for name, rank, errors in quantised_rows(results)
    )
    caption = (
        "Relative error of quantised weight plus low-rank pair against the float32 base, before any training: of all "
        "adapted weights together, and of the logits. QLoRA starts with a pair of zero; LoftQ and QPiSSA alternate "
        "between quantising and a truncated SVD of what is left, five times, from a pair of zero and from the largest "
        "singular directions."
    )
    return Table("quantised", "Starts on a quantised base", caption, columns, rows)


def start_verdict(results: Results) -> Verdict | None:
    """Whether the start destroys the pretrained function; the probe, which changes nothing, is left out."""
    starts = {k: start for k in results.labels if k != results.probe and (start := start_of(results, k))}
    if not starts:
        return None
    moved = [label for label in starts if not change_of(starts[label]) < PRESERVING]
    pairs = [label for label in paired(results) if label in starts]
    named, form = pairs or list(starts), "updates with an exact low-rank pair" if pairs else "methods"
    still = sum(label not in moved for label in named)
    evidence = [f"{still} of {len(named)} {form} start at the pretrained function."]
    if others := [label for label in starts if label not in named]:
        evidence.append(f"Of other methods, {sum(label not in moved for label in others)} of {len(others)} do.")
    if moved and len(moved) <= MANY:
        evidence.append(f"Not so: {'; '.join(_moved(results, label, starts[label]) for label in moved)}.")
    elif moved:
        evidence.append(f"Not so: {len(moved)} methods, in the table of starts.")
    return Verdict(
        key="start",
        statement="The start of an SVD-form update destroys the pretrained function",
        short="their start destroys the pretrained function",
        word=refuted(still, len(named)),
        evidence=tuple(evidence),
        rule=(
            "A start preserves the function if in float32 no logit changes by more than "
            f"{significant(PRESERVING, 1)} of the largest logit, before any training and with the same head."
        ),
    )


def _moved(results: Results, label: str, start: Json) -> str:
    said = [f"relative change {significant(change_of(start))}"]
    losses = [loss for name in ("loss_base", "loss_start") if (loss := start.get(name)) is not None]
    said += [f"loss {' to '.join(significant(loss, 3) for loss in losses)}"] if len(losses) == 2 else []
    cell = mean_cell(results, label, "primary")
    if isinstance(cell.value, float):
        half = None if cell.half is None else cell.half * POINTS
        said.append(f"and it ends at {plus_minus(cell.value * POINTS, half)} points")
    return f"{label} ({', '.join(said)})"
