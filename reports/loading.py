"""Reads a results folder: its suite and its records, checked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from reports.records import Json, Results, ScoreRun, searched_space
from reports.shapes import record_problem, suite_problem
from reports.table import plain


class UnusableResults(ValueError):
    """A results folder that cannot be reported; the message is one line which names the file and what is wrong."""


def load(directory: Path) -> Results:
    """Everything a report needs from ``suite.json``, ``records.jsonl`` and, if it is there, ``wall.json``.

    Raises:
        UnusableResults: a file is missing or damaged, or the records contradict the suite.
    """
    described = _json_object(directory / "suite.json")
    suite: Any = described.get("suite")
    if problem := suite_problem(suite):
        place = directory / "suite.json"
        raise UnusableResults(f"{place} does not describe a suite ({plain(problem)}): run the comparison again")
    records = _records(directory / "records.jsonl")
    wall = _json_object(directory / "wall.json") if (directory / "wall.json").is_file() else None
    runs = [_score_run(record, suite) for record in records if record["run"]["kind"] == "score"]
    known = tuple(run for run in runs if run is not None)
    _refuse_several_rates(known, directory)
    _refuse_twice(known, directory)
    speed, quantised = (_last_of(records, kind) for kind in ("speed", "quantised"))
    return Results(
        suite=suite,
        command=str(described.get("command", "")),
        versions=described.get("versions") or {},
        labels=tuple(str(entry["label"]) for entry in suite["methods"]),
        runs=known,
        speed=speed["measures"].get("speed") if speed else None,
        speed_error=(speed.get("error") or speed["status"]) if speed and speed["status"] != "done" else None,
        quantised=quantised["measures"].get("quantised") if quantised else None,
        records=tuple(records),
        left_out=len(runs) - len(known),
        wall=wall,
    )


def _last_of(records: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return next((record for record in reversed(records) if record["run"]["kind"] == kind), None)


def _json_object(path: Path) -> dict[str, Any]:
    value = _parse(_text(path), str(path))
    if not isinstance(value, dict):
        raise UnusableResults(f"{path} is damaged: expected a JSON object, got {type(value).__name__}")
    return value


def _records(path: Path) -> list[dict[str, Any]]:
    """One record a key, the last one written: a failed run is computed again and then stands twice."""
    records: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        record = _parse(line, f"{path}, line {number},")
        if problem := record_problem(record):
            raise UnusableResults(f"{path}, line {number}, is damaged: not a record ({plain(problem)})")
        records[record["key"]] = record
    return list(records.values())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UnusableResults(f"{path} is missing: is {path.parent} the folder of a comparison?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableResults(f"{path} cannot be read: {error}") from error


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UnusableResults(f"{place} is damaged: {error}") from error


def _score_run(record: dict[str, Any], suite: dict[str, Any]) -> ScoreRun | None:
    run = record["run"]
    # Dict equality, not equal text: 16 and 16.0 are the same hyperparameter.
    label = next((entry["label"] for entry in suite["methods"] if _is_of(entry, run, suite)), None)
    if label is None:
        return None
    place = {name: run[name] for name in ("stage", "split", "lr", "seed")}
    return ScoreRun(
        str(label),
        **place,
        status=record["status"],
        measures=record["measures"],
        error=record.get("error"),
        record=record,
    )


def _is_of(entry: dict[str, Any], run: dict[str, Any], suite: dict[str, Any]) -> bool:
    where = entry.get("where") or suite.get("where")
    mine, other = (_without(searched_space(suite), method) for method in (entry["method"], run["method"]))
    return bool(mine == other) and run.get("where", where) == where


def _without(space: Json, method: dict[str, Any]) -> dict[str, Any]:
    """A method without what the suite searches of it."""
    hyperparameters = method.get("hyperparameters") or {}
    return {**method, "hyperparameters": {k: v for k, v in hyperparameters.items() if k not in space}}


def _refuse_several_rates(runs: tuple[ScoreRun, ...], directory: Path) -> None:
    rates: dict[str, float] = {}
    for run in runs:
        if run.stage == "final" and rates.setdefault(run.label, run.lr) != run.lr:
            two = f"{rates[run.label]:g} and {run.lr:g}"
            raise UnusableResults(f"{directory}: {run.label!r} has final runs at two learning rates, {two}; keep one")


def _refuse_twice(runs: tuple[ScoreRun, ...], directory: Path) -> None:
    """Two final runs of one seed: of two methods that the suite does not tell apart, or of two versions of one."""
    counts = Counter((run.label, run.seed) for run in runs if run.stage == "final")
    for (label, seed), number in counts.items():
        if number > 1:
            raise UnusableResults(f"{directory}: {label!r} has {number} final runs with seed {seed}; keep one")
