"""How the runs were made, and where every number comes from: (what, value) pairs for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from reports.records import Json, Results
from reports.space import ranges
from reports.table import plain
from reports.words import listed


def protocol(results: Results) -> list[tuple[str, str]]:
    """How the runs were made: (what, value)."""
    suite, training = results.suite, results.training
    finals = sorted({run.seed for run in results.runs if run.stage == "final"})
    same = (
        f"; steps are {suite['baseline']}'s: the others' were chosen for the same training time"
        if results.time_matched
        else ""
    )
    searches = sorted({run.seed for run in results.runs if run.stage == "search"})
    return [
        ("Model", plain(str(suite.get("model", "")))),
        ("Benchmark", plain(str(suite.get("benchmark", "")))),
        ("Adapted modules", plain("; ".join(_places(suite)))),
        ("Learning-rate grid", _grid(results)),
        ("Search", f"validation split, seed {_joined(searches)}" if searches else "none"),
        (
            "Final runs",
            f"test split, seeds {_joined(finals)}; one seed gives every method the same data order and head",
        ),
        ("Training", ", ".join(f"{plain(str(name))} {plain(str(value))}" for name, value in training.items()) + same),
    ]


def _grid(results: Results) -> str:
    """One rate each, or how many; methods with their own number are grouped by it."""
    if results.space:
        drawn = f"{results.suite['protocol']['trials']} quasi-random settings a method"
        return plain(f"{drawn}: {ranges(results, list(results.space))}; the rate is LoRA's, relative to its centre")
    grid, counts = results.suite["protocol"], Counter(map(results.points, results.labels))
    usual = int(grid.get("points", 1))
    own = {n: [plain(label) for label in results.labels if results.points(label) == n] for n in counts if n != usual}
    said = [_points(usual)] if usual in counts else []
    said += [f"{_points(number)} for {listed(labels)}" for number, labels in own.items()]
    spaced = f"; {grid.get('per_decade')} per decade" if max(counts) > 1 else ""
    raced = f"; raced in {results.rungs} rungs, one rate in {results.racing} went on" if results.racing else ""
    return f"{', '.join(said)}{spaced}; LoRA's centre {grid.get('lr')}{raced}"


def _points(number: int) -> str:
    return "one given rate" if number == 1 else f"{number} points"


def provenance(results: Results) -> list[tuple[str, str]]:
    """Where the numbers come from: (what, value). Values that differ between records are all listed."""
    identities = [record["run"].get("identity") or {} for record in results.records]
    environments = [flat(record.get("environment") or {}) for record in results.records]
    rows = [("Command", results.command)]
    rows += [
        (f"{name} digest", _joined(i.get(name, "") for i in identities)) for name in ("model", "data", "forgetting")
    ]
    names = dict.fromkeys(name for i in identities for name in i.get("methods", {}))
    rows += [(f"Source of {name}", _joined(i.get("methods", {}).get(name, "") for i in identities)) for name in names]
    rows += [("Device", _joined(record["run"].get("device", "") for record in results.records))]
    keys = dict.fromkeys(key for environment in environments for key in environment)
    rows += [(key, _joined(environment.get(key, "") for environment in environments)) for key in keys]
    rows += [(f"Version of {name}", str(value)) for name, value in results.versions.items()]
    rows += [("Records", f"{len(results.records)}" + (f", {results.left_out} left out" if results.left_out else ""))]
    return [(plain(name), plain(value)) for name, value in [*rows, *_wall(results.wall)] if value]


def _wall(wall: Json | None) -> list[tuple[str, str]]:
    if not wall:
        return []
    seconds, share = wall.get("wall_seconds"), wall.get("overhead_share")
    rows = [("Wall time", f"{seconds:,.0f} s" if seconds is not None else "")]
    rows += [("Workers", str(wall.get("workers", ""))), ("Runs computed", str(wall.get("computed_runs", "")))]
    return [*rows, ("Overhead share", f"{100 * share:.1f} %" if share is not None else "")]


def flat(value: Json, prefix: str = "") -> dict[str, str]:
    """Nested mappings as one, keys joined by spaces."""
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}{key} ") if isinstance(inner, dict) else {f"{prefix}{key}": str(inner)}
    return found


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value != "" and value is not None))


def _places(suite: Json) -> list[str]:
    """The patterns of the suite, then those of methods that have their own."""
    own = [(entry["label"], entry["where"]) for entry in suite.get("methods", ()) if entry.get("where")]
    everywhere = ", ".join(map(str, suite.get("where", ())))
    return [everywhere, *(f"{label}: {', '.join(map(str, where))}" for label, where in own)]
