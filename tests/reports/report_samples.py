"""Synthetic results folders: eight methods, realistic numbers, every kind of gap."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from merging_samples import FORMATS, latency, merging, quantised, spread, start

Record = dict[str, Any]

ITEMS = 500
# label -> (hyperparameters, centre of the grid, trainable parameters, accuracy, step time ratio)
METHODS: dict[str, tuple[dict[str, Any], float, int, float, float]] = {
    "lora": ({"rank": 8, "alpha": 16.0}, 5e-3, 73728, 0.774, 1.0),
    "dora": ({"rank": 8, "alpha": 16.0}, 5e-3, 78336, 0.778, 1.31),
    "pissa": ({"rank": 8}, 5e-4, 73728, 0.781, 1.01),
    "milora": ({"rank": 8}, 1.5e-3, 73728, 0.772, 1.0),
    "lora_xs": ({"rank": 32}, 5e-2, 12288, 0.741, 0.97),
    "stiefel": ({"rank": 8}, 2.5e-2, 74496, 0.691, 1.62),
    "full": ({}, 5e-4, 1774464, 0.828, 1.24),
    "probe": ({}, 5e-3, 0, 0.687, 0.41),
}
# Constrained methods, their control, and a bottleneck adapter: for what takes many rates and seeds.
FAMILY: dict[str, tuple[dict[str, Any], float, int, float, float]] = {
    "lora": METHODS["lora"],
    "usv free": ({"rank": 8, "penalty_weight": 0.0}, 1.6e-2, 74496, 0.772, 1.12),
    "usv penalty": ({"rank": 8, "penalty_weight": 0.1}, 1.6e-2, 74496, 0.773, 1.18),
    "stiefel": METHODS["stiefel"],
    "stella": ({"rank": 8}, 1e-2, 74496, 0.776, 1.6),
    "polar": ({"rank": 8}, 1e-2, 74496, 0.766, 1.4),
    "adapter": ({"bottleneck": 12}, 1e-2, 78336, 0.768, 1.1),
    "probe": METHODS["probe"],
}
NAMES = {"usv free": "usv_penalty", "usv penalty": "usv_penalty"}
SETTLED = ("adapter", "probe")  # of the family: one rate and two seeds, as its suite's protocol says
BASE = 22713216
SOURCES = {name: f"{i:06x}" for i, name in enumerate(METHODS)}
KNOWN = FAMILY | METHODS
IDENTITY = {"model": "9f2c1b", "data": "a01d77", "methods": SOURCES, "format": 1}
ENVIRONMENT = {"cpu": "Example CPU", "cores": 2, "torch": "2.9.0", "threads": 1}


def suite(labels: Iterable[str] = METHODS, seeds: int = 3) -> dict[str, Any]:
    entries = [{"label": label, "method": method(label), "lr": None, "points": None, "seeds": None} for label in labels]
    return {
        "name": "quick",
        "model": "minilm",
        "benchmark": "trec50",
        "where": ["query", "value"],
        "baseline": "lora",
        "methods": entries,
        "training": {"steps": 60, "batch_size": 16, "head_lr": 0.01},
        "protocol": {"lr": 5e-3, "points": 3, "per_decade": 2, "seeds": seeds},
        "merging": {"items": 200, "formats": list(FORMATS), "cycles": [1, 10, 100]},
        "speed": {"batch_size": 16, "tokens": 16, "warmup": 3, "rounds": 15},
    }


def family_suite() -> dict[str, Any]:
    """One rate and two seeds by its protocol; six and five of their own for methods that are judged."""
    described = suite(FAMILY, seeds=2)
    described["protocol"]["points"] = 1
    for entry in described["methods"]:
        if entry["label"] not in SETTLED:
            entry |= {"points": 6, "seeds": 5}
    return described


def method(label: str) -> dict[str, Any]:
    return {"name": NAMES.get(label, label), "hyperparameters": KNOWN[label][0]}


def score(accuracy: float) -> dict[str, Any]:
    gold = [i % 50 for i in range(ITEMS)]
    right = round(accuracy * ITEMS)
    predicted = [g if i < right else (g + 1) % 50 for i, g in enumerate(gold)]
    items = {"id": list(range(ITEMS)), "gold": gold, "predicted": predicted}
    return {
        "accuracy": right / ITEMS,
        "macro_f1": round(accuracy - 0.11, 6),
        "loss": round(2.2 - 1.6 * accuracy, 6),
        "items": items,
    }


def parameters(label: str) -> dict[str, Any]:
    trainable = KNOWN[label][2]
    share = trainable / BASE
    stored = {"trainable": trainable, "closed_form": trainable, "stored_bytes": 4 * trainable, "left_after_merging": 0}
    return stored | {"base": BASE, "share": share}


def score_record(label: str, stage: str, lr: float, seed: int, accuracy: float) -> Record:
    final = stage == "final"
    measures = {
        "training": {"loss": [3.9, 2.5, 1.1], "head_lr": 0.01},
        "parameters": parameters(label),
        "score": score(accuracy),
    }
    if final:
        measures["start"] = start(label)
    if final and seed == 1:
        measures["merging"] = merging(label, round(accuracy, 3))
    run = {
        "kind": "score",
        "stage": stage,
        "model": "minilm",
        "benchmark": "trec50",
        "where": ["query", "value"],
        "method": method(label),
        "lr": lr,
        "seed": seed,
        "split": "test" if final else "validation",
        "training": {"steps": 60},
        "merging": None,
        "device": "cpu",
        "identity": IDENTITY,
    }
    return _record(f"{label}-{stage}-{lr:.3g}-{seed}", run, measures)


def speed_record(labels: Iterable[str] = METHODS) -> Record:
    methods = {label: _method_speed(label, KNOWN[label][4]) for label in labels}
    floor = {"forward": spread(0.021), "backward": spread(0.019), "total": spread(0.040)}
    measured = {
        "threads": 1,
        "batch_size": 16,
        "tokens": 16,
        "rounds": 15,
        "noise": 0.011,
        "floor": floor | {"saved_bytes": 9_000_000, "peak_bytes": 14_000_000},
        "base_latency": {"token": spread(0.0031), "batch": spread(0.0172)},
        "latency_rounds": 40,
        "latency_pooled_rounds": 80,
        "latency_noise": {"token": spread(1.0, 0.012), "batch": spread(1.0, 0.008)},
        "latency_merged": {"token": spread(1.001, 0.006), "batch": spread(1.0, 0.004)},
        "methods": methods,
    }
    run = {
        "kind": "speed",
        "methods": {label: {} for label in labels},
        "device": "cpu",
        "identity": IDENTITY,
        "threads": 1,
    }
    return _record("speed", run, {"speed": measured})


def _method_speed(label: str, ratio: float) -> dict[str, Any]:
    phases = {"forward": 0.022, "backward": 0.025, "optimiser": 0.002, "hooks": 0.0001, "total": 0.049}
    return {
        **{name: spread(seconds * ratio) for name, seconds in phases.items()},
        "ratio_baseline": spread(ratio, 0.0 if ratio == 1.0 else 0.02),
        "ratio_floor": spread(1.2 * ratio, 0.02),
        "saved_bytes": int(1.1e7 * ratio),
        "peak_bytes": int(1.9e7 * ratio),
        "init_seconds": 0.05 * ratio,
        "latency": latency(label, ratio),
    }


def quantised_record() -> Record:
    run = {"kind": "quantised", "device": "cpu", "identity": IDENTITY}
    return _record("quantised", run, {"quantised": quantised()})


def _record(key: str, run: Record, measures: dict[str, Any]) -> Record:
    base = {"key": key, "run": run, "status": "done", "measures": measures, "seconds": {"forward": 1.0}}
    return base | {"environment": ENVIRONMENT, "error": None}


def wobble(*place: int) -> float:
    """A fixed number between -1 and 1 which looks random; golden files must not depend on a generator's stream."""
    return ((7919 * sum((i + 1) * (p + 3) ** 2 for i, p in enumerate(place))) % 2001) / 1000 - 1


def all_records(seeds: int = 3) -> list[Record]:
    """A complete suite: three rates and ``seeds`` final seeds a method, the quantised starts and the speed run."""
    runs = (_runs(m, label, points=3, seeds=seeds) for m, label in enumerate(METHODS))
    return [*(record for found in runs for record in found), quantised_record(), speed_record()]


def family_records() -> list[Record]:
    """A complete suite of the family; a method that ran at one rate has no search."""
    sizes = {label: (1, 2) if label in SETTLED else (6, 5) for label in FAMILY}
    runs = (_runs(m, label, *sizes[label]) for m, label in enumerate(FAMILY))
    return [*(record for found in runs for record in found), speed_record(FAMILY)]


def _runs(m: int, label: str, points: int, seeds: int) -> Iterator[Record]:
    centre, accuracy = KNOWN[label][1], KNOWN[label][3]
    rates = [centre * 10 ** (k / 2) for k in range(-(points // 2), points - points // 2)]
    best = 2 if label == "stiefel" else points // 2  # of three rates that is the edge
    if points > 1:
        for i, lr in enumerate(rates):
            found = accuracy - 0.04 * abs(i - best) + 0.005 * wobble(m, i)
            yield score_record(label, "search", lr, 0, found)
    own = 0.02 if label == "polar" else 0.004
    for seed in range(1, seeds + 1):
        within = 0.008 * wobble(seed) + own * wobble(seed, m)  # a part that all methods share, and their own
        yield score_record(label, "final", rates[best], seed, accuracy + within)


def diverged(record: Record) -> Record:
    measures = {name: value for name, value in record["measures"].items() if name not in ("score", "merging")}
    return record | {"status": "diverged", "measures": measures}


def failed(record: Record, error: str = "OSError: no space left on device") -> Record:
    return record | {"status": "failed", "measures": {}, "error": error}


def relabelled(value: Any, name: str, label: str) -> Any:
    """The suite, or the records, with the method ``name`` shown under another label."""
    if isinstance(value, list):
        return [relabelled(v, name, label) for v in value]
    if not isinstance(value, dict):
        return value
    entries = {
        (label if k == name and isinstance(v, dict) else k): relabelled(v, name, label) for k, v in value.items()
    }
    return entries | ({"label": label} if entries.get("label") == name else {})


def write_folder(
    folder: Path, records: list[Record], described: dict[str, Any] | None = None, wall: bool = True
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    top = {
        "suite": described or suite(),
        "command": "python3 tasks.py compare quick",
        "versions": {"python": "3.11", "svdbench": "0.1.0"},
    }
    (folder / "suite.json").write_text(json.dumps(top))
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if wall:
        seen = {"wall_seconds": 241.3, "workers": 2, "overhead_share": 0.031, "computed_runs": 49}
        (folder / "wall.json").write_text(json.dumps(seen))
    return folder
