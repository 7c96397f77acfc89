"""Training speed: every method's step, interleaved step by step on one machine that does nothing else.

Each method trains its own replica of the base; replicas of ours share the frozen parameters, as a suite has all its
methods in memory at once, and what it compares shares alike. A peer's replica shares nothing, and may find less of it
in the caches: what a peer costs against ours is for ``bench`` to say, where every model owns its weights.

In every round each method takes one step on the same batch, so drift of the machine cancels in the ratios, which are
formed within a round. The order is drawn anew for every round, because a step finds the caches as its predecessor left
them. The floor is the frozen base: forward, and the gradient of the input. It is timed twice in every round; the
interval of its ratio with itself is the noise of the measurement.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from evaluation.clock import Clock
from evaluation.compiling import compiled
from evaluation.data import Batch
from evaluation.measures.contestants import Contestant, Floor, contestant, random_batch, undisturbed
from evaluation.measures.interleaving import FLOOR, Laps, interleave, noise, phases, totals
from evaluation.measures.intervals import interval
from evaluation.measures.latency import latency
from evaluation.measures.memory import peak_bytes, saved_bytes, step_memory
from evaluation.spec import SpeedRun
from evaluation.training import Classifier
from variants.core import create

MEMORY_STEPS = 1  # taken after the rounds, to measure their memory
PHASES = ("forward", "backward", "optimiser", "hooks")


def speed(run: SpeedRun, encoder: nn.Module, hidden: int, classes: int, device: torch.device) -> dict[str, Any]:
    """Times all methods of ``run``.

    Returns:
        threads, batch_size, tokens, rounds; noise: half-width of the interval of the floor's ratio with itself;
        floor: forward, backward and total seconds, saved_bytes, peak_bytes; methods: for each label the seconds of
        every phase and of the whole step, ratio_baseline and ratio_floor, saved_bytes (activations kept for backward),
        peak_bytes (tensor memory a step adds at its highest), init_seconds (attaching, decompositions included),
        compile_seconds of what is compiled, and latency, which is that of models as they are; latency and what begins
        with ``latency_`` or ``base_latency`` is that of ``measures.latency``.
        Seconds and ratios are {median, low, high} with a 95 % interval of the median.
    """
    wanted = run.training.compile
    with undisturbed(encoder, run.threads, device), compiled(encoder, wanted, device):
        return _measure(run, encoder, hidden, classes, device)


def _measure(run: SpeedRun, encoder: nn.Module, hidden: int, classes: int, device: torch.device) -> dict[str, Any]:
    batch = random_batch(run.speed.batch_size, run.speed.tokens, encoder, classes).to(device)
    floor = Floor(Classifier(encoder, hidden, classes, seed=0).to(device), run.training.precision, Clock(device))
    steps = run.speed.warmup + run.speed.rounds + MEMORY_STEPS
    contestants = {}
    for label, spec in run.methods.items():
        variant, where = create(spec.name, spec.hyperparameters), run.places.get(label, run.where)
        contestants[label] = contestant(variant, where, run.training, floor, batch, steps)
    trainers = {label: c.trainer for label, c in contestants.items()}
    laps = interleave(floor, trainers, batch, run.speed.warmup, run.speed.rounds, device)
    return _result(run, laps, contestants, floor, batch, device)


def _result(
    run: SpeedRun,
    laps: Laps,
    contestants: dict[str, Contestant],
    floor: Floor,
    batch: Batch,
    device: torch.device,
) -> dict[str, Any]:
    whole = totals(laps)
    base = whole[run.baseline]
    memory = {label: step_memory(c.trainer, batch, device) for label, c in contestants.items()}
    adapted = {label: (c.trainer.model, c.trainer.variant) for label, c in contestants.items()}
    # Last: it takes the models out of training.
    rows = random_batch(run.speed.latency_batch_size, run.speed.tokens, floor.model.encoder, classes=2).to(device)
    passes = latency(adapted, floor.model, rows, run.speed.latency_rounds, run.training.precision, device)
    methods = {
        label: phases(laps, label)
        | memory[label]
        | {
            "ratio_baseline": interval(whole[label] / base),
            "ratio_floor": interval(whole[label] / whole[FLOOR]),
            "init_seconds": c.init_seconds,
            "latency": passes["methods"][label],
        }
        | ({} if c.compile_seconds is None else {"compile_seconds": c.compile_seconds})
        for label, c in contestants.items()
    }
    return {
        "threads": run.threads,
        "batch_size": run.speed.batch_size,
        "tokens": run.speed.tokens,
        "rounds": run.speed.rounds,
        "noise": noise(laps),
        "floor": phases(laps, FLOOR)
        | {
            "saved_bytes": saved_bytes(floor.model, lambda: floor.forward(batch)),
            "peak_bytes": peak_bytes(lambda: floor.step(batch), device),
        },
        "base_latency": passes["base"],
        "latency_noise": passes["noise"],
        "latency_merged": passes["merged"],
        "latency_rounds": passes["rounds"],
        "latency_pooled_rounds": passes["pooled_rounds"],
        "latency_rows": run.speed.latency_batch_size,
        "methods": methods,
        "seconds": {phase: sum(sum(p.get(phase, [])) for p in laps.values()) for phase in PHASES}
        | {"evaluation": passes["seconds"]}
        | ({"compile": sum(c.compile_seconds or 0.0 for c in contestants.values())} if run.training.compile else {}),
    }
