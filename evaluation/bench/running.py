"""The bench itself: groups of methods on copies of one base, each group through every shape, step by step.

The floor, every method of ours and each of PEFT's have the frozen weights to themselves, as they have where they are
used: what shares them could find them in the caches, warmed by the step before."""

from __future__ import annotations

import dataclasses
import gc
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.bench.costs import costs
from evaluation.bench.groups import grouped
from evaluation.bench.pairs import BASELINE, PEFT, Entry
from evaluation.bench.result import Bench, Costs, Interval, Shape, Start, Timing
from evaluation.bench.settings import WARMUP, Settings
from evaluation.bench.starts import starts
from evaluation.clock import Clock
from evaluation.compiling import blocks, check_compiler, compiled
from evaluation.machine import environment
from evaluation.measures.contestants import Contestant, Floor, contestant, random_batch, undisturbed
from evaluation.measures.interleaving import FLOOR, Laps, interleave, noise, phases, totals
from evaluation.measures.intervals import interval
from evaluation.measures.memory import peak_bytes, saved_bytes, step_memory
from evaluation.models import Base
from evaluation.spec import Training, Unusable
from evaluation.training import Classifier
from variants.core import Refused, Variant
from variants.core.targets import matching_layers

CPU = torch.device("cpu")
CALIBRATION = (64, 16)  # rows and tokens: enough that inputs vary in more directions than there are ranks


@dataclass
class Progress:
    """Told what goes on: ``say`` a few words; ``begin`` how many steps there will be, ``tick`` after each."""

    say: Callable[[str], None] = lambda _: None
    begin: Callable[[int], None] = lambda _: None
    tick: Callable[[], None] = lambda: None


def check(base: Base, settings: Settings) -> None:
    """Raises Unusable where a batch is longer than the model reads, ``where`` matches no layer, or it is to be compiled
    and cannot be."""
    most = getattr(base.encoder.config, "max_position_embeddings", None)
    for rows, tokens in settings.shapes:
        if most is not None and tokens > most:
            raise Unusable(f"shape {rows}x{tokens}: {base.name} reads at most {most} tokens")
    try:
        matching_layers(base.encoder, list(settings.where))
        if settings.compile:
            blocks(base.encoder)
            check_compiler(CPU)
    except Refused as error:
        raise Unusable(f"{base.name}: {error}") from error


def identity(base: Base, settings: Settings) -> dict[str, Any]:
    """What two benches must have in common to be compared, as fields of ``Bench``; known before anything is timed."""
    return {
        "model": base.name,
        "digest": base.digest,
        "where": settings.where,
        "rank": settings.rank,
        "threads": settings.threads,
        "compile": settings.compile,
        "weights": "own",
    }


def bench(base: Base, settings: Settings, progress: Progress | None = None) -> Bench:
    """Measures. Whatever the base was, it is afterwards.

    Raises:
        Unusable: as in ``Settings.entries`` and ``check``.
    """
    check(base, settings)
    chosen = settings.entries()
    floor = compiled(base.encoder, settings.compile, CPU)
    with undisturbed(base.encoder, settings.threads, CPU), floor, tempfile.TemporaryDirectory() as folder:
        return _Running(base, settings, progress or Progress(), Path(folder)).run(chosen)


class _Running:
    """What is gathered while the groups go by."""

    def __init__(self, base: Base, settings: Settings, progress: Progress, folder: Path) -> None:
        self.base, self.settings, self.progress, self.folder = base, settings, progress, folder
        classifier = Classifier(base.encoder, base.hidden, 2, seed=0)
        self.floor = Floor(classifier, "float32", Clock(CPU))
        self.batches = {shape: self._batch(shape) for shape in settings.shapes}
        self.timings: dict[tuple[int, int], dict[str, Timing]] = {shape: {} for shape in settings.shapes}
        self.floors: dict[tuple[int, int], Timing] = {}
        self.noises: dict[tuple[int, int], float] = dict.fromkeys(settings.shapes, 0.0)
        self.costs: dict[str, Costs] = {}
        self.left_out: dict[str, str] = {}

    def _batch(self, shape: tuple[int, int]) -> Any:
        return random_batch(*shape, self.base.encoder, classes=2)

    def run(self, chosen: Sequence[Entry]) -> Bench:
        groups = grouped(chosen, sum(p.numel() * p.element_size() for p in self.base.encoder.parameters()))
        per_shape = sum(WARMUP + self.settings.rounds_of(shape) for shape in self.settings.shapes)
        turns = sum(len(entry.contestants()) for group in groups for entry in group) + 2 * len(groups)
        self.progress.begin(per_shape * turns)
        for number, group in enumerate(groups, 1):
            self._group(group, f"group {number} of {len(groups)}")
            gc.collect()  # the replicas of one group must be gone before those of the next come
        found: dict[str, Start] = {}
        if self.settings.starts:
            self.progress.say("starts of PiSSA")
            found = starts(self.base.encoder, self.settings.rank, self.settings.where, self.folder)
        return self._result(chosen, found)

    def _group(self, group: Sequence[Entry], name: str) -> None:
        contestants = {}
        for label, variant in ((label, v) for entry in group for label, v in entry.contestants().items()):
            self.progress.say(f"{name}: attaching {label}")
            try:
                contestants[label] = self._contestant(variant)
            except Refused as reason:
                if label == BASELINE:
                    raise Unusable(f"{label}: {reason}") from reason
                self.left_out[label] = str(reason)
        for shape in self.settings.shapes:
            self.progress.say(f"{name}: {shape[0]} x {shape[1]}")
            self._shape(shape, contestants)
        for label, c in contestants.items():
            if label not in self.costs:
                self.progress.say(f"{name}: merging, saving and loading {label}")
                self.costs[label] = costs(c, self.base.encoder, self.settings.where, self.folder)

    def _contestant(self, variant: Variant) -> Contestant:
        batch = self._batch(CALIBRATION)
        training = Training(steps=self.settings.total, compile=self.settings.compile)
        return contestant(variant, self.settings.where, training, self.floor, batch, self.settings.total, own=True)

    def _shape(self, shape: tuple[int, int], contestants: dict[str, Contestant]) -> None:
        batch, rounds = self.batches[shape], self.settings.rounds_of(shape)
        trainers = {label: c.trainer for label, c in contestants.items()}
        laps = interleave(self.floor, trainers, batch, WARMUP, rounds, CPU, self.progress.tick)
        self.noises[shape] = max(self.noises[shape], noise(laps))
        if shape not in self.floors:
            saved = saved_bytes(self.floor.model, lambda: self.floor.forward(batch))
            peak = peak_bytes(lambda: self.floor.step(batch), CPU)
            self.floors[shape] = Timing(phases=_phases(laps, FLOOR), ratios={}, saved_bytes=saved, peak_bytes=peak)
        whole = totals(laps)
        for label, trainer in trainers.items():
            if label not in self.timings[shape]:  # the baseline is in every group, and reported from the first
                memory, ratios = step_memory(trainer, batch, CPU), _ratios(whole, label)
                self.timings[shape][label] = Timing(phases=_phases(laps, label), ratios=ratios, **memory)

    def _result(self, chosen: Iterable[Entry], found: dict[str, Start]) -> Bench:
        every = {label: v for entry in chosen for label, v in entry.contestants().items()}
        shapes = tuple(
            Shape(
                rows=shape[0],
                tokens=shape[1],
                rounds=self.settings.rounds_of(shape),
                noise=self.noises[shape],
                floor=self.floors[shape],
                methods=self.timings[shape],
            )
            for shape in self.settings.shapes
        )
        return Bench(
            **identity(self.base, self.settings),
            environment=environment() | {"peft": _release(every)},
            settings={label: hyperparameters(variant) for label, variant in every.items()},
            shapes=shapes,
            costs=self.costs,
            starts=found,
            left_out=self.left_out,
        )


def hyperparameters(variant: Variant) -> dict[str, Any]:
    """The fields which are not at their defaults."""
    fields = dataclasses.fields(variant)
    return {f.name: v for f in fields if (v := getattr(variant, f.name)) != f.default}


def _phases(laps: Laps, label: str) -> dict[str, Interval]:
    return {phase: Interval(**seconds) for phase, seconds in phases(laps, label).items()}


def _ratios(whole: dict[str, np.ndarray], label: str) -> dict[str, Interval]:
    references = {"floor": FLOOR, BASELINE: BASELINE, "peft": PEFT + label}
    found = {name: whole[reference] for name, reference in references.items() if reference in whole}
    return {name: Interval(**interval(whole[label] / reference)) for name, reference in found.items()}


def _release(every: dict[str, Variant]) -> str | None:
    return next((variant.release for variant in every.values() if hasattr(variant, "release")), None)
