"""Synthetic merge measurements: rounding that behaves as rounding does, in closed form."""

from __future__ import annotations

import math
from typing import Any

ITEMS = 200
# Format -> its step, label -> the size of its update; both relative to the weights.
FORMATS = {"float32": 3e-8, "bfloat16": 2e-3, "float16": 2.5e-4, "int8": 7e-3, "nf4": 0.09}
SIZES = {"lora": 0.021, "dora": 0.024, "pissa": 0.043, "milora": 0.019, "lora_xs": 0.0032}
SIZES |= {"stiefel": 0.011, "full": 0.03, "usv free": 0.02, "usv penalty": 0.018, "stella": 0.027, "polar": 0.009}
PAIRS = ("lora", "pissa", "milora", "lora_xs", "stiefel", "usv free", "usv penalty", "stella", "polar")
GRID = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0]
RANKS = (4, 8, 16, 32)


def spread(median: float, share: float = 0.03) -> dict[str, float]:
    return {"median": median, "low": median * (1 - share), "high": median * (1 + 1.3 * share)}


def stored(size: float, step: float, rounding: str) -> dict[str, float]:
    """What rounding leaves of an update: to nearest nothing moves below the step, by chance it does on average."""
    if rounding == "nearest":
        return {"kept": 1 - math.exp(-2 * size / step), "error": min(1.0, 0.45 * step / size)}
    return {"kept": 1 + 0.004 * math.cos(1e3 * size), "error": 0.7 * step / size}


def in_format(label: str, name: str, accuracy: float) -> dict[str, Any]:
    """One format's measurement of a method whose outputs move in proportion to its weights."""
    step, size = FORMATS[name], SIZES.get(label)
    if size is None:
        return _unchanged(accuracy)
    both = {rounding: _rounded(stored(size, step, rounding), accuracy) for rounding in ("nearest", "stochastic")}
    return {
        "overflow": False,
        "effect": 0.62,
        "accuracy_adapted": accuracy,
        **both["nearest"],
        "stochastic": None if name == "float32" else both["stochastic"],
        "deployments": _deployments(both["nearest"]["error"], accuracy) if name in ("int8", "nf4") else None,
    }


def _unchanged(accuracy: float) -> dict[str, Any]:
    same = {"accuracy_adapted": accuracy, "accuracy_merged": accuracy, "gained": 0, "lost": 0, "flipped": 0.0}
    nothing = dict.fromkeys(("error", "kept", "update_error", "stochastic", "deployments"))
    return {"overflow": False, "effect": 0.0, "max_logit_change": 0.0, **same, **nothing}


def _rounded(left: dict[str, float], accuracy: float) -> dict[str, Any]:
    error = 0.9 * left["error"]
    lost, gained = min(40, int(24 * error)), min(30, int(9 * error))
    return {
        "error": error,
        "max_logit_change": 8 * error,
        "flipped": (lost + gained) / ITEMS,
        "accuracy_merged": round(accuracy + (gained - lost) / ITEMS, 6),
        "gained": gained,
        "lost": lost,
        "kept": left["kept"],
        "update_error": left["error"],
    }


def _deployments(error: float, accuracy: float) -> dict[str, dict[str, float]]:
    errors = {"beside": 0.3 * error, "bfloat16": 0.31 * error, "original": 0.04, "requantised": 1.1 * error}
    return {kind: {"accuracy": round(accuracy - 0.05 * e, 3), "error": e} for kind, e in errors.items()}


def merging(label: str, accuracy: float = 0.775) -> dict[str, Any]:
    if label == "adapter":
        return {"items": ITEMS, "mergeable": False, "restored": True, "relative_size": None, "formats": {}}
    size = SIZES.get(label)
    return {
        "items": ITEMS,
        "restored": True,
        "mergeable": True,
        "relative_size": size,
        "formats": {name: in_format(label, name, accuracy) for name in FORMATS},
        "survival": survival(size) if size else None,
        "survival_layers": 12 if size else 0,
        "drift": drift(size) if size else None,
        "drift_layers": 2 if size else 0,
        "factors": factors(size) if label in PAIRS and size else None,
        "cost": {"seconds": 0.004 if label in PAIRS else 0.011, "extra_bytes": 2_359_296},
    }


def survival(size: float) -> list[dict[str, Any]]:
    return [
        {"format": name, "rounding": rounding, "relative_size": at, **stored(at * (1 + size), step, rounding)}
        for name, step in FORMATS.items()
        for rounding in ("nearest", "stochastic")
        if not (name == "float32" and rounding == "stochastic")
        for at in GRID
    ]


def drift(size: float) -> dict[str, Any]:
    steps = {name: FORMATS[name] for name in ("float32", "bfloat16", "float16")}
    return {
        name: {
            "restoring": {"1": 0.0, "10": 0.0, "100": 0.0},
            "subtraction": {str(n): 0.1 * step * n**0.5 * (1 + size) for n in (1, 10, 100)},
        }
        for name, step in steps.items()
    }


def factors(size: float) -> dict[str, Any]:
    recovered = {
        name: {
            "singular_values": min(1.0, 0.2 * step / size),
            "subspace": 1 - min(0.9, 0.5 * (step / size) ** 2),
        }
        for name, step in FORMATS.items()
    }
    defects = {"defect_before": 1.4e-6, "defect_after": 1.4e-6} if size == SIZES["stiefel"] else {}
    return {"rank": 8, "defect_before": None, "defect_after": None, **defects, "recovered": recovered}


def start(label: str) -> dict[str, Any]:
    """Of a fresh head on the base: only one method starts elsewhere."""
    exact = label not in ("stella", "adapter")
    change = 0.0 if label in ("lora", "probe") else 3e-7 if exact else 0.21
    return {
        "max_logit_change": 1.9 * change,
        "relative_change": change,
        "loss_base": 3.912,
        "loss_start": 3.912 + 2.1 * (change if not exact else 0.0),
        "exact_init": exact,
    }


def latency(label: str, ratio: float) -> dict[str, Any]:
    """In a forward pass of a token launches count, of a batch arithmetic."""
    cost = 0.16 * ratio
    return {
        given: {
            "adapted": _pass(seconds, 1 + cost * share),
            "folded": _pass(seconds, 1 + 0.7 * cost * share) if label in PAIRS else None,
            "merged": None if label == "adapter" else _pass(seconds, 1.001, 0.01),
        }
        for given, seconds, share in (("token", 0.0031, 1.0), ("batch", 0.0172, 0.3))
    }


def _pass(seconds: float, ratio: float, share: float = 0.02) -> dict[str, Any]:
    return {"seconds": spread(seconds * ratio), "ratio": spread(ratio, share)}


def quantised() -> dict[str, Any]:
    """The residual of a low-rank pair shrinks with its rank; QLoRA has none."""
    kinds = {"qlora": 0.0, "loftq": 0.06, "qpissa": 0.09}
    return {
        name: {
            str(rank): {
                kind: {
                    "weight_error": error * (1 - gain * math.log2(rank)),
                    "output_error": 2.1 * error * (1 - 1.2 * gain * math.log2(rank)),
                }
                for kind, gain in kinds.items()
            }
            for rank in RANKS
        }
        for name, error in (("int8", 0.006), ("nf4", 0.091))
    }
