"""What a reviewer asks about an experiment, answered from the records, with what they do not hold.

The questions are those of the reproducibility checklist of the ACL conferences (Dodge et al. 2019, arXiv 1909.03004).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from reports.claims import missing
from reports.metrics import primary_name
from reports.records import Results
from reports.render import escape_markdown
from reports.rounding import significant
from reports.space import beside_the_rate, ranges, searched_of, shown, tried, values
from reports.table import Cell, Column, Table, count, learning_rate, plain, text
from reports.tables import METHOD
from reports.words import MANY, listed, span

CHECKLIST = "Reproducibility checklist"
MACHINE = ("cpu", "gpu", "cores", "threads", "products", "platform")
_UNRECORDED = "not in the records"
Pair = tuple[str, str]
_SPACE = (
    Column("searched", "searched beside the rate", text, align="left"),
    Column("chosen", "chosen", text, align="left"),
    Column("left_out", "not of this method", text, align="left"),
)
AXES = {  # sources of randomness, of which a suite may hold some fixed
    "data order": "data order",
    "head": "head initialisation",
    "adapter": "adapter initialisation",
    "dropout": "dropout",
    "subset": "the subset of the training data",
    "calibration": "calibration data",
}


def checklist(results: Results) -> list[Pair]:
    """(question, answer), in the order of the page."""
    pairs = [
        ("Number of runs", _numbers(results)),
        ("Bounds of the learning rate", _bounds(results)),
        ("Other hyperparameters", _others(results)),
        ("Trials a method", _trials(results)),
        ("Best configuration", _chosen(results)),
        ("Selection criterion", _selection(results)),
        ("Seeds", _seeds(results)),
        ("What a seed changes", _axes(results)),
        ("Training data", _training(results)),
        ("Data scored", _scored(results)),
        ("Digests", _digests(results)),
        ("Infrastructure", _machines(results)),
        ("Runtime", _runtime(results)),
        ("Parameters", _parameters(results)),
        ("Software", _software(results)),
        ("Command to run it again", results.command or _UNRECORDED),
    ]
    open_questions = [question.lower() for question, answer in pairs if answer == _UNRECORDED]
    gaps = [*missing(results), *(f"{question}: {_UNRECORDED}" for question in open_questions)]
    pairs.append(("What is missing", "; ".join(gaps) if gaps else "nothing that this list asks for"))
    return [(question, plain(answer)) for question, answer in pairs]


def checklist_markdown(results: Results) -> str:
    """The section of ``table.md``."""
    lines = [f"- **{question}:** {escape_markdown(answer)}" for question, answer in checklist(results)]
    return "\n\n".join([f"## {CHECKLIST}", "\n".join(lines)]) + "\n"


def search_space_table(results: Results) -> Table:
    """A row a method: what was searched, how often, and what came of it."""
    columns = (
        METHOD,
        Column("search_runs", "search runs", count, place="terminal"),
        Column("rates", "learning rates tried", count, place="terminal"),
        Column("lowest_rate", "lowest", learning_rate, place="terminal"),
        Column("highest_rate", "highest", learning_rate, place="terminal"),
        Column("chosen_rate", "of the final runs", learning_rate, place="terminal"),
        Column("final_runs", "final runs", count, place="terminal"),
        Column("criterion", "chosen by", text, align="left"),
        *(_SPACE if results.space else ()),
    )
    rows = tuple(_space_row(results, label) for label in results.labels)
    caption = "Bounds are those of the rates that were run. Failed and diverged runs are counted: they were trials too."
    return Table("search_space", "Search space and choice", caption, columns, rows)


def _space_row(results: Results, label: str) -> tuple[Cell, ...]:
    searched, finals = results.of(label, "search"), results.of(label, "final")
    rates = {run.lr for run in searched}
    ends = (min(rates), max(rates)) if rates else (None, None)
    chosen = f"validation {primary_name(results)}" if len(rates) > 1 else "given by the suite"
    numbers = (len(searched), len(rates), *ends, results.chosen_lr(label), len(finals))
    space = _beside(results, label) if results.space else ()
    return (Cell(label), *map(Cell, numbers), Cell(chosen if finals else ""), *space)


def _beside(results: Results, label: str) -> tuple[Cell, ...]:
    """What was searched beside the rate, what came of it, and what the method does not have."""
    searched, finals = searched_of(results, label), results.of(label, "final")
    absent = [name for name in beside_the_rate(results) if name not in searched] if results.of(label, "search") else []
    chosen = values(results, finals[0]) if finals else ""
    same = [f"{name} {shown(*found)}" for name in searched if len(found := tried(results, label, name)) == 1]
    always = f" (always drawn: {listed(same)})" if same else ""
    return (Cell(ranges(results, searched) + always), Cell(chosen), Cell(", ".join(absent)))


def _numbers(results: Results) -> str:
    stages = Counter(run.stage for run in results.runs)
    statuses = Counter(run.status for run in results.runs)
    lost = [f"{statuses[status]} {status}" for status in ("diverged", "failed") if statuses[status]]
    counted = f"{len(results.runs)}: {stages['search']} of the search, {stages['final']} final"
    return f"{counted}; {listed(lost)}" if lost else f"{counted}; none failed or diverged"


def _bounds(results: Results) -> str:
    rates = [run.lr for run in results.runs if run.stage == "search"]
    if not rates:
        return "not searched: the suite gives one rate a method"
    return f"{_rate(min(rates))} to {_rate(max(rates))} over all methods; the table of the search has each method's"


def _others(results: Results) -> str:
    names = beside_the_rate(results)
    searched = f"searched: {ranges(results, names)}; all others are " if names else ""
    return f"{searched}fixed: every value is under How it was run"


def _trials(results: Results) -> str:
    counts = {len(results.settings(label)) or 1 for label in results.labels}
    same = "the same for all" if len(counts) == 1 else "not the same for all: the table of the search has each"
    return f"{span(counts)} ({same})"


def _chosen(results: Results) -> str:
    chosen = [(label, results.chosen_lr(label)) for label in results.labels]
    said = [f"{label} {_rate(rate)}" for label, rate in chosen if rate is not None]
    if len(said) > MANY:
        return f"learning rates of {len(said)} methods: the table of the search has each"
    return f"learning rates: {', '.join(said)}" if said else "none yet: no final run is recorded"


def _selection(results: Results) -> str:
    if not any(run.stage == "search" for run in results.runs):
        return "none: nothing was selected"
    what = "setting" if results.space else "learning rate"
    criterion = (
        f"the {what} with the best validation {primary_name(results)}; test data are scored only in final runs, "
    )
    if shared := _shared_seeds(results):
        return f"{criterion}but careful: search and final runs share seeds {_said(shared)}"
    return f"{criterion}whose seeds the search did not use"


def _shared_seeds(results: Results) -> list[int]:
    used = [{run.seed for run in results.runs if run.stage == stage} for stage in ("search", "final")]
    return sorted(used[0] & used[1])


def _seeds(results: Results) -> str:
    finals = {label: {run.seed for run in results.of(label, "final")} for label in results.labels}
    counts = [len(seeds) for seeds in finals.values() if seeds]
    if not counts:
        return "none yet: no final run is recorded"
    every = _said(sorted(set().union(*finals.values())))
    search = _said(sorted({run.seed for run in results.runs if run.stage == "search"}))
    return f"{span(counts)} a method in the final runs ({every})" + (f"; the search used {search}" if search else "")


def _calibrated(results: Results) -> bool:
    return any(record["run"].get("calibration") for record in results.records)


def _axes(results: Results) -> str:
    """One seed drives them all, each through a stream of its own."""
    training = results.training
    dropout = bool(training.get("adapter_dropout")) or bool(training.get("base_dropout"))
    used = {"dropout": dropout, "subset": training.get("subset"), "calibration": _calibrated(results)}
    absent = {axis for axis, there in used.items() if not there}
    vary = results.suite.get("vary", AXES)
    changes = [name for axis, name in AXES.items() if axis in vary and axis not in absent]
    fixed = [name for axis, name in AXES.items() if axis not in vary and axis not in absent]
    fixed += [] if training.get("subset") else ["the training data"]
    said = f"{listed(changes)} together; one seed gives every method the same data order and head"
    said += f". It does not change {listed(fixed)}" if fixed else ""
    return said if dropout else f"{said}; no dropout is used"


def _training(results: Results) -> str:
    training = results.training
    steps, rows = training.get("steps"), training.get("batch_size")
    if not (steps and rows):
        return _UNRECORDED
    limit = results.suite.get("limit")
    cut = f", of at most {limit:,} items" if limit else ""
    seen = f"{steps:,} steps of {rows} items, {steps * rows:,} items seen{cut}"
    if results.time_matched:
        seen = f"as many steps of {rows} items as fit into the same time ({_steps(results)}){cut}"
    return f"{results.suite.get('benchmark')}: {seen}; the size of the training set is not recorded"


def _steps(results: Results) -> str:
    counted = {label: steps for label in results.labels if (steps := results.steps(label))}
    if not counted:
        return "not known yet"
    if len(counted) > MANY:
        return f"{span(counted.values())}: the table of the training time has each method's"
    return ", ".join(f"{label} {steps:,}" for label, steps in counted.items())


def _scored(results: Results) -> str:
    sizes: dict[str, set[int]] = {}
    for run in results.runs:
        if run.items:
            sizes.setdefault(run.split, set()).add(run.items)
    said = [f"{split} {span(sizes[split])} items" for split in ("validation", "test") if split in sizes]
    return listed(said) if said else _UNRECORDED


def _digests(results: Results) -> str:
    identities = [record["run"].get("identity") or {} for record in results.records]
    inputs = ("model", "data", "forgetting", "code")
    named = {name: _said(identity.get(name) for identity in identities) for name in inputs}
    return "; ".join(f"{name} {digest}" for name, digest in named.items() if digest) or _UNRECORDED


def _machines(results: Results) -> str:
    machines = [record.get("environment") or {} for record in results.records]
    named = {name: _said(machine.get(name) for machine in machines) for name in MACHINE}
    return "; ".join(f"{name} {value}" for name, value in named.items() if value) or _UNRECORDED


def _runtime(results: Results) -> str:
    totals = [float(r["seconds"]["total"]) for r in results.records if (r.get("seconds") or {}).get("total")]
    wall = (results.wall or {}).get("wall_seconds")
    said = [f"{significant(sum(totals) / 60, 3)} minutes of computing over {len(totals)} records"] if totals else []
    said += [f"{significant(float(wall) / 60, 3)} minutes from start to end of the last call"] if wall else []
    return "; ".join(said) or _UNRECORDED


def _parameters(results: Results) -> str:
    counts = [results.parameters(label).get("trainable") for label in results.labels]
    known = [int(number) for number in counts if number is not None]
    if not known:
        return _UNRECORDED
    base = next((b for label in results.labels if (b := results.parameters(label).get("base"))), None)
    whole = f" on a base of {base:,}" if base else ""
    return f"{min(known):,} to {max(known):,} trainable a method, without the task head{whole}"


def _software(results: Results) -> str:
    known = {name: str(value) for name, value in results.versions.items() if name not in MACHINE and value is not None}
    return ", ".join(f"{name} {value}" for name, value in known.items()) or _UNRECORDED


def _rate(value: float) -> str:
    return learning_rate(Cell(value))


def _said(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None and value != ""))
