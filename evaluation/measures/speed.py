"""Training speed: every method's step, interleaved step by step on one machine that does nothing else.

Each method trains its own replica of the base; replicas share the frozen parameters. In every round each method takes
one step on the same batch, so drift of the machine cancels in the ratios, which are formed within a round. The order is
drawn anew for every round, because a step finds the caches as its predecessor left them. The floor is the frozen base:
forward, and the gradient of the input. It is timed twice in every round; the interval of its ratio with itself is the
noise of the measurement.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.calibration import calibrate
from evaluation.clock import Clock
from evaluation.data import Batch
from evaluation.measures.intervals import interval
from evaluation.measures.latency import latency
from evaluation.measures.memory import peak_bytes, saved_bytes, step_memory
from evaluation.mounting import mount
from evaluation.peers import Peer
from evaluation.spec import SpeedRun
from evaluation.training import Classifier, Trainer, autocast, seeded
from variants.core import create
from variants.core.cache import not_kept

MEMORY_STEPS = 1  # taken after the rounds, to measure their memory
PHASES = ("forward", "backward", "optimiser", "hooks")


@dataclass
class Contestant:
    """One method on its replica."""

    trainer: Trainer
    init_seconds: float


def speed(run: SpeedRun, encoder: nn.Module, hidden: int, classes: int, device: torch.device) -> dict[str, Any]:
    """Times all methods of ``run``.

    Returns:
        threads, batch_size, tokens, rounds; noise: half-width of the interval of the floor's ratio with itself;
        floor: forward, backward and total seconds, saved_bytes, peak_bytes; methods: for each label the seconds of
        every phase and of the whole step, ratio_baseline and ratio_floor, saved_bytes (activations kept for backward),
        peak_bytes (tensor memory a step adds at its highest), init_seconds (attaching, decompositions included), and
        latency; latency and what begins with ``latency_`` or ``base_latency`` is that of ``measures.latency``.
        Seconds and ratios are {median, low, high} with a 95 % interval of the median.
    """
    threads = torch.get_num_threads()
    trains = {parameter: parameter.requires_grad for parameter in encoder.parameters()}
    torch.set_num_threads(run.threads)
    try:
        with seeded(0, device):
            return _measure(run, encoder, hidden, classes, device)
    finally:
        torch.set_num_threads(threads)
        for parameter, flag in trains.items():
            parameter.requires_grad_(flag)


def _measure(run: SpeedRun, encoder: nn.Module, hidden: int, classes: int, device: torch.device) -> dict[str, Any]:
    batch = random_batch(run.speed.batch_size, run.speed.tokens, encoder, classes).to(device)
    contestants = {label: contestant(run, label, encoder, hidden, classes, device) for label in run.methods}
    floor = Floor(Classifier(encoder, hidden, classes, seed=0).to(device), run.training.precision, Clock(device))
    steps: dict[str, Callable[[], object]] = {
        "\0floor": lambda: floor.step(batch),
        "\0again": lambda: floor.step(batch),
    }
    laps: dict[str, dict[str, list[float]]] = {}
    for label, c in contestants.items():
        steps[label] = lambda c=c: c.trainer.step(batch)  # type: ignore[misc]
    clocks = {label: (contestants[label].trainer if label in contestants else floor) for label in steps}
    rng = random.Random(0)
    for round_ in range(run.speed.warmup + run.speed.rounds):
        for label in rng.sample(list(steps), len(steps)):
            clock = clocks[label].clock = Clock(device)
            steps[label]()
            if round_ >= run.speed.warmup:
                for phase, seconds in clock.laps().items():
                    laps.setdefault(label, {}).setdefault(phase, []).append(sum(seconds))
    return _result(run, laps, contestants, floor, batch, device)


def _result(
    run: SpeedRun,
    laps: dict[str, dict[str, list[float]]],
    contestants: dict[str, Contestant],
    floor: Floor,
    batch: Batch,
    device: torch.device,
) -> dict[str, Any]:
    totals = {label: np.sum(list(phases.values()), axis=0) for label, phases in laps.items()}
    base = totals[run.baseline]
    memory = {label: step_memory(c.trainer, batch, device) for label, c in contestants.items()}
    adapted = {label: (c.trainer.model, c.trainer.variant) for label, c in contestants.items()}
    # Last: it takes the models out of training.
    rows = random_batch(run.speed.latency_batch_size, run.speed.tokens, floor.model.encoder, classes=2).to(device)
    passes = latency(adapted, floor.model, rows, run.speed.latency_rounds, run.training.precision, device)
    again = interval(totals["\0again"] / totals["\0floor"])

    def phases(label: str) -> dict[str, Any]:
        return {phase: interval(np.array(seconds)) for phase, seconds in laps[label].items()}

    methods = {
        label: phases(label)
        | memory[label]
        | {
            "total": interval(totals[label]),
            "ratio_baseline": interval(totals[label] / base),
            "ratio_floor": interval(totals[label] / totals["\0floor"]),
            "init_seconds": c.init_seconds,
            "latency": passes["methods"][label],
        }
        for label, c in contestants.items()
    }
    return {
        "threads": run.threads,
        "batch_size": run.speed.batch_size,
        "tokens": run.speed.tokens,
        "rounds": run.speed.rounds,
        "noise": (again["high"] - again["low"]) / 2,
        "floor": phases("\0floor")
        | {
            "total": interval(totals["\0floor"]),
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
        | {"evaluation": passes["seconds"]},
    }


def random_batch(rows: int, tokens: int, encoder: nn.Module, classes: int) -> Batch:
    """Full rows of random token ids: padding would hide work from some shapes."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, encoder.config.vocab_size, (rows, tokens), generator=rng)  # type: ignore[union-attr, arg-type]
    if classes == 1:  # regression: cross entropy over one class would have no gradient
        return Batch(ids, torch.ones_like(ids), torch.randn(rows, generator=rng))
    return Batch(ids, torch.ones_like(ids), torch.randint(0, classes, (rows,), generator=rng))


def contestant(
    run: SpeedRun, label: str, encoder: nn.Module, hidden: int, classes: int, device: torch.device
) -> Contestant:
    """A replica of the base with the method attached. Frozen parameters are shared, trained ones are its own."""
    spec, where = run.methods[label], run.places.get(label, run.where)
    variant = create(spec.name, spec.hyperparameters)
    shared = {id(p): p for path, p in encoder.named_parameters() if not variant.trains_base(path)}
    # A peer's library may write into the base which it is given: its copy shares nothing.
    replica = copy.deepcopy(encoder, memo={} if isinstance(variant, Peer) else shared)
    batch = random_batch(run.speed.batch_size, run.speed.tokens, encoder, classes).to(device)
    stock = Classifier(replica, hidden, classes, seed=0).to(device)
    stats = calibrate(stock, where, variant.needs, [batch], run.training.precision)
    with not_kept():  # decompositions count
        began = time.perf_counter()
        replica = mount(replica, variant, where, 0, run.training.adapter_dropout, stats)
        init_seconds = time.perf_counter() - began
    model = Classifier(replica, hidden, classes, seed=0).to(device)
    # A small rate: the arithmetic is the same at every rate, and random labels must not make it diverge. But not
    # smaller still: numbers below 1e-38, which are slow, would enter the optimiser's moments. As long a run as the
    # measurement, so that schedules (rank budgets) do in it what they do in a run.
    steps = run.speed.warmup + run.speed.rounds + MEMORY_STEPS
    trainer = Trainer(model, variant, run.training, 1e-5, Clock(device), total=steps)
    return Contestant(trainer, init_seconds)


class Floor:
    """The frozen base: a forward pass, and the gradient of the embedded input. No method that adapts every layer can
    be faster."""

    def __init__(self, model: Classifier, precision: str, clock: Clock) -> None:
        self.model, self.precision, self.clock = model.requires_grad_(False).eval(), precision, clock
        self.embed: nn.Module = model.encoder.get_input_embeddings()  # type: ignore[operator]

    def forward(self, batch: Batch) -> Tensor:
        with autocast(batch.labels.device, self.precision):
            embedded = self.embed(batch.input_ids).requires_grad_()
            hidden = self.model.encoder(inputs_embeds=embedded, attention_mask=batch.attention_mask).last_hidden_state
            return self.model.head(hidden.mean(1)).float().logsumexp(1).mean()

    def step(self, batch: Batch) -> None:
        with self.clock("forward"):
            loss = self.forward(batch)
        with self.clock("backward"):
            loss.backward()
