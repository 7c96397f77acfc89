"""One run in, one record out."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.benchmarks import load_benchmark
from evaluation.benchmarks.splits import unseen
from evaluation.calibration import Statistics, calibrate, digest
from evaluation.clock import Clock
from evaluation.compiling import check_compiler, compiled
from evaluation.data import Data, Split, axis_seed, extremes, tokenise, training_batches
from evaluation.digests import source_digest
from evaluation.feeding import fed
from evaluation.kept import keep
from evaluation.known import KnownBase, is_untouched
from evaluation.machine import environment
from evaluation.measures.contestants import random_batch
from evaluation.measures.curvature import curvature
from evaluation.measures.curve import CurveWatch
from evaluation.measures.merging import merging
from evaluation.measures.parameters import parameters
from evaluation.measures.quantised import quantised
from evaluation.measures.score import score
from evaluation.measures.spectrum import Watch
from evaluation.measures.spectrum.forgetting import features
from evaluation.measures.speed import speed
from evaluation.measures.start import start
from evaluation.models import Base, load_base
from evaluation.mounting import mounted
from evaluation.spec import (
    Axis,
    Calibration,
    QuantisedRun,
    Record,
    Run,
    ScoreRun,
    SpeedRun,
    Suite,
    Training,
    Unusable,
    key,
)
from evaluation.training import Classifier, Diverged, Trainer, features as features_of, logits, outputs_of, seeded
from variants.core import Refused, Variant, create, method

FEWEST = 3  # texts that forgetting is measured on: similarities of fewer cannot be ranked


@dataclass
class Workbench:
    """A base model and a tokenised benchmark, loaded once and used by many runs; every run leaves them as they were."""

    model: str
    benchmark: str
    device: torch.device
    base: Base = field(init=False)
    known: KnownBase = field(init=False, default_factory=KnownBase)
    _data: dict[tuple[str, int], Data] = field(init=False, default_factory=dict)
    _others: dict[str, list[int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.base = load_base(self.model)
        self.base.encoder.to(self.device)

    def data(self, max_length: int, limit: int | None) -> Data:
        return self._tokenised(self.benchmark, max_length).head(limit)

    def text(self, benchmark: str, max_length: int, items: int) -> tuple[Split, int]:
        """The first validation texts of a benchmark that are not in the one trained on, and how many are left out
        because they are."""
        split, index = self._tokenised(benchmark, max_length).validation, self._other_texts(benchmark)
        return split.rows(index[:items]), len(split) - len(index)

    def _other_texts(self, benchmark: str) -> list[int]:
        """Indices of the validation texts that are not in the benchmark trained on either."""
        if benchmark not in self._others:
            validation = load_benchmark(benchmark).validation
            index = unseen(validation, load_benchmark(self.benchmark))
            if len(index) < FEWEST:
                found = f"{len(index)} of {len(validation)} validation texts of {benchmark!r} are not in"
                wanted = f"{self.benchmark!r}, expected {FEWEST}: name another benchmark, or false"
                raise Unusable(f"spectrum.forgetting: {found} {wanted}")
            self._others[benchmark] = index
        return self._others[benchmark]

    def _tokenised(self, benchmark: str, max_length: int) -> Data:
        place = benchmark, max_length
        if place not in self._data:
            self._data[place] = tokenise(load_benchmark(benchmark), self.base.tokenizer, max_length)
        return self._data[place]

    def check_identity(self, run: Run) -> None:
        """Raises ValueError unless model, data and methods are those whose digests the run, and so its record, has."""
        here = self.model, self.benchmark, self.base.digest, load_benchmark(self.benchmark).digest
        if here != (run.model, run.benchmark, run.identity.model, run.identity.data):
            raise ValueError(f"{self.model} or {self.benchmark} is not, or no longer, what the run was planned for")
        text = run.spectrum.text if isinstance(run, ScoreRun) and run.spectrum else None
        if text and load_benchmark(text).digest != run.identity.forgetting:
            raise ValueError(f"{text} is not, or no longer, what the run was planned for")
        for name, planned in run.identity.methods.items():
            if source_digest(method(name)) != planned:
                raise ValueError(f"the code of {name} is not, or no longer, what the run was planned for")

    def check(self, suite: Suite) -> None:
        """Puts every method of a suite on the model and takes it off again.

        Raises:
            Unusable: one of them cannot work here, or the texts of forgetting cannot be had or are too few, or
                nothing can be compiled where that is asked for.
        """
        if suite.training.compile:
            check_compiler(self.device)
        if suite.spectrum and suite.spectrum.text:
            self._other_texts(suite.spectrum.text)
        for entry in suite.methods:
            try:
                variant, where = create(entry.method.name, entry.method.hyperparameters), suite.layers_of(entry)
                stats = self.sample(variant, where)
                dropout = suite.training.adapter_dropout
                with mounted(self.base.encoder, variant, where, 0, dropout, stats) as encoder:
                    if suite.training.compile:
                        self._check_compiles(encoder, variant, suite.training)
            except Refused as error:
                raise Unusable(f"{entry.label}: {error}") from error

    def _check_compiles(self, encoder: nn.Module, variant: Variant, training: Training) -> None:
        """Traces the graphs of a step, which are then not compiled: that takes a moment, and finds what cannot be."""
        batch = random_batch(2, 8, self.base.encoder, classes=2).to(self.device)
        model = Classifier(encoder, self.base.hidden, 2, seed=0).to(self.device)
        with compiled(encoder, True, self.device, backend="eager"):
            Trainer(model, variant, training, 1e-5, Clock(self.device)).rehearse([batch])

    def sample(self, variant: Variant, where: tuple[str, ...]) -> Statistics:
        """What a method needs to be tried out: statistics of made-up tokens; empty where it needs none."""
        if not variant.needs:
            return {}
        # Enough tokens that a layer's inputs vary in more directions than there are ranks.
        batch = random_batch(64, 16, self.base.encoder, classes=2).to(self.device)
        model = Classifier(self.base.encoder, self.base.hidden, 2, seed=0).to(self.device)
        return calibrate(model, where, variant.needs, [batch])


def execute(run: Run, bench: Workbench, folder: Path | None = None) -> Record:
    """Carries out one run. Divergence is a result; anything else that goes wrong is raised.

    Args:
        folder: where a run that keeps its trained adapter leaves it.

    Raises:
        ValueError: the workbench holds another model or other data than the run names.
    """
    bench.check_identity(run)
    began = time.perf_counter()
    measures: dict[str, Any] = {}
    clock = Clock(bench.device)
    diverged: str | None = None
    if isinstance(run, SpeedRun):
        classes = bench.data(run.training.max_length, run.limit).classes
        measures["speed"] = speed(run, bench.base.encoder, bench.base.hidden, classes, bench.device)
        seconds = measures["speed"].pop("seconds")
    elif isinstance(run, QuantisedRun):
        measures["quantised"] = _quantised(run, bench, clock)
        seconds = clock.seconds()
    else:
        try:
            _score(run, bench, clock, measures, folder)
        except Diverged as reason:
            diverged = str(reason)
        seconds = clock.seconds()
    return Record(
        key=key(run),
        run=run,
        status="diverged" if diverged else "done",
        measures=measures,
        seconds=seconds | {"total": time.perf_counter() - began},
        environment=environment(),
        error=diverged,
    )


def _score(run: ScoreRun, bench: Workbench, clock: Clock, measures: dict[str, Any], folder: Path | None) -> None:
    """Trains and measures; what was measured before a divergence stays in ``measures``."""
    data = bench.data(run.training.max_length, run.limit)
    data = replace(data, train=data.train.drawn(run.training.subset, seed_of(run, "subset")))
    variant = create(run.method.name, run.method.hyperparameters)
    base = bench.base.encoder
    stock = {path: p.detach().clone() for path, p in base.named_parameters()} if run.merging or run.spectrum else {}
    head_seed, adapter_seed = seed_of(run, "head"), seed_of(run, "adapter")
    stats: Statistics | None = None
    if run.calibration is not None:
        with clock("calibration"):
            head = Classifier(base, bench.base.hidden, data.classes, head_seed).to(bench.device)
            stats = _calibrated(run, run.calibration, head, variant, data)
        measures["calibration"] = {"digest": digest(stats), "layers": len(stats)}
    watch = _watch(run, bench, stock, clock)
    with ExitStack() as stack:
        with clock("attach"):
            dropout = run.training.adapter_dropout
            encoder = stack.enter_context(mounted(base, variant, run.where, adapter_seed, dropout, stats))
        model = Classifier(encoder, bench.base.hidden, data.classes, head_seed).to(bench.device)
        measures["parameters"] = parameters(encoder, variant)
        split = data.validation if run.split == "validation" else data.test
        if run.merging:
            measures["start"] = start(model, variant, split, run.merging, clock, bench.known)
        if run.forecast:
            measures["curvature"] = _curvature(run, model, variant, data, clock)
        measures["training"] = {"loss": []}
        curve = CurveWatch(run.curve, run.training, data.validation, clock) if run.curve else None
        if curve:
            measures["curve"] = curve.result()
        _train(run, model, variant, data, bench.device, clock, measures["training"]["loss"], watch, curve)
        outputs = _outputs(model, split, bench, run.training.precision, clock)
        if not bool(torch.isfinite(outputs).all()):
            raise Diverged("the outputs after training are not finite")
        measures["score"] = score(outputs, split)
        if run.keep and folder is not None:
            measures["kept"] = keep(folder, model, variant)
        if watch:
            measures["spectrum"] = watch.after(model, variant)
        if run.merging:
            measures["merging"] = merging(model, variant, stock, split, run.merging, clock, run.seed, bench.known)
    if run.merging:
        measures["merging"]["restored"] = same_bits(base, stock)


def _outputs(model: Classifier, split: Split, bench: Workbench, precision: str, clock: Clock) -> Tensor:
    """Of the trained model; where only its head has changed, from features that may be known."""
    if not is_untouched(model.encoder):
        return logits(model, split, clock, bench.device, precision)

    def find() -> Tensor:
        return features_of(model, split, clock, bench.device, precision)

    return outputs_of(model, bench.known.features(split, f"computed in {precision}", find), precision)


def seed_of(run: ScoreRun, axis: Axis) -> int:
    """What a run draws on one axis from: by its seed, or as seed 0 where the suite holds the axis fixed."""
    return axis_seed(axis, run.seed if axis in run.vary else 0)


def _watch(run: ScoreRun, bench: Workbench, stock: dict[str, Tensor], clock: Clock) -> Watch | None:
    """What measures the spectra, having seen the untouched base; None where they are not asked for."""
    spec = run.spectrum
    if spec is None:
        return None
    text, left_out, before = None, 0, None
    if spec.text:
        text, left_out = bench.text(spec.text, run.training.max_length, spec.items)
        with clock("spectrum"):
            before = features(Classifier(bench.base.encoder, bench.base.hidden, 1, seed=0).to(bench.device), text)
    return Watch(spec, stock, run.where, text, before, run.training.steps, clock, left_out)


def _quantised(run: QuantisedRun, bench: Workbench, clock: Clock) -> dict[str, Any]:
    """Under a fresh head: no label is looked at."""
    spec, data = run.quantised, bench.data(run.training.max_length, run.limit)
    model = Classifier(bench.base.encoder, bench.base.hidden, data.classes, axis_seed("head", 0)).to(bench.device)
    return quantised(model, run.where, spec.formats, spec.ranks, data.test.head(spec.items), clock)


def _curvature(run: ScoreRun, model: Classifier, variant: Variant, data: Data, clock: Clock) -> dict[str, Any]:
    """On as many training rows as the first two steps see, the same for every method of a seed."""
    seed = axis_seed("curvature", run.seed)
    rows = next(training_batches(data.train, 2 * run.training.batch_size, seed))
    batch = data.train.batch(rows).to(model.head.weight.device)
    return curvature(model, variant, batch, torch.Generator().manual_seed(seed), clock)


def _calibrated(run: ScoreRun, spec: Calibration, model: Classifier, variant: Variant, data: Data) -> Statistics:
    order = training_batches(data.train, spec.batch_size, seed_of(run, "calibration"))
    device = model.head.weight.device
    batches = (data.train.batch(next(order)).to(device) for _ in range(spec.batches))
    return calibrate(model, run.where, variant.needs, batches, run.training.precision)


def _train(
    run: ScoreRun,
    model: Classifier,
    variant: Variant,
    data: Data,
    device: torch.device,
    clock: Clock,
    losses: list[float],
    watch: Watch | None,
    curve: CurveWatch | None,
) -> None:
    trainer = Trainer(model, variant, run.training, run.lr, clock)
    endless = training_batches(data.train, run.training.batch_size, seed_of(run, "data order"))
    batches = list(islice(endless, run.training.steps))
    if watch:
        watch.at(model.encoder, 0)
    with compiled(model.encoder, run.training.compile, device), seeded(seed_of(run, "dropout"), device):
        if run.training.compile:
            trainer.rehearse(fed(data.train, extremes(data.train, batches), device))
        for step, batch in enumerate(fed(data.train, batches, device), 1):
            losses.append(trainer.step(batch))
            if watch:
                watch.at(model.encoder, step)
            if curve:
                curve.at(model, step)


def same_bits(encoder: nn.Module, stock: dict[str, Tensor]) -> bool:
    """Whether the encoder's parameters are exactly what they were."""
    now = dict(encoder.named_parameters())
    return now.keys() == stock.keys() and all(torch.equal(now[path], tensor) for path, tensor in stock.items())
