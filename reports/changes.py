"""Settings, versions, sizes and costs in which two results folders differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reports.merging import formats, values
from reports.provenance import provenance
from reports.records import Json, Results

ALWAYS = {"Command", "Wall time", "Overhead share", "Runs computed", "Records"}  # differ without meaning anything
SIZES = {
    "trainable": "trainable parameters",
    "stored_bytes": "stored bytes",
    "left_after_merging": "left after merging",
}
ERROR_FACTOR = 2.0  # between merge errors, which are measured once; a smaller change is not reported
ERROR_FLOOR = 1e-4  # below it a merge is exact, and its error rounding


@dataclass(frozen=True)
class Change:
    """Something that is not the same; None where one side does not have it."""

    what: str
    a: Any
    b: Any


@dataclass(frozen=True)
class StepChange:
    """The step-time ratio to the baseline, {median, low, high}, in A and in B; ``apart``: the intervals do not meet."""

    label: str
    a: Json
    b: Json
    apart: bool


def setting_changes(a: Results, b: Results, labels: list[str]) -> tuple[Change, ...]:
    """Settings of the suite, and of the methods which both have."""
    return _changes(_settings(a, labels), _settings(b, labels))


def _settings(results: Results, labels: list[str]) -> dict[str, Any]:
    """The suite by dotted keys, as ``--set`` takes them; of the methods only those which both have."""
    suite = {key: value for key, value in results.suite.items() if key != "methods"}
    entries = {entry["label"]: entry for entry in results.suite["methods"] if entry["label"] in labels}
    for label, entry in entries.items():
        own = {key: value for key, value in entry.items() if key not in ("label", "method")}
        suite[f"methods.{label}"] = own | {
            "name": entry["method"]["name"],
            **entry["method"].get("hyperparameters", {}),
        }
    return _dotted(suite)


def _dotted(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _dotted(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) else {f"{prefix}{key}": inner}
    return flat


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Change, ...]:
    """A key that is missing and one without a value are the same."""
    return tuple(Change(key, a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key))


def version_changes(a: Results, b: Results) -> tuple[Change, ...]:
    """Digests of model, data, code and methods, versions of packages, and the machine."""
    known = [dict(provenance(results)) | _codes(results) for results in (a, b)]
    found = {change.what: change for change in _changes(*known) if change.what not in ALWAYS}
    # The runs' own environment and that of the export say the same, and a method of one side has no counterpart.
    twice = {name for name in found if name.startswith("Version of ") and name.removeprefix("Version of ") in found}
    alone = {name for name in found if name.startswith("Source of ") and not all(name in side for side in known)}
    return tuple(change for name, change in found.items() if name not in twice | alone)


def _codes(results: Results) -> dict[str, str]:
    """The digests of the code that trains and measures, and the format of the records."""
    identities = [record["run"].get("identity") or {} for record in results.records]
    both = {"Code digest": "code", "Format of records": "format"}
    found = {what: dict.fromkeys(str(i[key]) for i in identities if i.get(key)) for what, key in both.items()}
    return {what: ", ".join(values) for what, values in found.items() if values}


def size_changes(a: Results, b: Results, labels: list[str]) -> tuple[Change, ...]:
    """Counts of parameters and bytes."""
    found: list[Change] = []
    for label in labels:
        both = a.parameters(label), b.parameters(label)
        if all(both):
            named = [{f"{label}: {what}": side.get(key) for key, what in SIZES.items()} for side in both]
            found += _changes(*named)
    return tuple(found)


def step_changes(a: Results, b: Results, labels: list[str]) -> tuple[StepChange, ...]:
    """Of times only ratios are compared: they were formed within a round, so the machine's speed cancels."""
    if a.baseline != b.baseline:
        return ()
    found = []
    for label in labels:
        first, second = ((side.speed or {}).get("methods", {}).get(label, {}).get("ratio_baseline") for side in (a, b))
        if first and second and label != a.baseline and first != second:
            apart = first["high"] < second["low"] or second["high"] < first["low"]
            found.append(StepChange(label, first, second, apart))
    return tuple(found)


def merge_changes(a: Results, b: Results, labels: list[str]) -> tuple[Change, ...]:
    """Errors of merging that changed by a factor, and merges which only one side can hold."""
    found = []
    for label in labels:
        if not (a.merging(label) and b.merging(label)):
            continue
        for name in (name for name in formats(a) if name in formats(b)):
            errors = values(a, label, name).get("error"), values(b, label, name).get("error")
            if _errors_differ(*errors):
                found.append(Change(f"{label}: {name}", *errors))
    return tuple(found)


def _errors_differ(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is not b
    return max(a, b) > max(ERROR_FLOOR, ERROR_FACTOR * min(a, b))
