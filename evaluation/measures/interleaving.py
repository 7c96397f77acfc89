"""Steps of several models taken in turn, so that drift of the machine cancels in ratios formed within a round."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from evaluation.clock import Clock
from evaluation.data import Batch
from evaluation.measures.contestants import Floor
from evaluation.measures.intervals import interval

FLOOR, AGAIN = "\0floor", "\0again"  # the floor's two turns in a round; no label begins so
Laps = Mapping[str, Mapping[str, list[float]]]  # label -> phase -> seconds, one number a round


class Stepper(Protocol):
    """What takes a step and says by its clock where the time went."""

    clock: Clock

    def step(self, batch: Batch) -> Any: ...


def interleave(
    floor: Floor,
    steppers: Mapping[str, Stepper],
    batch: Batch,
    warmup: int,
    rounds: int,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
) -> Laps:
    """In every round each takes one step on the same batch, the floor two, in an order drawn anew, because a step finds
    the caches as its predecessor left them. The ``warmup`` rounds before are not kept. ``tick`` is called after every
    step."""
    turns: dict[str, Stepper] = {FLOOR: floor, AGAIN: floor, **steppers}
    laps: dict[str, dict[str, list[float]]] = {}
    rng = random.Random(0)
    for round_ in range(warmup + rounds):
        for label in rng.sample(list(turns), len(turns)):
            clock = turns[label].clock = Clock(device)
            turns[label].step(batch)
            if round_ >= warmup:
                for phase, seconds in clock.laps().items():
                    laps.setdefault(label, {}).setdefault(phase, []).append(sum(seconds))
            tick()
    return laps


def totals(laps: Laps) -> dict[str, np.ndarray]:
    """Seconds of whole steps: label -> one number a round."""
    return {label: np.sum(list(phases.values()), axis=0) for label, phases in laps.items()}


def phases(laps: Laps, label: str) -> dict[str, dict[str, float]]:
    """The phases of a step and the whole, each as an interval in seconds."""
    found = {phase: interval(np.array(seconds)) for phase, seconds in laps[label].items()}
    return found | {"total": interval(np.sum(list(laps[label].values()), axis=0))}


def noise(laps: Laps) -> float:
    """Half the width of the interval of the floor's ratio with itself."""
    whole = totals(laps)
    again = interval(whole[AGAIN] / whole[FLOOR])
    return (again["high"] - again["low"]) / 2
