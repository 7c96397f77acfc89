"""From a suite to its runs: learning rates, seeds, splits.

Every method gets the same number of learning rates over the same number of decades, each grid around the method's own
prior; a budget beyond the grid goes on where the best rate lies. They are scored on validation; the best rate is run
again with fresh seeds, and only those are scored, once, on test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, Literal

from evaluation.pace import matched_steps
from evaluation.search import best, grid, next_rate, trials
from evaluation.seeds import seeds_needed
from evaluation.spec import (
    Entry,
    Identity,
    Merging,
    QuantisedRun,
    Record,
    Run,
    ScoreRun,
    Spectrum,
    SpeedRun,
    Suite,
    Training,
    key,
)
from variants.core import method

NOTHING: Mapping[str, Record] = MappingProxyType({})


@dataclass(frozen=True)
class Tally:
    """How many runs of one method (None: of all together) and stage are done, and how many are left."""

    entry: Entry | None
    stage: str
    done: int
    left: int


@dataclass(frozen=True)
class Plan:
    """A suite on one machine: methods with all hyperparameters spelt out, digests, device and threads.

    Where training time is matched, the speed run comes first, and a method's ``steps`` (by label) follow from its
    record: ``paced`` gives the plan that has them. They are in the runs, and so in their keys.
    """

    suite: Suite
    identity: Identity
    device: str
    threads: int
    steps: Mapping[str, int] | None = None  # of every method; None: those of the suite, or not known yet

    def paced(self, records: Mapping[str, Record]) -> tuple[Plan, Mapping[str, Record]]:
        """The plan with the steps of every method, and the records that count in it: before the speed run none do,
        since runs of as many steps as the suite gives need not be among those that will be wanted.

        Raises:
            Unusable: training time is to be matched, and the speed run could not measure it.
        """
        if self.suite.match == "steps" or self.steps is not None:
            return self, records
        speed = records.get(key(self.speed_run()))
        if speed is None:
            return replace(self, steps={}), NOTHING
        return replace(self, steps=matched_steps(speed)), records

    def runs(self, records: Mapping[str, Record]) -> list[Run]:
        """Every run that is known to be needed, given the records so far: trials beyond a method's grid appear when the
        grid is complete, its final runs when its search is, the speed run when nothing else is left. Where it decides
        how many steps the others take, it is the first and at first the only one."""
        plan, known = self.paced(records)
        if plan is not self:
            return plan.runs(known) if plan.steps else [self.speed_run()]
        entries = costly_first(self.suite.methods)
        searches = [self.search(entry, records) for entry in entries]
        # Rate by rate, so that after the first round the time of every method's runs is known.
        found: list[Run] = [run for rank in zip_longest(*searches) for run in rank if run is not None]
        seeds = self.seeds(records)
        for entry in entries:
            rate = self.rate(entry, records)
            if rate is not None:
                found += self.final(entry, rate, seeds[entry.label])
        if self.suite.quantised:
            found.append(self.quantised_run())
        if self.suite.speed and (self.steps or all(key(run) in records for run in found)):
            found.append(self.speed_run())
        return found

    def total(self, records: Mapping[str, Record] = NOTHING) -> int:
        """How many runs the suite has when no learning-rate search diverges altogether, as far as the records tell:
        undecided pairs of methods may call for more seeds."""
        plan, known = self.paced(records)
        if plan is not self:
            return plan.total(known)
        suite, seeds = self.suite, self.seeds(records)
        scores = sum(suite.search_runs_of(entry) + seeds[entry.label] for entry in suite.methods)
        return scores + bool(suite.quantised) + bool(suite.speed)

    def tallies(self, records: Mapping[str, Record]) -> list[Tally]:
        """What of each method and stage is recorded, and what is left; runs of another setting do not count."""
        plan, known = self.paced(records)
        if plan is not self:
            return plan.tallies(known)
        found, seeds = [], self.seeds(records)
        for entry in costly_first(self.suite.methods):
            search = self.search(entry, records)
            wanted = self.suite.search_runs_of(entry)
            rate, lost = self.rate(entry, records), self._lost(entry, records)
            final = [] if rate is None else self.final(entry, rate, seeds[entry.label])
            expected = {"search": wanted, "final": 0 if lost else seeds[entry.label]}
            for stage, runs in (("search", search), ("final", final)):
                done = sum(key(run) in records for run in runs)
                if expected[stage] or runs:
                    found.append(Tally(entry, stage, done, expected[stage] - done))
        for run in self._of_all_methods():
            done = int(key(run) in records)
            found.append(Tally(None, run.kind, done, 1 - done))
        return found

    def _of_all_methods(self) -> list[QuantisedRun | SpeedRun]:
        suite = self.suite
        found: list[QuantisedRun | SpeedRun] = [self.quantised_run()] if suite.quantised else []
        return [*found, self.speed_run()] if suite.speed else found

    def search(self, entry: Entry, records: Mapping[str, Record] = NOTHING) -> list[ScoreRun]:
        """The runs among which a method's learning rate is chosen, as far as the records decide which: the grid, and
        one trial more for every one before it that is complete. None where there is only one rate."""
        protocol, points = self.suite.protocol, self.suite.points_of(entry)
        if points == 1:
            return []
        rates = grid(self.centre(entry), points, protocol.per_decade)
        runs = [run for rate in rates for run in self._trial(entry, rate)]
        while len(runs) < self.suite.search_runs_of(entry) and (found := trials(runs, records)) is not None:
            runs += self._trial(entry, next_rate(found, protocol.per_decade))
        return runs

    def _trial(self, entry: Entry, rate: float) -> list[ScoreRun]:
        """One rate with every search seed: 0, -1, -2 ..., since final runs count upwards from 1."""
        seeds = self.suite.protocol.search_seeds
        return [self._score_run(entry, "search", rate, -i) for i in range(seeds)]

    def rate(self, entry: Entry, records: Mapping[str, Record]) -> float | None:
        """The learning rate of the final runs: the only one there is, or the best of the search; None until then."""
        if self.suite.points_of(entry) == 1:
            return grid(self.centre(entry), 1, self.suite.protocol.per_decade)[0]
        runs = self.search(entry, records)
        return chosen_rate(runs, records) if len(runs) == self.suite.search_runs_of(entry) else None

    def final(self, entry: Entry, rate: float, seeds: int | None = None) -> list[ScoreRun]:
        """The runs that are reported: as many as the suite says unless ``seeds`` are given."""
        return [self._score_run(entry, "final", rate, 1 + i) for i in range(seeds or self.suite.seeds_of(entry))]

    def seeds(self, records: Mapping[str, Record]) -> dict[str, int]:
        """How many final runs each method has, by label: with ``max_seeds``, more while a pair is undecided."""
        counts = {entry.label: self.suite.seeds_of(entry) for entry in self.suite.methods}
        cap = self.suite.protocol.max_seeds
        if cap is None:
            return counts
        rates = {entry.label: (entry, self.rate(entry, records)) for entry in self.suite.methods}
        if any(rate is None and not self._lost(entry, records) for entry, rate in rates.values()):
            return counts
        finals = {label: self.final(entry, rate, cap) for label, (entry, rate) in rates.items() if rate is not None}
        return counts | seeds_needed(self.suite.protocol, finals, records)

    def _lost(self, entry: Entry, records: Mapping[str, Record]) -> bool:
        """Whether a method's whole search has been run and left no rate: all diverged."""
        search = self.search(entry, records)
        complete = len(search) == self.suite.search_runs_of(entry) and trials(search, records) is not None
        return complete and self.rate(entry, records) is None

    def speed_run(self) -> SpeedRun:
        assert self.suite.speed is not None
        return SpeedRun(
            methods={entry.label: entry.method for entry in self.suite.methods},
            places={entry.label: entry.where for entry in self.suite.methods if entry.where},
            baseline=self.suite.baseline,
            where=self.suite.where,
            speed=self.suite.speed,
            threads=self.threads,
            **self._common(self.suite.methods),
        )

    def quantised_run(self) -> QuantisedRun:
        assert self.suite.quantised is not None
        return QuantisedRun(where=self.suite.where, quantised=self.suite.quantised, **self._common(()))

    def centre(self, entry: Entry) -> float:
        """The middle of a method's grid: its own ``lr`` in the suite, else the prior relative to LoRA's. Under the
        ruleset ``defaults`` the prior, whatever the suite found out."""
        if entry.lr is not None and self.suite.protocol.ruleset == "tuned":
            return entry.lr
        cls = method(entry.method.name)
        return self.suite.training.head_lr if cls.trains == "head" else self.suite.protocol.lr * cls.lr_ratio

    def _score_run(self, entry: Entry, stage: Literal["search", "final"], rate: float, seed: int) -> ScoreRun:
        first = stage == "final" and seed == 1
        merging: Merging | None = self.suite.merging if first else None
        spectrum = self._spectrum(stage, first)
        return ScoreRun(
            stage=stage,
            method=entry.method,
            lr=rate,
            seed=seed,
            split="validation" if stage == "search" else "test",
            where=self.suite.layers_of(entry),
            merging=merging,
            spectrum=spectrum,
            calibration=self.suite.calibration if method(entry.method.name).needs else None,
            keep=self._keeps(entry, stage, first),
            vary=self.suite.vary,
            forecast=self._forecasts(entry, stage, rate, seed),
            curve=self.suite.curve if stage == "final" else None,
            **self._common((entry,), spectrum) | {"training": self._training(entry)},
        )

    def _training(self, entry: Entry) -> Training:
        steps = (self.steps or {}).get(entry.label)
        return self.suite.training if steps is None else self.suite.training.model_copy(update={"steps": steps})

    def _spectrum(self, stage: str, first: bool) -> Spectrum | None:
        """In full on a method's first final run; of the others, what comparing seeds takes."""
        spec = self.suite.spectrum
        if spec is None or stage == "search":
            return None
        return spec if first else spec.model_copy(update={"depth": "directions"})

    def _keeps(self, entry: Entry, stage: str, first: bool) -> bool:
        """Whether a run keeps its trained adapter. A peer's belongs to its own library."""
        wanted = {"all": stage == "final", "first": first, "none": False}[self.suite.keep]
        return wanted and ":" not in entry.method.name

    def _forecasts(self, entry: Entry, stage: str, rate: float, seed: int) -> bool:
        """Whether a run measures the curvature at the start: the first of its method, as a forecast comes before."""
        if not self.suite.protocol.forecast:
            return False
        points = self.suite.points_of(entry)
        # By its rate, not by its place in the search: it stays the same run whatever the search is extended by.
        lowest = grid(self.centre(entry), points, self.suite.protocol.per_decade)[0]
        return (stage, seed, rate) == (("search", 0, lowest) if points > 1 else ("final", 1, rate))

    def _common(self, entries: tuple[Entry, ...], spectrum: Spectrum | None = None) -> dict[str, Any]:
        suite = self.suite
        # Only the digests of what is in this run: a method added to the suite leaves the others' runs valid.
        digests = {
            "methods": {entry.method.name: self.identity.methods[entry.method.name] for entry in entries},
            "forgetting": self.identity.forgetting if spectrum and spectrum.text else None,
        }
        return {
            "model": suite.model,
            "benchmark": suite.benchmark,
            "limit": suite.limit,
            "training": suite.training,
            "device": self.device,
            "identity": self.identity.model_copy(update=digests),
        }


def chosen_rate(search: Iterable[ScoreRun], records: Mapping[str, Record]) -> float | None:
    """The rate with the best mean validation score (the lower loss decides ties), when all of the search has been
    run. None while a run is missing or failed, and where every rate diverged with some seed."""
    found = best(trials(search, records) or ())
    return None if found is None else found.rate


def costly_first(entries: tuple[Entry, ...]) -> list[Entry]:
    """Methods that train the base first and head-only ones last: long runs at the end would leave workers idle."""

    def rank(entry: Entry) -> int:
        return ("base", "layers", "head").index(method(entry.method.name).trains)

    return sorted(entries, key=rank)
