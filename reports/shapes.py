"""Whether a suite and a record, as files have them, are of the shape that a report reads; what is wrong, in few words.

Files may be damaged, edited by hand or not one's own: whatever passes here is read without a further look.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MOST = 10**6  # no whole number of a suite is larger: a report lists seeds one by one
# Whole numbers which may be left out or null, with their least.
PROTOCOL = {"points": 1, "per_decade": 1, "trials": 1, "seeds": 1, "search_seeds": 1, "max_seeds": 1}
RACE = {"racing": 2, "rungs": 2}
DEEPEST = 99  # of both: a power of them has to be a number still
TRAINING = {"steps": 1, "batch_size": 1}
ENTRY = {"points": 1, "seeds": 1}
KINDS = {"score": ("stage", "split", "lr", "seed", "method"), "speed": ("methods",), "quantised": ()}
POINT = ("step", "seconds", "score", "loss")


def suite_problem(suite: Any) -> str:
    """Empty for a sound suite."""
    return next(_of_suite(suite), "")


def record_problem(record: Any) -> str:
    """Empty for a sound record."""
    return next(_of_record(record), "")


def _of_suite(suite: Any) -> Iterator[str]:
    if not isinstance(suite, dict):
        yield "expected an object"
        return
    yield from (f"{name} is no text" for name in ("model", "benchmark") if not isinstance(suite.get(name), str))
    entries = suite.get("methods")
    if not isinstance(entries, list) or not entries or not all(map(_is_entry, entries)):
        yield "methods is no list of methods with label and name"
        return
    if suite.get("baseline") not in [entry["label"] for entry in entries]:
        yield "baseline is none of the methods"
    for entry in entries:
        yield from _wrong(entry, ENTRY, f"{entry['label']}: ")
    yield from _of_training(suite.get("training"))
    yield from _of_protocol(suite.get("protocol"))


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("label"), str):
        return False
    return _is_method(entry.get("method")) and isinstance(entry.get("where"), list | None)


def _is_method(method: Any) -> bool:
    return isinstance(method, dict) and "name" in method and isinstance(method.get("hyperparameters"), dict | None)


def _of_training(training: Any) -> Iterator[str]:
    if isinstance(training, dict):
        yield from _wrong(training, TRAINING, "training.")
    elif training is not None:
        yield "training is no object"


def _of_protocol(protocol: Any) -> Iterator[str]:
    if not isinstance(protocol, dict):
        yield "protocol is no object"
        return
    yield from _wrong(protocol, PROTOCOL, "protocol.")
    yield from _wrong(protocol, RACE, "protocol.", DEEPEST)
    if not _is_number(protocol.get("margin", 0.0)):
        yield "protocol.margin is no number"
    space = protocol.get("space") or {}
    if not isinstance(space, dict) or not all(isinstance(values, list) and values for values in space.values()):
        yield "protocol.space has more than lists"
    elif space and protocol.get("trials") is None and protocol.get("ruleset") != "defaults":
        yield "protocol.space has no trials"


def _of_record(record: Any) -> Iterator[str]:
    if not isinstance(record, dict) or not {"key", "status"} <= record.keys():
        yield "no key and status"
    elif not all(isinstance(record.get(name), dict) for name in ("run", "measures")):
        yield "no run and measures"
    elif record["run"].get("kind") not in KINDS:
        yield "a run of no known kind"
    elif lacking := [name for name in KINDS[record["run"]["kind"]] if name not in record["run"]]:
        yield f"a run without {' and '.join(lacking)}"
    elif record["run"]["kind"] == "score":
        yield from _of_score_run(record["run"], record["measures"])


def _of_score_run(run: Mapping[str, Any], measures: Mapping[str, Any]) -> Iterator[str]:
    training = run.get("training") or {}
    if not _is_number(run["lr"]) or type(run["seed"]) is not int or not _is_method(run["method"]):
        yield "lr, seed and method are no number, whole number and method"
    if not isinstance(training, dict) or any(_wrong(training, TRAINING, "")):
        yield "training of another shape"
    elif "curve" in measures and not (_is_curve(measures["curve"]) and training.get("steps")):
        yield "a curve of another shape"
    if "score" in measures and not _is_score(measures["score"]):
        yield "a score of another shape"


def _is_curve(curve: Any) -> bool:
    if not isinstance(curve, dict) or not _is_whole(curve.get("items"), 1) or not isinstance(curve.get("points"), list):
        return False
    points = curve["points"]
    return all(isinstance(p, dict) and all(_is_number(p.get(name)) for name in POINT) and p["step"] > 0 for p in points)


def _is_score(score: Any) -> bool:
    """With as many answers as right ones, where it has them."""
    items = score.get("items", {"gold": [], "predicted": []}) if isinstance(score, dict) else None
    if not isinstance(items, dict):
        return False
    gold, predicted = items.get("gold"), items.get("predicted")
    return isinstance(gold, list) and isinstance(predicted, list) and len(gold) == len(predicted)


def _wrong(values: Mapping[str, Any], least: Mapping[str, int], place: str, most: int = MOST) -> Iterator[str]:
    """What of the whole numbers, where they are given, is none, or out of bounds."""
    for name, low in least.items():
        if values.get(name) is not None and not _is_whole(values[name], low, most):
            yield f"{place}{name} is {values[name]!r}, expected a whole number from {low} to {most:,}"


def _is_whole(value: Any, low: int, high: int = MOST) -> bool:
    return type(value) is int and low <= value <= high


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
