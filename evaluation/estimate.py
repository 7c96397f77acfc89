"""How long a plan would take here, from a few timed steps of every method on the real model and data."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from evaluation.clock import Clock
from evaluation.compiling import compiled
from evaluation.data import training_batches
from evaluation.execute import Workbench
from evaluation.measures.curvature import PRODUCTS
from evaluation.mounting import mounted
from evaluation.protocol import Plan, Tally
from evaluation.spec import Entry, Record
from evaluation.training import Classifier, Trainer, logits
from variants.core import create


def estimate(plan: Plan, records: dict[str, Record], workers: int) -> tuple[list[dict[str, Any]], float]:
    """What a plan would still run, a row for each method and stage, and the seconds it would take.

    The seconds come from timing a few steps of every method on the real model and data. ``tokens``, the same in every
    row, is the median length of the training texts.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bench = Workbench(plan.suite.model, plan.suite.benchmark, torch.device(plan.device))
        bench.check(plan.suite)
        probes = {entry.label: _seconds_of_runs(plan, entry, bench) for entry in plan.suite.methods}
        texts = median(len(row) for row in bench.data(plan.suite.training.max_length, plan.suite.limit).train.tokens)
    finally:
        torch.set_num_threads(threads)
    rows, total = [], 0.0
    paced, known = plan.paced(records)
    for tally in paced.tallies(known):
        seconds = _seconds(paced, probes, tally)
        total += seconds / (1 if tally.stage == "speed" else workers)
        label = "all" if tally.entry is None else tally.entry.label
        row = {"method": label, "stage": tally.stage, "runs": tally.left, "done": tally.done, "seconds": seconds}
        rows.append(row | {"tokens": texts})
    return rows, total


def not_counted(plan: Plan) -> list[str]:
    """What an estimate leaves out, a phrase each."""
    suite, cap = plan.suite, plan.suite.protocol.max_seeds
    left_out = ["start-up and report"]
    left_out += ["spectra" if suite.spectrum else ""]
    left_out += [f"forecasts, at most {PRODUCTS} Hessian products a method" if suite.protocol.forecast else ""]
    left_out += [f"seeds beyond the {suite.protocol.seeds} of the first look (up to {cap})" if cap else ""]
    if suite.match == "seconds":
        again = f"timing again, and with it runs of all methods but {suite.baseline}"
        left_out.append(f"{again}, after a change of the speed settings or of which methods there are")
    return [phrase for phrase in left_out if phrase]


def _seconds(plan: Plan, probes: dict[str, dict[str, float]], tally: Tally) -> float:
    """Of what is left of a tally."""
    if tally.entry is not None:
        # Where training time is matched and not timed yet, every method's steps take the time of the baseline's.
        pace = plan.suite.baseline if plan.steps == {} else tally.entry.label
        return tally.left * probes[tally.entry.label][tally.stage] + tally.steps * probes[pace]["step"]
    if tally.stage == "quantised":  # a guess: decompositions, and many evaluations
        return tally.left * max(probe["final"] + plan.suite.training.steps * probe["step"] for probe in probes.values())
    assert plan.suite.speed is not None
    rounds = plan.suite.speed.warmup + plan.suite.speed.rounds
    return tally.left * rounds * sum(probe["step"] for probe in probes.values())


def _seconds_of_runs(plan: Plan, entry: Entry, bench: Workbench) -> dict[str, float]:
    """Seconds of one step of one method, and of a search run and of a final run without their steps."""
    variant, training = create(entry.method.name, entry.method.hyperparameters), plan.suite.training
    data = bench.data(training.max_length, plan.suite.limit)
    where = plan.suite.layers_of(entry)
    began = time.perf_counter()
    with mounted(bench.base.encoder, variant, where, stats=bench.sample(variant, where)) as encoder:
        attached = time.perf_counter() - began
        clock, evaluation = Clock(bench.device), Clock(bench.device)
        model = Classifier(encoder, bench.base.hidden, data.classes, 0).to(bench.device)
        trainer = Trainer(model, variant, training, 1e-9, clock)
        batches = training_batches(data.train, training.batch_size, 0)
        with compiled(encoder, training.compile, bench.device):
            if training.compile:
                trainer.rehearse([data.train.batch(next(batches)).to(bench.device)])
                attached += clock.seconds()["compile"]
            for i in range(5):
                trainer.step(data.train.batch(next(batches)).to(bench.device))
                if i == 1:  # the first steps also warm up
                    trainer.clock = clock = Clock(bench.device)
        logits(model, data.validation.head(64), evaluation, bench.device)
    step = sum(clock.seconds().values()) / 3
    item = sum(evaluation.seconds().values()) / min(64, len(data.validation))
    if variant.needs:  # a backward pass for each of its batches
        attached += plan.suite.calibration.batches * step
    search = attached + len(data.validation) * item
    final = attached + len(data.test) * item
    if plan.suite.merging:
        final += 4 * len(plan.suite.merging.formats) * plan.suite.merging.items * item / plan.suite.seeds_of(entry)
    if plan.suite.curve:
        final += plan.suite.curve.points * min(plan.suite.curve.items, len(data.validation)) * item
    return {"step": step, "search": search, "final": final}
